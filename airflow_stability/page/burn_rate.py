"""A balance at a time, and what many of them say: how fast credits go, and how long they last.

Knows no HTTP and no Airflow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

#: How far back the rate looks: far enough for a daily pipeline to count.
WINDOW = timedelta(hours=24)

#: Less than this, and a rate would be a guess.
ENOUGH = timedelta(minutes=15)

#: Readings closer together than this are one: a gate pushes its balance a while after it was read, so that
#: the order of readings within a moment says nothing.
MOMENT = timedelta(minutes=1)


class Reading(NamedTuple):
    """The balance at a time.

    :param at: aware time.
    :param credits: the balance in credits.
    """

    at: datetime
    credits: float


@dataclass(frozen=True)
class Burn:
    """How fast a balance falls.

    :param per_hour: credits per hour, 0.0 or more.
    :param left: how long the balance lasts at that rate; None where it does not fall.
    """

    per_hour: float
    left: timedelta | None


def in_order(readings: Iterable[Reading]) -> list[Reading]:
    """Return readings by time, those of one moment as one: the lowest, which is the latest to be true.

    A reading that is higher than the others of its moment was taken before something was spent, or it is a
    top-up that the next moment shows as well.
    """
    merged: list[Reading] = []
    begun: datetime | None = None
    for reading in sorted(readings):
        if begun is None or reading.at - begun >= MOMENT:
            begun = reading.at
            merged.append(reading)
        elif reading.credits <= merged[-1].credits:
            merged[-1] = reading
    return merged


def burn(readings: Sequence[Reading], now: datetime) -> Burn | None:
    """Return how fast the balance has fallen in the last day; None where too little is known.

    Between two readings with a rise there was a top-up, and nobody knows what was spent beside it: such times
    count neither as negative spending nor as time without any.

    :param readings: as :func:`in_order` returns them.
    """
    recent = [reading for reading in readings if now - reading.at <= WINDOW]
    spent, watched = 0.0, timedelta(0)
    for earlier, later in pairwise(recent):
        if later.credits <= earlier.credits:
            spent += earlier.credits - later.credits
            watched += later.at - earlier.at
    if watched < ENOUGH:
        return None
    per_hour = spent / (watched / timedelta(hours=1))
    if per_hour <= 0:
        return Burn(0.0, None)
    hours = max(recent[-1].credits, 0.0) / per_hour
    # Beyond this a date would be nonsense, and Python has no longer times.
    return Burn(per_hour, timedelta(hours=hours) if hours < 24 * 365 * 100 else None)


def thinned(readings: Sequence[Reading], most: int) -> list[Reading]:
    """Return at most so many of the readings: the last of each of as many equal times, and the very first.

    :param readings: as :func:`in_order` returns them.
    """
    if len(readings) <= most:
        return list(readings)
    start = readings[0].at
    step = (readings[-1].at - start) / (most - 2)
    last_of = {(reading.at - start) // step: reading for reading in readings[1:]}
    return [readings[0], *last_of.values()]
