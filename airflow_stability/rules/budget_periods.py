"""The periods of a budget: a day, a week, a month, or all time, in the budget's own time zone.

A day begins at midnight there, a week on Monday, a month on its first day. If the clock jumps over midnight,
the day begins with the jump. Periods leave no gap, and a period may be an hour longer or shorter.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from airflow_stability.validation import safe_repr

#: How often a budget may renew; ``total`` never does.
EVERY = ("day", "week", "month", "total")

#: The bounds of the only period of a budget that never renews.
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
END = datetime(9999, 1, 1, tzinfo=UTC)


class Period(NamedTuple):
    """A period of a budget, in UTC. The end is not part of it."""

    starts_at: datetime
    ends_at: datetime


def period_at(every: str, timezone: str, now: datetime) -> Period:
    """Return the period that a time belongs to.

    :param every: ``day``, ``week``, ``month`` or ``total``.
    :param timezone: the name of a time zone, such as ``Europe/Paris``.
    :param now: an aware time.
    """
    if every == "total":
        return Period(BEGINNING, END)
    zone = ZoneInfo(timezone)
    first = _first_day(every, now.astimezone(zone).date())
    period = _period(every, first, zone)
    # If the clock is set back over midnight, the end of a day comes twice. The second time, the next period
    # has begun already.
    while now >= period.ends_at:
        first = _next(every, first)
        period = _period(every, first, zone)
    return period


def check_every(value: object) -> str:
    """Return how often a budget renews.

    :raises ValueError: the value is none of :data:`EVERY`.
    """
    if isinstance(value, str) and value in EVERY:
        return value
    raise ValueError(f"every must be one of {', '.join(EVERY)}; got {safe_repr(value)}.")


def check_timezone(value: object) -> str:
    """Return the name of a time zone.

    :raises ValueError: this machine knows no such time zone.
    """
    with contextlib.suppress(ValueError, OSError, KeyError):  # what zoneinfo raises for unknown names
        if isinstance(value, str):
            return ZoneInfo(value).key
    raise ValueError(
        f"timezone must be the name of a time zone, such as Europe/Paris; got {safe_repr(value)}."
    )


def renewal_text(ends_at: datetime, timezone: str) -> str:
    """Return when a budget renews, in its time zone."""
    if ends_at >= END:
        return "does not renew"
    return f"renews {ends_at.astimezone(ZoneInfo(timezone)):%Y-%m-%d %H:%M %Z}"


def _period(every: str, first: date, zone: ZoneInfo) -> Period:
    return Period(_midnight(first, zone), _midnight(_next(every, first), zone))


def _first_day(every: str, day: date) -> date:
    if every == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if every == "month" else day


def _next(every: str, first: date) -> date:
    if every == "month":
        return (first + timedelta(days=31)).replace(day=1)
    return first + timedelta(days=7 if every == "week" else 1)


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
