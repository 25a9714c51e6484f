"""The periods of budgets, at the ends of months and where the clocks change."""

from datetime import UTC, datetime, timedelta

import pytest

from airflow_stability.rules.budget_periods import check_every, check_timezone, period_at, renewal_text


def utc(*numbers):
    return datetime(*numbers, tzinfo=UTC)


@pytest.mark.parametrize(
    ("every", "timezone", "now", "starts_at", "ends_at"),
    [
        ("day", "UTC", utc(2026, 11, 30, 10), utc(2026, 11, 30), utc(2026, 12, 1)),
        ("week", "UTC", utc(2026, 11, 29, 23, 59), utc(2026, 11, 23), utc(2026, 11, 30)),
        ("week", "UTC", utc(2026, 11, 30), utc(2026, 11, 30), utc(2026, 12, 7)),
        ("month", "UTC", utc(2026, 12, 31, 23, 59, 59), utc(2026, 12, 1), utc(2027, 1, 1)),
        ("month", "UTC", utc(2028, 2, 29, 12), utc(2028, 2, 1), utc(2028, 3, 1)),
        # It is December already in Paris.
        ("month", "Europe/Paris", utc(2026, 11, 30, 23, 30), utc(2026, 11, 30, 23), utc(2026, 12, 31, 23)),
        # A day of 23 hours, and one of 25.
        ("day", "Europe/Paris", utc(2026, 3, 29, 12), utc(2026, 3, 28, 23), utc(2026, 3, 29, 22)),
        ("day", "Europe/Paris", utc(2026, 10, 25, 12), utc(2026, 10, 24, 22), utc(2026, 10, 25, 23)),
        # In Beirut, the clock jumps from midnight to one.
        ("day", "Asia/Beirut", utc(2026, 3, 29, 1), utc(2026, 3, 28, 22), utc(2026, 3, 29, 21)),
        # In Havana it is set back from one to midnight, so that midnight comes twice.
        ("day", "America/Havana", utc(2026, 11, 1, 5, 30), utc(2026, 11, 1, 4), utc(2026, 11, 2, 5)),
        # In São Paulo it was set back from midnight to eleven, so that the last hour came twice.
        ("day", "America/Sao_Paulo", utc(2018, 2, 18, 2, 30), utc(2018, 2, 17, 2), utc(2018, 2, 18, 3)),
    ],
)
def test_a_period_begins_at_midnight_in_its_time_zone(every, timezone, now, starts_at, ends_at):
    assert period_at(every, timezone, now) == (starts_at, ends_at)


@pytest.mark.parametrize(
    "timezone", ["UTC", "Europe/Paris", "Asia/Beirut", "America/Havana", "America/Sao_Paulo"]
)
@pytest.mark.parametrize("every", ["day", "week", "month"])
def test_periods_leave_no_gap_and_each_time_is_in_its_own(every, timezone):
    now, period = utc(2017, 1, 1), None
    while now < utc(2019, 3, 1):
        found = period_at(every, timezone, now)
        assert found.starts_at <= now < found.ends_at
        assert period is None or found in (period, (period.ends_at, found.ends_at))
        period = found
        now += timedelta(minutes=30)


def test_a_total_never_renews():
    starts_at, ends_at = period_at("total", "Europe/Paris", utc(2026, 11, 30))
    assert starts_at < utc(2000, 1, 1)
    assert ends_at > utc(9000, 1, 1)
    assert renewal_text(ends_at, "Europe/Paris") == "does not renew"


def test_a_renewal_is_named_in_the_budgets_time_zone():
    _, ends_at = period_at("month", "Europe/Paris", utc(2026, 11, 30, 12))
    assert renewal_text(ends_at, "Europe/Paris") == "renews 2026-12-01 00:00 CET"


@pytest.mark.parametrize("value", ["month ", "hour", "", None, 1])
def test_only_the_words_for_periods_are_taken(value):
    with pytest.raises(ValueError, match=r"^every must be one of day, week, month, total; got "):
        check_every(value)


@pytest.mark.parametrize("value", ["Mars/Olympus", "", "../etc/passwd", None, 5])
def test_only_time_zones_that_exist_are_taken(value):
    with pytest.raises(
        ValueError, match=r"^timezone must be the name of a time zone, such as Europe/Paris; got "
    ):
        check_timezone(value)
