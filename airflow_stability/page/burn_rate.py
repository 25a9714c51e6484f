"""Readings of a balance, and the burn rate: how fast credits are spent and how long they last.

This module uses no HTTP and no Airflow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

from airflow_stability.rules.credits import total

#: How far back the rate looks: a day, so that a daily pipeline counts.
RATE_WINDOW = timedelta(hours=24)

#: The shortest time from which a rate is computed. From less, it would be a guess.
MIN_OBSERVED = timedelta(minutes=15)

#: Readings closer together than this are merged. A gate pushes its balance some time after reading it, so the
#: order of such readings is unreliable.
MERGE_WINDOW = timedelta(minutes=1)


class Reading(NamedTuple):
    """A balance in credits, at an aware time."""

    at: datetime
    credits: float


@dataclass(frozen=True)
class BurnRate:
    """How fast a balance falls.

    :param per_hour: credits per hour, 0.0 or more.
    :param time_left: how long the balance lasts at that rate; None if it does not fall, or lasts for more
        than a century.
    """

    per_hour: float
    time_left: timedelta | None


def merge_readings(readings: Iterable[Reading]) -> list[Reading]:
    """Sort, and merge readings less than a minute apart into the lowest.

    Their order is unreliable, and spending only lowers a balance. A top-up is not lost: later readings show
    it as well.
    """
    merged: list[Reading] = []
    group_start: datetime | None = None
    for reading in sorted(readings):
        if group_start is None or reading.at - group_start >= MERGE_WINDOW:
            group_start = reading.at
            merged.append(reading)
        elif reading.credits <= merged[-1].credits:
            merged[-1] = reading
    return merged


def estimate_burn_rate(readings: Sequence[Reading], now: datetime) -> BurnRate | None:
    """Return how fast the balance fell in the last 24 hours; None if too little is known.

    A rise between two readings is a top-up, and what was spent meanwhile is unknown. Such a period counts
    neither as negative spending nor as time without spending.

    :param readings: as :func:`merge_readings` returns them.
    :param now: aware time.
    """
    recent = [reading for reading in readings if now - reading.at <= RATE_WINDOW]
    spent, observed = 0.0, timedelta(0)
    for earlier, later in pairwise(recent):
        if later.credits <= earlier.credits:
            spent = total(spent, earlier.credits, -later.credits)
            observed += later.at - earlier.at
    if observed < MIN_OBSERVED:
        return None
    per_hour = spent / (observed / timedelta(hours=1))
    if per_hour <= 0:
        return BurnRate(0.0, None)
    hours = max(recent[-1].credits, 0.0) / per_hour
    # A longer time means nothing to a reader, and may be more than a timedelta holds.
    return BurnRate(per_hour, timedelta(hours=hours) if hours < 24 * 365 * 100 else None)


def downsample(readings: Sequence[Reading], limit: int) -> list[Reading]:
    """Return at most ``limit`` of the readings: the first one, and the last one of each equal period.

    :param readings: as :func:`merge_readings` returns them.
    :param limit: 3 or more.
    """
    if len(readings) <= limit:
        return list(readings)
    start = readings[0].at
    period = (readings[-1].at - start) / (limit - 2)
    last_of = {(reading.at - start) // period: reading for reading in readings[1:]}
    return [readings[0], *last_of.values()]
