"""Readings as points of a picture. Knows no HTTP and no Airflow.

The picture has no text: the page puts the labels around it, so that they can be read on a phone as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from airflow_stability.page.burn_rate import Reading, thinned

WIDTH, HEIGHT = 1000.0, 200.0

#: More points than a screen shows.
MOST_POINTS = 300


@dataclass(frozen=True)
class Plot:
    """What the picture is made of.

    :param line: the path through all readings, in SVG's own words.
    :param dots: a path that has a dot at each reading.
    :param zero: where no credits are, from the top.
    :param top: the credits at the upper edge.
    :param bottom: the credits at the lower edge: 0, unless a balance was negative.
    """

    line: str
    dots: str
    zero: float
    top: float
    bottom: float


def plot(readings: Sequence[Reading]) -> Plot | None:
    """Return the picture of readings; None where there are fewer than two.

    :param readings: as :func:`~airflow_stability.page.burn_rate.in_order` returns them.
    """
    if len(readings) < 2:
        return None
    top = rounded_up(max(reading.credits for reading in readings))
    lowest = min(reading.credits for reading in readings)
    bottom = -rounded_up(-lowest) if lowest < 0 else 0.0
    start = readings[0].at
    span = readings[-1].at - start

    def x_of(reading: Reading) -> float:
        return WIDTH * ((reading.at - start) / span)

    def y_of(credits: float) -> float:
        return HEIGHT * (top - credits) / (top - bottom)

    points = [f"{x_of(each):.1f} {y_of(each.credits):.1f}" for each in thinned(readings, MOST_POINTS)]
    return Plot(
        line="M" + "L".join(points),
        dots="".join(f"M{point}h0" for point in points),
        zero=round(y_of(0.0), 1),
        top=top,
        bottom=bottom,
    )


def rounded_up(credits: float) -> float:
    """Return the next of 1, 2, 5, 10, 20, 50 ... that is not below; 1.0 for next to nothing and less."""
    if credits < 1e-12:
        return 1.0
    magnitude = 10.0 ** math.floor(math.log10(credits))
    return next(step * magnitude for step in (1, 2, 5, 10) if step * magnitude >= credits)
