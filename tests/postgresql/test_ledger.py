"""The ledger on a real PostgreSQL: many processes at once, and a database that crashes or falls silent."""

from __future__ import annotations

import threading
import time
from urllib.parse import urlsplit

import pytest
from sqlalchemy import func, select

from airflow_stability.compat import Connection
from airflow_stability.errors import StabilityLedgerUnavailableError
from airflow_stability.hooks.ledger import ledger_of
from airflow_stability.ledger import database as database_module
from airflow_stability.ledger.ledger import Call, Hold
from airflow_stability.ledger.schema import budgets, metadata, spends
from airflow_stability.rules.credits import MICRO
from tests.dead_host import DeadHost
from tests.ledger_machine import run_machine
from tests.ledger_processes import (
    PROCESSES,
    engine_of,
    ledger_at,
    processes,
    spender,
    take_and_end_through_outages,
    take_batches,
    take_until_refused,
)
from tests.servers import PostgreSQL
from tests.tcp_proxy import TcpProxy


@pytest.fixture(scope="module")
def server():
    programs = PostgreSQL.installed()
    assert programs is not None
    with PostgreSQL(programs) as server:
        yield server


@pytest.fixture
def ledger(server):
    ledger = ledger_at(server.url)
    metadata.drop_all(ledger.database.engine)
    ledger.database.init()
    yield ledger
    ledger.database.engine.dispose()


@pytest.fixture(scope="module")
def run():
    with processes() as run:
        yield run


@pytest.fixture
def proxy(server):
    with TcpProxy(server.port) as proxy:
        yield proxy


def through(proxy, server):
    return server.url.replace(f":{server.port}/", f":{proxy.port}/")


def used(ledger):
    return {budget.name: budget.used / MICRO for budget in ledger.budgets()}


def rows(ledger, *where):
    query = select(spends).where(*where)
    return ledger.database.run(lambda connection, _now: connection.execute(query).all())


def test_no_budget_is_exceeded_and_every_charge_counts(server):
    engine = engine_of(server.url)
    try:
        run_machine(engine, examples=15, steps=30)
    finally:
        engine.dispose()


def test_many_processes_reach_the_limit_to_the_last_credit(server, ledger, run):
    ledger.set_budget("images", 40.3, "total")

    held = [key for keys in run(take_until_refused, server.url, "many", "images", 0.1) for key in keys]

    assert len(held) == len(set(held)) == 403
    assert used(ledger) == {"images": 40.3}
    assert {row.spend_key for row in rows(ledger)} == set(held)


def test_batches_in_both_orders_do_not_end_each_other(server, ledger, run):
    names = ["b", "a", "d", "c"]
    for name in names:
        ledger.set_budget(name, 10_000, "total")

    held = [key for keys in run(take_batches, server.url, "batch", names, 20) for key in keys]

    assert len(held) == PROCESSES * 20 * len(names)
    assert used(ledger) == dict.fromkeys(sorted(names), PROCESSES * 20.0)
    # The database would end one of two transactions that wait for each other, and it would be run again.
    assert "deadlock" not in server.log.read_text()


def test_a_crash_of_the_database_loses_and_doubles_nothing(server, ledger, run):
    ledger.set_budget("images", 1_000_000, "total")

    def crash():
        until = time.monotonic() + 120
        while not rows(ledger, spends.c.state == "posted") and time.monotonic() < until:
            time.sleep(0.2)
        time.sleep(1)
        server.kill()
        time.sleep(1.5)
        server.start()

    crashing = threading.Thread(target=crash)
    crashing.start()
    try:
        results = run(take_and_end_through_outages, server.url, "crash", "images", 8)
    finally:
        crashing.join()

    keys = [key for found, _ in results for key in found]
    assert sum(outages for _, outages in results)
    assert sorted(row.spend_key for row in rows(ledger, spends.c.state == "posted")) == sorted(keys)
    assert len(rows(ledger)) == len(keys)
    assert used(ledger) == {"images": len(keys)}


