from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_stability.page.burn_rate import Reading, downsample, estimate_burn_rate, merge_readings

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)


def history(*readings: tuple[float, float]) -> list[Reading]:
    """Return readings from hours before NOW and credits."""
    return [Reading(NOW - timedelta(hours=hours), credits) for hours, credits in readings]


def test_a_balance_that_falls_evenly_lasts_as_long_as_it_takes_to_spend_the_rest():
    falling = estimate_burn_rate(history((4, 100), (2, 80), (0, 60)), NOW)

    assert falling.per_hour == pytest.approx(10)
    assert falling.time_left == timedelta(hours=6)


def test_a_top_up_counts_neither_as_spending_nor_as_time():
    falling = estimate_burn_rate(history((3, 100), (2, 90), (1, 500), (0, 490)), NOW)

    assert falling.per_hour == pytest.approx(10)
    assert falling.time_left == timedelta(hours=49)


def test_a_balance_that_does_not_fall_lasts_for_ever():
    still = estimate_burn_rate(history((2, 50), (0, 50)), NOW)

    assert (still.per_hour, still.time_left) == (0.0, None)


def test_a_tiny_rate_gives_no_time_left():
    assert estimate_burn_rate(history((2, 1e9), (0, 1e9 - 1e-6)), NOW).time_left is None


def test_an_overdrawn_balance_lasts_no_time():
    assert estimate_burn_rate(history((2, 5), (0, -5)), NOW).time_left == timedelta(0)


@pytest.mark.parametrize(
    "readings",
    [
        [],
        [(1, 50)],
        [(0.2, 50), (0, 40)],  # twelve minutes
        [(2, 50), (0, 90)],  # a top-up
        [(50, 90), (25, 50), (0, 40)],  # only one reading of the last 24 hours
    ],
)
def test_too_little_history_gives_no_rate(readings):
    assert estimate_burn_rate(history(*readings), NOW) is None


def test_readings_less_than_a_minute_apart_are_merged_into_the_lowest():
    start = NOW - timedelta(hours=1)
    pushed_late = [
        Reading(start + timedelta(seconds=50), 40.0),
        Reading(start, 40.0),
        Reading(start + timedelta(seconds=20), 31.5),
        Reading(start + timedelta(seconds=60), 31.5),
    ]

    assert [reading.credits for reading in merge_readings(pushed_late)] == [31.5, 31.5]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-1e6, 1e6)), max_size=80), st.integers(3, 20))
def test_downsampling_keeps_the_ends_the_order_and_the_limit(pairs, limit):
    readings = merge_readings(history(*pairs))
    few = downsample(readings, limit)

    assert len(few) <= limit
    assert few == sorted(few)
    assert set(few) <= set(readings)
    assert few[:1] + few[-1:] == readings[:1] + readings[-1:]
