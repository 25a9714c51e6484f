"""Ledgers on the Credits page, on a real server: who sees what, and a ledger that cannot be read."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from html import unescape
from pathlib import Path
from urllib.parse import quote

import pytest

from airflow_stability.compat import HAS_EXTERNAL_VIEWS

if not HAS_EXTERNAL_VIEWS:
    pytest.skip("Airflow has pages of plugins from 3.1 on", allow_module_level=True)

from airflow_stability.hooks.ledger import open_ledger
from airflow_stability.ledger.ledger import Hold, Ledger, Reading, Spender

# The fixtures, too.
from tests.integration.test_credits_page import Site, auth_manager, site, until  # noqa: F401


@pytest.fixture
def ledger_file(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:  # noqa: F811
    """The file of the ledger of three connections. A user whose name starts with `one-` sees one of them."""
    address = f"{site.simulator.connection_uri()}?api_version=v1&ledger_conn_id=the_ledger"
    file = tmp_path / "ledger.db"
    monkeypatch.setenv("AIRFLOW_CONN_THE_LEDGER", f"sqlite:///{quote(str(file))}")
    for conn_id in ("stability_default", "wallet-1", "wallet-2"):
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", address)
    return file


@pytest.fixture
def ledger(ledger_file: Path) -> Ledger:
    """The ledger, with spends of two DAGs and of none, and balances of two wallets that others use."""
    ledger = open_ledger("the_ledger")
    ledger.database.init()
    ledger.set_budget("team", 30, "month", soft_percent=50)
    ledger.set_budget("unused", 100, "total")
    for conn_id, credits in (("wallet-1", 100.0), ("wallet-2", 200.0)):
        read_balance(ledger, conn_id, credits)
    for key, dag_id, credits, budget, state in (
        ("1", "dag-1", 3, "team", "posted"),
        ("2", "dag-1", 2.5, None, "held"),
        ("3", "dag-2", 14.25, "team", "posted"),
        ("4", "dag-3", 4, None, "unknown"),
        ("5", None, 1, None, "posted"),
        ("6", "dag-4", 1000, None, "void"),
    ):
        spender = Spender("wallet-1", None, budget, dag_id=dag_id, run_id="run", task_id="paint")
        assert ledger.hold([Hold(key, spender, credits, starts=True, lease=7200)]).held == [key]
        if state != "held":
            ledger.end(key, state)
    for conn_id, credits in (("wallet-1", 61.25), ("wallet-2", 123.0)):
        read_balance(ledger, conn_id, credits)
    return ledger


def read_balance(ledger: Ledger, conn_id: str, credits: float) -> None:
    hold = Hold("waits", Spender(conn_id), 1e6)
    assert ledger.hold([hold], Reading(credits, 0.0)).refused


def words_of(html: str) -> str:
    """Return the words of a page, with one blank between two."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def complete(site: Site, user: str) -> str:  # noqa: F811
    """Return the words of a page that is complete."""
    until(lambda: "reloads itself" not in site.get(user).text)
    return words_of(site.get(user).text)


def test_it_shows_who_has_spent_what_and_what_is_left(site: Site, ledger: Ledger) -> None:  # noqa: F811
    words = complete(site, "user-1")

    assert "Ledger the_ledger of stability_default, wallet-1, wallet-2" in words
    assert "Held now 2.5 credits" in words
    assert "Unknown 4 credits in 1 spend. Nobody knows whether" in words
    assert "airflow stability ledger settle" in words
    assert "team nearly used up: 50 % or more 17.25 of 30 credits used or held, renews " in words
    assert "unused 0 of 100 credits used or held, does not renew 0 0 0" in words
    assert "no budget has no limit 7.5 7.5 7.5 2.5 held 4 unknown" in words
    rows = (
        "dag-2 14.25 14.25 14.25 dag-1 5.5 5.5 5.5 2.5 held dag-3 4 4 4 4 unknown no DAG 1 1 1 "
        "all 24.75 24.75 24.75 2.5 held 4 unknown"
    )
    assert rows in words
    assert "24.75 credits today, at most 24.75 on a day." in words
    assert re.search(r"connection wallet-1 read between \S+ \S+ UTC and \S+ \S+ UTC 14 14 14 ", words)
    assert re.search(r"connection wallet-2 read between \S+ \S+ UTC and \S+ \S+ UTC 77 77 77 ", words)
    assert "dag-4" not in words


