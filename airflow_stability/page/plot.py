"""Readings, and sums, as an SVG path. This module uses no HTTP and no Airflow.

The picture holds no text. The page places the labels around it, so that they stay readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from airflow_stability.page.burn_rate import Reading, downsample

WIDTH, HEIGHT = 1000.0, 200.0

#: More points could not be told apart on a screen.
MAX_POINTS = 300


@dataclass(frozen=True)
class Plot:
    """The parts of the picture.

    :param line: the SVG path through all readings.
    :param dots: an SVG path with a dot at each reading.
    :param zero: the y coordinate of 0 credits, counted from the top.
    :param top: the credits at the upper edge.
    :param bottom: the credits at the lower edge: 0, unless a balance was negative.
    """

    line: str
    dots: str
    zero: float
    top: float
    bottom: float


def plot(readings: Sequence[Reading]) -> Plot | None:
    """Return the picture of readings; None for fewer than two.

    :param readings: as :func:`~airflow_stability.page.burn_rate.merge_readings` returns them.
    """
    if len(readings) < 2:
        return None
    top = round_up(max(reading.credits for reading in readings))
    lowest = min(reading.credits for reading in readings)
    bottom = -round_up(-lowest) if lowest < 0 else 0.0
    start = readings[0].at
    span = readings[-1].at - start

    def x_of(reading: Reading) -> float:
        return WIDTH * ((reading.at - start) / span)

    def y_of(credits: float) -> float:
        return HEIGHT * (top - credits) / (top - bottom)

    points = [f"{x_of(each):.1f} {y_of(each.credits):.1f}" for each in downsample(readings, MAX_POINTS)]
    return Plot(
        line="M" + "L".join(points),
        dots="".join(f"M{point}h0" for point in points),
        zero=round(y_of(0.0), 1),
        top=top,
        bottom=bottom,
    )


def round_up(credits: float) -> float:
    """Return the smallest of 1, 2, 5, 10, 20, 50 ... (or 0.5, 0.2 ...) that is not below ``credits``.

    1.0 for less than a trillionth of a credit, and for negative credits.
    """
    if credits < 1e-12:
        return 1.0
    magnitude = 10.0 ** math.floor(math.log10(credits))
    return next(step * magnitude for step in (1, 2, 5, 10) if step * magnitude >= credits)


@dataclass(frozen=True)
class Bars:
    """The parts of a picture of numbers, one bar each.

    :param path: the SVG path of all bars.
    :param top: the credits at the upper edge. Those at the lower edge are 0.
    """

    path: str
    top: float


def bars(credits: Sequence[float]) -> Bars | None:
    """Return the picture of credits; None if all are 0.

    :param credits: none is negative.
    """
    if not any(credits):
        return None
    top, width = round_up(max(credits)), WIDTH / len(credits)
    path = "".join(
        f"M{width * (number + 0.1):.1f} {HEIGHT:g}V{HEIGHT * (1 - each / top):.1f}"
        f"H{width * (number + 0.9):.1f}V{HEIGHT:g}Z"
        for number, each in enumerate(credits)
        if each
    )
    return Bars(path, top)
