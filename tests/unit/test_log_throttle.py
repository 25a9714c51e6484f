from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow_stability.rules.log_throttle import LOG_EVERY, LogThrottle

START = datetime(2026, 11, 25, 10, 0, tzinfo=UTC)


def test_each_change_is_logged_and_otherwise_once_an_hour():
    throttle = LogThrottle()
    situations = [("low", 0), ("low", 1), ("unknown", 2), ("low", 3), ("low", 62), ("low", 63), ("low", 64)]

    logged = [
        minute for what, minute in situations if throttle.should_log(what, START + timedelta(minutes=minute))
    ]

    assert timedelta(hours=1) == LOG_EVERY
    assert logged == [0, 2, 3, 63]


def test_a_situation_is_new_until_it_was_logged():
    throttle = LogThrottle()
    assert throttle.is_new(None)

    throttle.should_log(None, START)

    assert not throttle.is_new(None)
    assert throttle.is_new("low")
