"""Ledgers in a triggerer. They are opened and queried without blocking the event loop.

This module loads SQLAlchemy. So triggers load it in a thread, and only when they need a ledger.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from airflow_stability.compat import call_in_thread, read_connection
from airflow_stability.daemon_threads import start_in_thread
from airflow_stability.errors import StabilityError, StabilityLedgerUnavailableError
from airflow_stability.hooks.connection import reading_failure
from airflow_stability.hooks.ledger import ledger_conn_id_in, ledger_of, unread_failure
from airflow_stability.ledger.budgets import Budget
from airflow_stability.ledger.ledger import Ledger

if TYPE_CHECKING:
    from airflow_stability.compat import Connection

#: Seconds that a trigger waits for the ledger's answer.
ANSWER_SECONDS = 60.0

_Result = TypeVar("_Result")


async def read_budget(stability_conn_id: str, name: str) -> Budget:
    """Return a budget of the ledger that a Stability connection names.

    :raises StabilityError: the connection, its ledger or the budget does not exist, or is out of reach.
    """
    conn_id = ledger_conn_id_in(await _read(stability_conn_id))
    try:
        ledger = await open_ledger(conn_id)
        return await run_in_thread(conn_id, functools.partial(ledger.budget, name))
    except Exception as error:
        failure = failure_of(conn_id, error)
    # Raised outside of the handler: the original exception's text or context may hold a password.
    raise failure


async def open_ledger(conn_id: str) -> Ledger:
    """Return the ledger of a connection.

    :param conn_id: a connection to a database.
    :raises StabilityError: the connection cannot be read, or its database cannot hold a ledger.
    """
    try:
        connection = await _read(conn_id)
    except StabilityError as error:
        failure = unread_failure(error)
    else:
        # The database's own hook asks Airflow to mask secrets. That must not happen in a thread of ours.
        return await call_in_thread(ledger_of, connection)
    raise failure


async def run_in_thread(conn_id: str, call: Callable[[], _Result]) -> _Result:
    """Run a call to a ledger in a thread.

    :param conn_id: the ledger's connection, for the error text.
    :raises StabilityLedgerUnavailableError: there was no answer in time.
    """
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await asyncio.wrap_future(start_in_thread(call))
    except TimeoutError:
        raise StabilityLedgerUnavailableError(
            f"The ledger in connection {conn_id!r} has not answered within {ANSWER_SECONDS:g} s. "
            f"{StabilityLedgerUnavailableError.advice}"
        ) from None


def failure_of(conn_id: str, error: Exception) -> StabilityError:
    """Return our error for an exception that was raised while a ledger was used.

    :param conn_id: the ledger's connection, for the error text.
    """
    if isinstance(error, StabilityError):
        return error
    text = f"The ledger in connection {conn_id!r} cannot be used ({type(error).__name__})."
    return StabilityLedgerUnavailableError(text)


async def _read(conn_id: str) -> Connection:
    try:
        return await read_connection(conn_id)
    except Exception as error:
        failure = reading_failure(conn_id, error)
    raise failure
