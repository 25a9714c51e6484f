"""The Credits page on a database in which a table or a column has another name, as Airflow may change it.

It runs in a process of its own, with the settings of a real Airflow.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def pages(names: Iterable[str], token: str) -> None:
    """Print the status and the text of the page for each name, as JSON.

    :param names: ``table`` or ``table.column``.
    :param token: of the user who opens the page.
    """
    from airflow.api_fastapi.app import init_auth_manager
    from fastapi.testclient import TestClient

    from airflow_stability.compat import read_connections_as_a_command
    from airflow_stability.page.app import create_app

    read_connections_as_a_command()
    init_auth_manager()
    headers = {"Authorization": f"Bearer {token}"}
    found = {}
    for name in names:
        with _renamed(name):
            # A new app, since one reads the database every 15 seconds only.
            client = TestClient(create_app(), raise_server_exceptions=False)
            while "Still reading" in (answer := client.get("/", headers=headers)).text:
                pass
        found[name] = (answer.status_code, answer.text)
    print(json.dumps(found))  # noqa: T201  # for the test


@contextmanager
def _renamed(name: str) -> Iterator[None]:
    from airflow.utils.session import create_session
    from sqlalchemy import text

    table, _, column = name.partition(".")
    if column:
        there = f"ALTER TABLE {table} RENAME COLUMN {column} TO moved"
        back = f"ALTER TABLE {table} RENAME COLUMN moved TO {column}"
    else:
        # SQLite knows of a change by another connection, but not that a name is free again.
        moved = f"{table}_moved"
        there, back = f"ALTER TABLE {table} RENAME TO {moved}", f"ALTER TABLE {moved} RENAME TO {table}"
    with create_session() as session:
        session.execute(text(there))
    try:
        yield
    finally:
        with create_session() as session:
            session.execute(text(back))
