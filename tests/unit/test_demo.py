"""Parts of the demo that need no Airflow."""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_stability.rules.budget_periods import Period, check_timezone, period_at, renewal_text
from tests.demo.time_zone import make_time_zone, search_path

DAY = timedelta(days=1)


@pytest.fixture
def zones(tmp_path: Path) -> Iterator[Path]:
    """A folder in which Python looks for time zones."""
    before = zoneinfo.TZPATH
    zoneinfo.reset_tzpath(search_path(tmp_path).split(":"))
    try:
        yield tmp_path
    finally:
        zoneinfo.reset_tzpath(before)
        zoneinfo.ZoneInfo.clear_cache()


@pytest.mark.parametrize("clock", ["00:00:00", "00:00:01", "11:59:59", "12:00:00", "14:31:20", "23:59:59"])
def test_a_budget_renews_at_the_midnight_of_a_time_zone_that_the_demo_makes(zones: Path, clock: str):
    midnight = datetime.fromisoformat(f"2026-11-30T{clock}+00:00")
    make_time_zone(zones, "Demo/Soon", midnight)
    assert check_timezone("Demo/Soon") == "Demo/Soon"
    just_before = midnight - timedelta(microseconds=1)
    assert period_at("day", "Demo/Soon", just_before) == Period(midnight - DAY, midnight)
    assert period_at("day", "Demo/Soon", midnight) == Period(midnight, midnight + DAY)
    assert renewal_text(midnight, "Demo/Soon").endswith(" 00:00 SOON")


def test_all_other_time_zones_are_still_found(zones: Path):
    assert renewal_text(datetime(2026, 11, 30, 23, tzinfo=UTC), "Europe/Paris").endswith("00:00 CET")