def test_of_dags_that_she_may_not_read_she_sees_sums_and_of_other_connections_nothing(
    site: Site,  # noqa: F811
    ledger: Ledger,
) -> None:
    words = complete(site, "one-user")

    assert "Ledger the_ledger of wallet-1 " in words
    assert "team nearly used up" in words
    rows = (
        "dag-1 5.5 5.5 5.5 2.5 held no DAG 1 1 1 DAGs that you may not read 18.25 18.25 18.25 4 unknown "
        "all 24.75 24.75 24.75 2.5 held 4 unknown"
    )
    assert rows in words
    assert "connection wallet-1 read between" in words
    for hidden in ("dag-2", "dag-3", "wallet-2", "stability_default"):
        assert hidden not in words


def test_a_ledger_that_only_other_connections_name_is_not_shown(
    site: Site,  # noqa: F811
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WALLET-1", f"{site.simulator.connection_uri()}?api_version=v1")
    words = complete(site, "one-user")

    assert "wallet-1" in words
    for hidden in ("the_ledger", "team", "dag-1", "24.75"):
        assert hidden not in words
    assert "Ledger the_ledger of stability_default, wallet-2" in complete(site, "user-1")


def no_tables(file: Path, set_env: Callable[[str, str], None]) -> None:
    file.touch()


def no_folder(file: Path, set_env: Callable[[str, str], None]) -> None:
    set_env("AIRFLOW_CONN_THE_LEDGER", f"sqlite:///{quote(str(file / 'SECRET-FOLDER' / 'ledger.db'))}")


def no_database(file: Path, set_env: Callable[[str, str], None]) -> None:
    set_env("AIRFLOW_CONN_THE_LEDGER", "http://SECRET-HOST")


def no_provider(file: Path, set_env: Callable[[str, str], None]) -> None:
    set_env("AIRFLOW_CONN_THE_LEDGER", "mysql://:SECRET@127.0.0.1:1/ledger")


def no_connection(file: Path, set_env: Callable[[str, str], None]) -> None:
    set_env("AIRFLOW_CONN_THE_LEDGER", "")


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (
            no_tables,
            "The ledger has no tables in connection 'the_ledger': run `airflow stability ledger init`",
        ),
        (
            no_folder,
            "The ledger in connection 'the_ledger' is out of reach. The log of the API server says why.",
        ),
        (
            no_database,
            "The ledger's connection 'the_ledger' is of type 'http', and a ledger needs a database",
        ),
        (no_provider, "The ledger's connection 'the_ledger' cannot be used ("),
        (no_connection, "The conn_id `the_ledger` isn't defined. Make the connection"),
    ],
)
def test_a_ledger_that_cannot_be_read_costs_its_part_only(
    broken: Callable[[Path, Callable[[str, str], None]], None],
    sentence: str,
    site: Site,  # noqa: F811
    ledger_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken(ledger_file, monkeypatch.setenv)
    words = complete(site, "user-1")

    assert "40 credits" in words
    part = words.partition("Ledger the_ledger of stability_default, wallet-1, wallet-2 ")[2]
    assert part.startswith("Not read: ")
    assert sentence in part
    assert "SECRET" not in words


def test_a_ledger_that_does_not_answer_delays_no_page(site: Site, ledger: Ledger, ledger_file: Path) -> None:  # noqa: F811
    with closing(sqlite3.connect(ledger_file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        until(lambda: "40 <small>credits" in site.get("user-1").text)
        page = site.get("user-1")
        assert page.elapsed.total_seconds() < 10  # less than 2 on a machine that has nothing else to do
        assert "The ledger has not answered yet. This page reloads itself." in page.text
        assert '<meta http-equiv="refresh" content="3">' in page.text
        other.execute("ROLLBACK")

    assert "24.75" in complete(site, "user-1")