def test_what_was_committed_before_the_connection_broke_is_written_once(server, ledger, proxy):
    ledger.set_budget("images", 100, "total")
    behind = ledger_at(through(proxy, server))
    behind.database.check_version()

    def cut(write):
        before = proxy.lost
        proxy.lose_answer_to = b"COMMIT"
        result = write()
        assert proxy.lost == before + 1
        return result

    try:
        for balance in (None, 1):
            key = f"hold-{balance}"
            result = cut(lambda key=key: behind.hold([Hold(key, spender("images"), 3)]))
            assert result.held == [key]
        assert used(ledger) == {"images": 6}
        cut(lambda: behind.start("hold-1", "images"))
        cut(lambda: behind.begin_call(Call("call-1", spender("images"), "upscale", 2), "hold-1"))
        assert used(ledger) == {"images": 6}
        cut(lambda: behind.end("call-1", "void"))
        assert used(ledger) == {"images": 4}
        cut(lambda: behind.set_budget("images", 200, "total"))
    finally:
        behind.database.engine.dispose()
    found = {row.spend_key: (row.state, row.microcredits) for row in rows(ledger)}
    assert found == {
        "hold-None": ("held", 3 * MICRO),
        "hold-1": ("held", 1 * MICRO),
        "call-1": ("void", 2 * MICRO),
    }


def test_a_database_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(database_module, "TIMEOUT", 2)
    with DeadHost() as host:
        ledger = ledger_at(f"postgresql+psycopg2://airflow:secret@127.0.0.1:{host.port}/postgres")
        began = time.monotonic()
        with pytest.raises(StabilityLedgerUnavailableError) as raised:
            ledger.budgets()
        assert time.monotonic() - began < 2 * database_module.TRIES + 3
    assert "out of reach" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_database_that_falls_silent_is_given_up(server, ledger, proxy, monkeypatch):
    monkeypatch.setattr(database_module, "TIMEOUT", 2)
    ledger.set_budget("images", 100, "total")
    behind = ledger_at(through(proxy, server))
    assert used(behind) == {"images": 0}

    proxy.silent = True
    began = time.monotonic()
    with pytest.raises(StabilityLedgerUnavailableError, match=r"out of reach: ."):
        behind.hold([Hold("hold-1", spender("images"), 3)])
    assert time.monotonic() - began < 2 * database_module.TRIES + 6

    proxy.silent = False
    assert behind.hold([Hold("hold-1", spender("images"), 3)]).held
    assert used(ledger) == {"images": 3}
    behind.database.engine.dispose()


def test_a_lock_that_is_never_given_back_is_given_up(server, ledger, monkeypatch):
    monkeypatch.setattr(database_module, "TIMEOUT", 1)
    ledger.set_budget("images", 100, "total")
    waiting = ledger_at(server.url)
    waiting.budgets()
    with ledger.database.engine.begin() as connection:
        connection.execute(select(budgets).with_for_update())
        with pytest.raises(StabilityLedgerUnavailableError, match="it does not answer"):
            waiting.hold([Hold("hold-1", spender("images"), 3)])
        assert used(waiting) == {"images": 0}
    assert waiting.hold([Hold("hold-1", spender("images"), 3)]).held
    waiting.database.engine.dispose()


def connection_to(server, **more):
    parts = urlsplit(server.url)
    values = {
        "conn_id": "ledger",
        "conn_type": "postgres",
        "host": "127.0.0.1",
        "port": server.port,
        "login": parts.username,
        "password": parts.password,
        "schema": "postgres",
    }
    return Connection(**(values | more))


def test_an_airflow_connection_opens_it(server, ledger):
    ledger.set_budget("images", 100, "total")
    opened = ledger_of(connection_to(server))

    assert opened.hold([Hold("hold-1", spender("images"), 3)]).held
    with opened.database.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(spends)).scalar() == 1
    opened.database.engine.dispose()


def test_a_wrong_password_is_said_in_a_sentence_without_it(server):
    ledger = ledger_of(connection_to(server, conn_id="wrong", password="not-the-password"))

    with pytest.raises(StabilityLedgerUnavailableError) as raised:
        ledger.budgets()

    said = str(raised.value)
    assert said.startswith("The ledger in connection 'wrong' is out of reach: OperationalError: ")
    assert "password authentication failed" in said
    assert "not-the-password" not in said
    assert "\n" not in said
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
