"""What the ledger says of its spends: sums of them, and those that are open. It changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import Date, and_, case, func, or_, select
from sqlalchemy.engine import Connection

from airflow_stability.ledger.budgets import COUNTING
from airflow_stability.ledger.database import Database
from airflow_stability.ledger.ledger import HELD, POSTED, UNKNOWN
from airflow_stability.ledger.schema import spends
from airflow_stability.validation import safe_repr

#: What spends can be summed up by, and the columns that name a group.
BY = {
    "dag": ("dag_id",),
    "task": ("dag_id", "task_id"),
    "run": ("dag_id", "run_id"),
    "budget": ("budget",),
    "day": ("day",),
}


@dataclass(frozen=True)
class Sum:
    """The spends of a group. Credits are in millionths; what is void is left out.

    :param group: what names it, as :data:`BY` says; None for what has no DAG, no budget and so on. A day is a
        date in UTC.
    :param spends: their number.
    """

    group: tuple[str | date | None, ...]
    posted: int
    held: int
    unknown: int
    spends: int

    @property
    def used(self) -> int:
        """What counts, in millionths."""
        return self.posted + self.held + self.unknown


@dataclass(frozen=True)
class OpenSpend:
    """A spend that is unknown, or held beyond its lease. Its fields are those of the table, and:

    :param age: seconds since it was held.
    :param may_be_paid: False if it certainly was not paid for.
    """

    key: str
    state: str
    microcredits: int
    known: str
    conn_id: str
    budget: str | None
    dag_id: str | None
    run_id: str | None
    task_id: str | None
    map_index: int | None
    try_number: int | None
    endpoint: str | None
    output: str | None
    held_at: datetime
    reason: str | None
    age: float
    may_be_paid: bool


def sums(database: Database, by: str, since: datetime | timedelta) -> list[Sum]:
    """Return the sums of what was held since a time; the largest first, days in their order.

    :param by: ``dag``, ``task``, ``run``, ``budget`` or ``day``.
    :param since: a time in UTC without a time zone, or how long before now.
    :raises ValueError: there is nothing of that kind to sum up by.
    """
    if by not in BY:
        raise ValueError(f"by must be one of {', '.join(BY)}; got {safe_repr(by)}.")
    found = database.run(lambda connection, now: _sums(connection, now, by, since))
    return found if by == "day" else sorted(found, key=lambda each: -each.used)


def open_spends(database: Database) -> list[OpenSpend]:
    """Return the spends that are unknown, or held beyond their leases, oldest first."""
    return database.run(_open_spends)


def _sums(connection: Connection, now: datetime, by: str, since: datetime | timedelta) -> list[Sum]:
    if isinstance(since, timedelta):
        since = now - since
    if by == "day":
        columns: list[Any] = [func.date(spends.c.held_at, type_=Date)]
    else:
        columns = [spends.c[name] for name in BY[by]]
    # A hold whose calls have taken all of its credits is no spend.
    counts = and_(spends.c.state.in_(COUNTING), or_(spends.c.microcredits > 0, spends.c.known == UNKNOWN))
    per_state = [
        func.sum(case((spends.c.state == state, spends.c.microcredits), else_=0))
        for state in (POSTED, HELD, UNKNOWN)
    ]
    query = select(*columns, *per_state, func.count()).where(spends.c.held_at >= since, counts)
    # Some databases sum up whole numbers as decimals, which are as exact.
    return [
        Sum(tuple(row[: len(columns)]), *map(int, row[len(columns) :]))
        for row in connection.execute(query.group_by(*columns).order_by(*columns))
    ]


def _open_spends(connection: Connection, now: datetime) -> list[OpenSpend]:
    is_open = or_(spends.c.state == UNKNOWN, and_(spends.c.state == HELD, spends.c.lease_ends_at < now))
    rows = connection.execute(select(spends).where(is_open).order_by(spends.c.held_at, spends.c.spend_key))
    return [
        OpenSpend(
            key=row["spend_key"],
            age=(now - row["held_at"]).total_seconds(),
            may_be_paid=row["state"] == UNKNOWN or (row["started_at"] is not None and not row["itemized"]),
            **{name: row[name] for name in _COPIED},
        )
        for row in rows.mappings()
    ]


_COPIED = {field.name for field in fields(OpenSpend)} - {"key", "age", "may_be_paid"}
