"""A ledger for the tasks of a real Airflow, and what a test reads in it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from sqlalchemy import create_engine, select
from sqlalchemy.engine import make_url

from airflow_stability.ledger.database import Database, adapt, engine_arguments
from airflow_stability.ledger.ledger import Ledger
from airflow_stability.ledger.schema import spends
from airflow_stability.rules.credits import from_microcredits


class LedgerOfTasks:
    """A ledger with its tables, in an empty database.

    :param url: of the database, for SQLAlchemy.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        engine = create_engine(url, **engine_arguments(parsed.get_backend_name()))
        self.ledger = Ledger(Database(adapt(engine), "the test's database"))
        self.ledger.database.init()
        if parsed.get_backend_name() == "sqlite":
            self.connection = f"sqlite:///{quote(str(parsed.database))}"
        else:
            self.connection = url.replace("postgresql+psycopg2", "postgres")

    def rows(self, **columns: object) -> list[Any]:
        """Return the spends with these values, oldest first."""
        where = [spends.c[name] == value for name, value in columns.items()]
        query = select(spends).where(*where).order_by(spends.c.held_at)
        # The database's server may have been restarted since.
        return self.ledger.database.run(lambda connection, _now: list(connection.execute(query)))

    def credits(self, *states: str, **columns: object) -> float:
        """Return the credits of the spends in these states, with these values."""
        found = [row.microcredits for row in self.rows(**columns) if row.state in states]
        return from_microcredits(sum(found))
