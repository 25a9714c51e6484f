from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from airflow_stability.page.burn_rate import Reading
from airflow_stability.page.plot import HEIGHT, MAX_POINTS, WIDTH, plot, round_up

START = datetime(2026, 1, 1, tzinfo=UTC)


def history(*credits: float) -> list[Reading]:
    return [Reading(START + timedelta(hours=hours), each) for hours, each in enumerate(credits)]


def points(line: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+) ([\d.]+)", line)]


def test_time_goes_right_and_credits_go_up():
    drawn = plot(history(0, 50, 100))

    assert points(drawn.line) == [(0, HEIGHT), (WIDTH / 2, HEIGHT / 2), (WIDTH, 0)]
    assert (drawn.top, drawn.bottom, drawn.zero) == (100, 0, HEIGHT)


def test_a_negative_balance_is_below_the_line_of_zero():
    drawn = plot(history(50, -50))

    assert (drawn.top, drawn.bottom, drawn.zero) == (50, -50, HEIGHT / 2)
    assert points(drawn.line) == [(0, 0), (WIDTH, HEIGHT)]


def test_a_single_reading_makes_no_plot():
    assert plot(history(50)) is None
    assert plot([]) is None


def test_an_empty_wallet_can_be_drawn():
    assert points(plot(history(0, 0)).line) == [(0, HEIGHT), (WIDTH, HEIGHT)]


def test_a_long_history_has_no_more_points_than_a_screen_shows():
    assert len(points(plot(history(*range(5000))).line)) <= MAX_POINTS


@pytest.mark.parametrize(
    ("credits", "expected"),
    [(0, 1), (-5, 1), (0.3, 0.5), (1, 1), (31.5, 50), (50, 50), (51, 100), (999, 1000), (1e300, 1e300)],
)
def test_the_scale_ends_at_a_round_number(credits, expected):
    assert round_up(credits) == pytest.approx(expected)


def test_a_tiny_balance_can_be_drawn():
    assert round_up(5e-324) == 1.0
    assert plot(history(5e-324, 0.0)).top == 1.0
