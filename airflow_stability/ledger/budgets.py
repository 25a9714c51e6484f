"""Budgets in the ledger: their limits, and what is held, posted and unknown in the current period."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import bindparam, func, or_, select
from sqlalchemy.engine import Connection

from airflow_stability.ledger.schema import budgets, spends
from airflow_stability.rules.budget_periods import (
    Period,
    check_every,
    check_timezone,
    period_at,
    renewal_text,
)
from airflow_stability.rules.credits import MOST, from_microcredits, to_microcredits
from airflow_stability.validation import check_budget_name, check_credits, format_number, safe_repr

#: The states of spends that count against a budget.
COUNTING = ("held", "posted", "unknown")


# Made once, so that SQLAlchemy compiles each statement, and computes its cache key, only once.
_LOCK = select(budgets).where(budgets.c.name == bindparam("name")).with_for_update()
_SAVE = (
    budgets.update()
    .where(budgets.c.name == bindparam("its_name"))
    .values({column.name: bindparam(column.name) for column in budgets.c if column.name != "name"})
)
_TAKE = (
    budgets.update()
    .where(
        budgets.c.name == bindparam("its_name"),
        budgets.c.starts_at <= bindparam("now"),
        budgets.c.ends_at > bindparam("now"),
        budgets.c.used_microcredits + bindparam("more") <= budgets.c.limit_microcredits,
        or_(budgets.c.soft_percent.is_(None), budgets.c.soft_reached_at.is_not(None)),
    )
    .values(used_microcredits=budgets.c.used_microcredits + bindparam("more"))
)


@dataclass
class Budget:
    """A budget.

    :param name: 1 to 100 characters.
    :param limit: millionths of a credit for one period.
    :param every: ``day``, ``week``, ``month`` or ``total``.
    :param timezone: the name of the time zone in which periods begin.
    :param soft_percent: percent of the limit at which the budget is reported; None for never.
    :param period: the period that ``used`` belongs to, without a time zone.
    :param used: millionths of a credit that are held, posted and unknown in the period.
    :param soft_reached_at: when the soft limit was reached in the period.
    """

    name: str
    limit: int
    every: str
    timezone: str
    soft_percent: int | None
    period: Period
    used: int = 0
    soft_reached_at: datetime | None = None

    @property
    def left(self) -> int:
        """What can still be held, in millionths; below 0 if the limit was lowered below what is used."""
        return self.limit - self.used

    @property
    def is_nearly_used_up(self) -> bool:
        """Whether the soft limit is reached."""
        return self.soft_percent is not None and self.used * 100 >= self.limit * self.soft_percent

    @property
    def text(self) -> str:
        """How much of the budget is used, and when it renews."""
        used, limit = (format_number(from_microcredits(each)) for each in (self.used, self.limit))
        renews = renewal_text(self.period.ends_at.replace(tzinfo=UTC), self.timezone)
        return f"budget {self.name}: {used} of {limit} credits used or held, {renews}"


def checked(
    name: object,
    limit: object,
    every: object,
    timezone: object = "UTC",
    soft_percent: object = None,
    *,
    now: datetime,
) -> Budget:
    """Check the arguments of a budget, and return the budget.

    :param now: the database's time.
    :raises ValueError: an argument is unusable.
    """
    if soft_percent is not None:
        is_percent = isinstance(soft_percent, int) and not isinstance(soft_percent, bool)
        if not is_percent or not 1 <= soft_percent <= 100:  # type: ignore[operator]  # it is an int
            raise ValueError(f"soft must be a whole percent from 1 to 100; got {safe_repr(soft_percent)}.")
    name = check_budget_name(name)
    every, timezone = check_every(every), check_timezone(timezone)
    credits = check_credits(limit, argument="limit")
    if credits > MOST:
        raise ValueError(f"limit must be at most {MOST} credits; got {safe_repr(limit)}.")
    return Budget(
        name,
        to_microcredits(credits),
        every,
        timezone,
        soft_percent,  # type: ignore[arg-type]  # checked above
        _period(every, timezone, now),
    )


def lock(connection: Connection, names: Iterable[str], now: datetime) -> dict[str, Budget]:
    """Lock budgets until the transaction ends, in one order, and return those that exist, by name.

    A budget whose period has ended is moved into the current period.

    :param now: the database's time.
    """
    found = {}
    for name in sorted(set(names)):
        if (row := connection.execute(_LOCK, {"name": name}).first()) is not None:
            found[name] = budget = _from_row(row)
            if _renew(connection, budget, now):
                save(connection, budget, now)
    return found


def take(connection: Connection, name: str, microcredits: int, now: datetime) -> bool:
    """Lock a budget and take credits out of it in one statement; False if one statement is not enough.

    Then nothing is changed. That is so if too little is left, if there is no such budget, if its period has
    ended, or if it may reach its soft limit.

    :param now: the database's time.
    """
    values = {"its_name": name, "more": microcredits, "now": now}
    return bool(connection.execute(_TAKE, values).rowcount)


def look(connection: Connection, now: datetime) -> list[Budget]:
    """Return all budgets, as :func:`lock` would, without locking or changing them."""
    found = []
    for row in connection.execute(select(budgets).order_by(budgets.c.name)):
        budget = _from_row(row)
        _renew(connection, budget, now)
        found.append(budget)
    return found


def save(connection: Connection, budget: Budget, now: datetime) -> bool:
    """Write a budget that is locked, and tell whether it has just reached its soft limit.

    :param now: the database's time.
    """
    reached = budget.is_nearly_used_up and budget.soft_reached_at is None
    if reached:
        budget.soft_reached_at = now
    connection.execute(_SAVE, {"its_name": budget.name, **_values(budget)})
    return reached


def put(connection: Connection, budget: Budget, now: datetime) -> bool:
    """Make a budget, or change the one of that name, and tell whether it has just reached its soft limit.

    What was already spent in the current period counts.

    :param now: the database's time.
    """
    old = lock(connection, [budget.name], now).get(budget.name)
    budget.used = _used(connection, budget.name, budget.period)
    if old is None:
        connection.execute(budgets.insert().values(name=budget.name, **_values(budget)))
    elif (old.limit, old.soft_percent, old.period) == (budget.limit, budget.soft_percent, budget.period):
        budget.soft_reached_at = old.soft_reached_at
    return save(connection, budget, now)


def delete(connection: Connection, name: str) -> bool:
    """Delete a budget, and tell whether there was one."""
    return bool(connection.execute(budgets.delete().where(budgets.c.name == name)).rowcount)


def held_at(budget: Budget | None, now: datetime) -> datetime:
    """Return the time at which a spend is held: now, or the start of the budget's period if that is later.

    Each process only estimates the database's time. For another process, which has moved the budget into this
    period, the period may begin a little earlier than for this one.

    :param budget: it is locked; None for a spend without one.
    """
    return now if budget is None else max(now, budget.period.starts_at)


def count(budget: Budget | None, held_at: datetime, change: int) -> None:
    """Add the change of a spend to what its budget has used, unless it was held in an earlier period.

    :param budget: it is locked; None for a spend without one.
    :param held_at: when the spend was held.
    :param change: in millionths of a credit.
    """
    if budget is not None and held_at >= budget.period.starts_at:
        budget.used += change


def _renew(connection: Connection, budget: Budget, now: datetime) -> bool:
    """Move a budget whose period has ended into the current period, and tell whether that was needed."""
    if now < budget.period.ends_at:
        return False
    budget.period = _period(budget.every, budget.timezone, now)
    budget.used, budget.soft_reached_at = _used(connection, budget.name, budget.period), None
    return True


def _used(connection: Connection, name: str, period: Period) -> int:
    query = select(func.sum(spends.c.microcredits)).where(
        spends.c.budget == name,
        spends.c.held_at >= period.starts_at,
        spends.c.held_at < period.ends_at,
        spends.c.state.in_(COUNTING),
    )
    return int(connection.execute(query).scalar() or 0)


def _period(every: str, timezone: str, now: datetime) -> Period:
    period = period_at(every, timezone, now.replace(tzinfo=UTC))
    return Period(*(each.replace(tzinfo=None) for each in period))


def _from_row(row: object) -> Budget:
    values = row._mapping  # type: ignore[attr-defined]  # a Row of SQLAlchemy
    return Budget(
        values["name"],
        values["limit_microcredits"],
        values["every"],
        values["timezone"],
        values["soft_percent"],
        Period(values["starts_at"], values["ends_at"]),
        values["used_microcredits"],
        values["soft_reached_at"],
    )


def _values(budget: Budget) -> dict[str, object]:
    return {
        "limit_microcredits": budget.limit,
        "every": budget.every,
        "timezone": budget.timezone,
        "soft_percent": budget.soft_percent,
        "starts_at": budget.period.starts_at,
        "ends_at": budget.period.ends_at,
        "used_microcredits": budget.used,
        "soft_reached_at": budget.soft_reached_at,
    }
