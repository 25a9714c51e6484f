"""Pruning the ledger: spends that ended long ago are deleted, and open ones never are."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import Column, and_, case, exists, func, select
from sqlalchemy.engine import Connection

from airflow_stability.ledger import schema
from airflow_stability.ledger.budgets import lock
from airflow_stability.ledger.database import Database
from airflow_stability.ledger.ledger import HELD, POSTED, UNKNOWN, VOID
from airflow_stability.ledger.schema import balances, spends
from airflow_stability.rules.wording import clock_time

#: The age that a spend must have to be deleted. A task that comes back must find what it has written.
YOUNGEST = timedelta(days=1)

#: Rows that one transaction deletes.
BATCH = 500

#: The shortest pause between two transactions, in seconds. It is longer if the last transaction took longer,
#: so that others get as much time as the pruning.
PAUSE = 0.01


@dataclass
class Pruned:
    """What was deleted, and what was kept although it is older.

    :param before: the time, in UTC without a time zone.
    :param spends: spends that were deleted.
    :param balances: balances that were deleted.
    :param kept_open: spends that are held or unknown.
    :param kept_ended: spends that are posted or void, but belong to the current period of their budget, or
        ended only after that time.
    """

    before: datetime
    spends: int
    balances: int
    kept_open: int
    kept_ended: int


def prune(database: Database, before: datetime | timedelta) -> Pruned:
    """Delete spends that are posted or void and were held before a time, and older balances.

    Spends in the current period of their budget stay, and so does the last balance of each wallet from before
    that time. Each transaction deletes a few hundred rows.

    :param before: a time in UTC without a time zone, or how long before now; at least a day.
    :raises ValueError: it is less than a day ago.
    """
    time_before, last = database.run(lambda connection, now: _prepare(connection, now, before))
    deleted, older = _delete_spends(database, time_before), _delete_balances(database, last)
    kept_open, kept_ended = database.run(lambda connection, _now: _kept(connection, time_before))
    return Pruned(time_before, deleted, older, kept_open, kept_ended)


def _prepare(
    connection: Connection, now: datetime, before: datetime | timedelta
) -> tuple[datetime, dict[str, datetime]]:
    """Return the time and, for each wallet, when its last balance before that time was read."""
    if isinstance(before, timedelta):
        before = now - before
    if before > now - YOUNGEST:
        newest, given = (clock_time(each.replace(tzinfo=UTC)) for each in (now - YOUNGEST, before))
        raise ValueError(
            f"Only what is older than a day can be deleted: give a time up to {newest}; got {given}."
        )
    # Moves budgets into their current periods. Else the old period of an unused budget would keep its spends.
    lock(connection, connection.execute(select(schema.budgets.c.name)).scalars(), now)
    last = select(balances.c.wallet, func.max(balances.c.read_at).label("last")).where(
        balances.c.read_at < before
    )
    rows = connection.execute(last.group_by(balances.c.wallet))
    return before, {row.wallet: row.last for row in rows}


def _delete_spends(database: Database, before: datetime) -> int:
    counts_in_its_budget = exists(
        select(schema.budgets.c.name).where(
            schema.budgets.c.name == spends.c.budget, schema.budgets.c.starts_at <= spends.c.held_at
        )
    )
    # "Not open", not "posted or void": for that, SQLite would use the index by state, and for each batch read
    # everything that has ended.
    is_open = spends.c.state.in_((HELD, UNKNOWN))
    ended = and_(~is_open, spends.c.ended_at < before, ~counts_in_its_budget)
    return _delete_in_batches(database, spends.c.held_at, [spends.c.held_at < before, ended])


def _delete_balances(database: Database, last: dict[str, datetime]) -> int:
    """Delete the balances of each wallet that were read before a time."""
    return sum(
        _delete_in_batches(
            database, balances.c.read_at, [balances.c.wallet == wallet, balances.c.read_at < read_at]
        )
        for wallet, read_at in last.items()
    )


def _delete_in_batches(database: Database, time_of: Column[Any], where: list[Any]) -> int:
    """Delete the rows that meet all conditions, oldest first, and return how many there were.

    :param time_of: the column with the time of a row. It has an index.
    """
    deleted = 0
    done_until: datetime | None = None
    while True:
        rest = where if done_until is None else [*where, time_of >= done_until]
        began = time.monotonic()
        count, done_until = database.run(partial(_delete_batch, time_of, rest))
        deleted += count
        if done_until is None:
            return deleted
        time.sleep(max(PAUSE, time.monotonic() - began))


def _delete_batch(
    time_of: Column[Any], where: list[Any], connection: Connection, _now: datetime
) -> tuple[int, datetime | None]:
    """Delete the oldest rows, and return how many, and their latest time; None if no row is left."""
    until = connection.execute(
        select(time_of).where(*where).order_by(time_of).offset(BATCH - 1).limit(1)
    ).scalar()
    batch = where if until is None else [*where, time_of <= until]
    return connection.execute(time_of.table.delete().where(*batch)).rowcount, until


def _kept(connection: Connection, before: datetime) -> tuple[int, int]:
    """Return how many of the spends held before a time are open, and how many have ended."""
    ended = spends.c.state.in_((POSTED, VOID))
    query = select(func.count(), func.count(case((ended, 1)))).where(spends.c.held_at < before)
    every, kept_ended = connection.execute(query.select_from(spends)).one()
    return every - kept_ended, kept_ended
