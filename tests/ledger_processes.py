"""Processes that use one ledger at once, for tests and the benchmark. Each begins when all are there."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from typing import Any

from sqlalchemy import Column, Integer, MetaData, Table, create_engine
from sqlalchemy.engine import Engine

from airflow_stability.errors import StabilityLedgerUnavailableError
from airflow_stability.ledger.database import Database, adapt, engine_arguments
from airflow_stability.ledger.ledger import Hold, Ledger, Spender

#: How many there are.
PROCESSES = 20

#: Seconds until all of them must be there: each loads SQLAlchemy first.
PATIENCE = 120

#: A table with one row, to compare with.
plain = Table("plain", MetaData(), Column("id", Integer, primary_key=True), Column("used", Integer))

_all_are_there: Barrier


@contextmanager
def processes() -> Iterator[Callable[..., list[Any]]]:
    """Start the processes.

    What is returned calls a function of this module in each process, with the process's number and arguments,
    and returns all results.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES)
    with context.Pool(PROCESSES, initializer=_begin, initargs=(barrier,)) as pool:

        def run(function: Callable[..., Any], *arguments: Any) -> list[Any]:
            calls = [(function, number, arguments) for number in range(PROCESSES)]
            return pool.map(_run, calls, chunksize=1)

        yield run


def engine_of(url: str) -> Engine:
    """Return an engine as the hook makes it."""
    dialect = url.partition(":")[0].partition("+")[0]
    return adapt(create_engine(url, **engine_arguments(dialect)))


def ledger_at(url: str) -> Ledger:
    """Return a ledger in a database."""
    return Ledger(Database(engine_of(url), "the test's database"))


def spender(budget: str | None) -> Spender:
    """Return who spends in a test."""
    return Spender("stability_default", "org-1", budget, "dag", "run", "task", -1, 1)


def take_until_refused(number: int, url: str, name: str, budget: str, credits: float) -> list[str]:
    """Take holds on a budget until one is refused, and return their keys."""
    ledger, held = ledger_at(url), []
    _all_are_there.wait(PATIENCE)
    for count in itertools.count():
        result = ledger.hold([Hold(f"{name}-{number}-{count}", spender(budget), credits)])
        if not result.held:
            return held
        held += result.held
    raise AssertionError


def take_batches(number: int, url: str, name: str, budgets: list[str], batches: int) -> list[str]:
    """Take batches of holds on all budgets, every second process in the opposite order; return their keys."""
    ledger, held = ledger_at(url), []
    order = budgets if number % 2 else budgets[::-1]
    _all_are_there.wait(PATIENCE)
    for count in range(batches):
        keys = [f"{name}-{number}-{count}-{budget}" for budget in order]
        holds = [Hold(key, spender(budget), 1) for key, budget in zip(keys, order, strict=True)]
        held += ledger.hold(holds).held
        if count % 2:
            ledger.end(keys[0], "posted")
    return held


def take_and_end_through_outages(
    number: int, url: str, name: str, budget: str, seconds: float
) -> tuple[list[str], int]:
    """Take holds and post them, each again until it is written.

    :return: their keys, and how often one was not written.
    """
    ledger, keys, outages = ledger_at(url), [], 0
    _all_are_there.wait(PATIENCE)
    until = time.monotonic() + seconds
    for count in itertools.count():
        key = f"{name}-{number}-{count}"
        hold = Hold(key, spender(budget), 1, starts=True)
        outages += _again_until_written(lambda hold=hold: ledger.hold([hold]))
        outages += _again_until_written(lambda key=key: ledger.end(key, "posted"))
        keys.append(key)
        if time.monotonic() > until:
            return keys, outages
    raise AssertionError


def time_holds(number: int, url: str, name: str, budget: str, seconds: float) -> list[float]:
    """Take holds on a budget one after another, and return how many seconds each took."""
    ledger = ledger_at(url)
    who = spender(budget)
    return _time(lambda count: ledger.hold([Hold(f"{name}-{number}-{count}", who, 1)]), seconds)


def time_updates(_number: int, url: str, seconds: float) -> list[float]:
    """Update one row of :data:`plain`, each time in a transaction, and return how many seconds each took."""
    engine = engine_of(url)
    update = plain.update().where(plain.c.id == 1).values(used=plain.c.used + 1)

    def transaction(_count: int) -> None:
        with engine.begin() as connection:
            connection.execute(update)

    return _time(transaction, seconds)


def _time(work: Callable[[int], object], seconds: float) -> list[float]:
    work(-1)  # connects
    _all_are_there.wait(PATIENCE)
    took = []
    until = time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        work(len(took))
        took.append(time.monotonic() - began)
    return took


def _again_until_written(write: Callable[[], object]) -> int:
    for outages in itertools.count():
        try:
            write()
            return outages
        except StabilityLedgerUnavailableError:
            time.sleep(0.1)
    raise AssertionError


def _begin(barrier: Barrier) -> None:
    global _all_are_there
    _all_are_there = barrier


def _run(call: tuple[Callable[..., Any], int, tuple[Any, ...]]) -> Any:
    function, number, arguments = call
    return function(number, *arguments)
