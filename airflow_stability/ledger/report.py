"""Reports on the spends in the ledger: their sums, and those that are open. Nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import date, datetime, time, timedelta
from typing import Any

from sqlalchemy import and_, case, func, or_, select
from sqlalchemy.engine import Connection

from airflow_stability.ledger.database import Database
from airflow_stability.ledger.ledger import BEGUN, HELD, POSTED, UNKNOWN, VOID, is_over
from airflow_stability.ledger.schema import balances, spends, wallets
from airflow_stability.validation import safe_repr

#: What spends can be summed up by, and the columns that name a group.
BY = {
    "dag": ("dag_id",),
    "task": ("dag_id", "task_id"),
    "run": ("dag_id", "run_id"),
    "budget": ("budget",),
    "wallet": ("wallet",),
    "day": ("day",),
}


@dataclass(frozen=True)
class Sum:
    """The spends of a group. Credits are in millionths; what is void is left out.

    :param group: the values of its columns in :data:`BY`; None for spends without a DAG, a budget and so on.
        A day is a date in UTC.
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
class Remainder:
    """How much further the balance of a wallet fell than the ledger can explain. Others must have spent it.

    They may have spent more. A top-up between two readings hides what was spent between them, and a balance
    is read only while tasks wait or spend.

    :param fell: all falls from one reading to the next, added up, in millionths of a credit.
    :param recorded: what may have been paid for in that time: what is posted, unknown, or held and begun.
    :param first_read_at: when the first of the readings was made, in UTC without a time zone.
    :param last_read_at: when the last change of the balance was read.
    """

    wallet: str
    fell: int
    recorded: int
    first_read_at: datetime
    last_read_at: datetime

    @property
    def microcredits(self) -> int:
        """The remainder, in millionths of a credit; not below 0."""
        return max(self.fell - self.recorded, 0)


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
    """Return the sums of what was held since a time; the largest first, but days in order of time.

    :param by: ``dag``, ``task``, ``run``, ``budget``, ``wallet`` or ``day``.
    :param since: a time in UTC without a time zone, or how long before now.
    :raises ValueError: spends cannot be summed up by that.
    """
    if by not in BY:
        raise ValueError(f"by must be one of {', '.join(BY)}; got {safe_repr(by)}.")
    found = database.run(lambda connection, now: _sums(connection, now, by, since))
    return found if by == "day" else sorted(found, key=lambda each: -each.used)


def daily_sums(database: Database, days: int) -> tuple[date, list[Sum]]:
    """Return today's date in UTC, and the sums of the last days by day, DAG and budget.

    :param days: how many, including today.
    """

    def work(connection: Connection, now: datetime) -> tuple[date, list[Sum]]:
        today = now.date()
        columns = [spends.c[name] for name in ("held_on", "dag_id", "budget")]
        return today, _sums_of(connection, columns, spends.c.held_on > today - timedelta(days))

    return database.run(work)


def open_sums(database: Database) -> tuple[Sum, Sum]:
    """Return the sums of all that is held, and of all that is unknown, however old it is."""

    def work(connection: Connection, _now: datetime) -> tuple[Sum, Sum]:
        found = _sums_of(connection, [spends.c.state], spends.c.state.in_((HELD, UNKNOWN)))
        of = {each.group[0]: each for each in found}
        nothing = Sum((None,), 0, 0, 0, 0)
        return of.get(HELD, nothing), of.get(UNKNOWN, nothing)

    return database.run(work)


def remainders(
    database: Database, since: date | datetime | timedelta, limit: int | None = None
) -> list[Remainder]:
    """Return the remainder of each wallet of which a balance was read since a time.

    The readings begin with the last one before that time, if there is one. Only changes are kept, so this was
    still the balance at that time.

    :param since: a day or a time in UTC without a time zone, or how long before now.
    :param limit: at most so many wallets, those whose balances were read last; None for all.
    """

    def work(connection: Connection, now: datetime) -> list[Remainder]:
        begin = _time(since, now)
        names = select(wallets.c.wallet).where(wallets.c.read_at >= begin)
        latest = names.order_by(wallets.c.read_at.desc(), wallets.c.wallet).limit(limit)
        found = [_remainder(connection, wallet, begin) for wallet in connection.execute(latest).scalars()]
        return [each for each in found if each is not None]

    return database.run(work)


