from __future__ import annotations

from airflow_stability.rules.lockout import Lockout


def test_a_lock_out_lasts_as_long_as_the_server_said():
    lockout = Lockout()
    assert lockout.seconds_left(100.0) == 0.0

    lockout.extend(60.0, 100.0)

    assert [lockout.seconds_left(now) for now in (100.0, 130.0, 160.0, 200.0)] == [60.0, 30.0, 0.0, 0.0]


def test_a_shorter_lock_out_or_none_does_not_end_a_longer_one():
    lockout = Lockout()
    lockout.extend(60.0, 100.0)
    lockout.extend(5.0, 110.0)
    lockout.extend(None, 110.0)

    assert lockout.seconds_left(110.0) == 50.0


def test_an_end_is_an_end():
    lockout = Lockout()
    lockout.extend(60.0, 100.0)
    lockout.end()

    assert lockout.seconds_left(100.0) == 0.0