def open_spends(database: Database) -> list[OpenSpend]:
    """Return the spends that are unknown, or held beyond their leases, oldest first."""
    return database.run(_open_spends)


def _time(since: date | datetime | timedelta, now: datetime) -> datetime:
    if isinstance(since, timedelta):
        return now - since
    return since if isinstance(since, datetime) else datetime.combine(since, time())


def _sums(connection: Connection, now: datetime, by: str, since: datetime | timedelta) -> list[Sum]:
    columns = [spends.c["held_on" if name == "day" else name] for name in BY[by]]
    return _sums_of(connection, columns, spends.c.held_at >= _time(since, now))


def _sums_of(connection: Connection, columns: list[Any], where: Any) -> list[Sum]:
    # A hold whose calls have taken all of its credits does not count as a spend.
    counts = and_(spends.c.state != VOID, or_(spends.c.microcredits > 0, spends.c.known == UNKNOWN))
    per_state = [
        func.sum(case((spends.c.state == state, spends.c.microcredits), else_=0))
        for state in (POSTED, HELD, UNKNOWN)
    ]
    query = select(*columns, *per_state, func.count()).where(where, counts)
    # Some databases return sums of whole numbers as decimals, which are exact, too.
    return [
        Sum(tuple(row[: len(columns)]), *map(int, row[len(columns) :]))
        for row in connection.execute(query.group_by(*columns).order_by(*columns))
    ]


def _remainder(connection: Connection, wallet: str, since: datetime) -> Remainder | None:
    is_its, read_at, credits = balances.c.wallet == wallet, balances.c.read_at, balances.c.microcredits
    before = select(func.max(read_at)).where(is_its, read_at <= since)
    first = connection.execute(before).scalar() or since
    changes = (
        select(read_at, credits, func.lag(credits).over(order_by=read_at).label("earlier"))
        .where(is_its, read_at >= first)
        .subquery()
    )
    fall = changes.c.earlier - changes.c.microcredits
    query = select(
        func.min(changes.c.read_at), func.max(changes.c.read_at), func.sum(case((fall > 0, fall), else_=0))
    )
    first, last, fell = connection.execute(query).one()
    if first is None:  # somebody has deleted the balances
        return None
    return Remainder(wallet, int(fell), _recorded(connection, wallet, first, last), first, last)


def _recorded(connection: Connection, wallet: str, first: datetime, last: datetime) -> int:
    """Return what may have been paid for between two readings.

    Nobody knows at which moment of a call it was charged. So everything that was under way at one of the two
    readings counts. Otherwise a call of our own could be taken for somebody else's.
    """
    ended = and_(spends.c.state.in_((POSTED, UNKNOWN)), spends.c.ended_at > first)
    under_way = and_(spends.c.state == HELD, ~spends.c.itemized)
    began = func.coalesce(spends.c.started_at, spends.c.ended_at) <= last
    queries = (
        select(func.sum(spends.c.microcredits)).where(spends.c.wallet == wallet, each, began)
        for each in (ended, under_way)
    )
    return sum(int(connection.execute(query).scalar() or 0) for query in queries)


def _open_spends(connection: Connection, now: datetime) -> list[OpenSpend]:
    is_unknown = spends.c.state == UNKNOWN
    query = select(spends, or_(is_unknown, BEGUN).label("may_be_paid")).where(or_(is_unknown, is_over(now)))
    rows = connection.execute(query.order_by(spends.c.held_at, spends.c.spend_key))
    return [
        OpenSpend(
            key=row["spend_key"],
            age=(now - row["held_at"]).total_seconds(),
            **{name: row[name] for name in _COPIED},
        )
        for row in rows.mappings()
    ]


_COPIED = {field.name for field in fields(OpenSpend)} - {"key", "age"}
