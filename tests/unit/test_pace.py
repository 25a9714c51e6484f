from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_stability.pace import SETTLE, Claim, Pace

START = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


def claim(credits=3.0, minimum=0.0, since=0, **kwargs):
    return Claim(credits, minimum, START + timedelta(seconds=since), **kwargs)


def let_go(pace, balance, asked_at=0.0, **kwargs):
    """Return who is let go at a balance that arrives at once, in their order."""
    waiting = set(pace._waiting)
    shares = pace.observe(balance, asked_at=asked_at, now=asked_at, **kwargs)
    return [who for who in shares if who in waiting - set(pace._waiting)]


def test_the_oldest_go_first_and_as_many_as_the_balance_carries():
    pace = Pace()
    for name, since in {"late": 3, "early": 1, "middle": 2}.items():
        pace.join(name, claim(since=since))

    assert let_go(pace, 6.5) == ["early", "middle"]


def test_each_is_told_how_much_is_spoken_for():
    pace = Pace()
    for name in "abc":
        pace.join(name, claim())

    assert pace.observe(6.5, asked_at=0.0, now=0.0) == {"a": 0.0, "b": 3.0, "c": 6.0}


def test_one_for_whom_it_is_not_enough_holds_back_nobody():
    pace = Pace()
    pace.join("large", claim(100.0, since=1))
    pace.join("careful", claim(minimum=500.0, since=2))
    pace.join("small", claim(since=3))

    assert let_go(pace, 10.0) == ["small"]


@pytest.mark.parametrize(("balance", "opens"), [(11.0, True), (10.9, False)])
def test_the_minimum_is_left_over(balance, opens):
    pace = Pace()
    pace.join("gate", claim(3.0, minimum=8.0))

    assert let_go(pace, balance) == (["gate"] if opens else [])


def test_what_somebody_was_let_go_for_counts_as_spent_until_it_has_settled():
    pace = Pace()
    pace.join("first", claim())
    assert let_go(pace, 5.0, asked_at=0.0) == ["first"]
    pace.join("second", claim())

    assert let_go(pace, 5.0, asked_at=SETTLE - 0.1) == []
    assert let_go(pace, 5.0, asked_at=SETTLE) == ["second"]


def test_a_balance_that_was_asked_for_before_it_had_settled_does_not_count():
    pace = Pace()
    pace.join("first", claim(settle=10.0))
    pace.observe(5.0, asked_at=0.0, now=2.0)  # the answer took two seconds
    pace.join("second", claim())

    assert pace.observe(5.0, asked_at=11.9, now=30.0) == {"second": 3.0}
    assert pace.observe(5.0, asked_at=12.0, now=30.0) == {"second": 0.0}


def test_who_was_let_go_is_not_let_go_again():
    pace = Pace()
    pace.join("gate", claim(settle=1.0))

    assert let_go(pace, 5.0) == ["gate"]
    assert pace.observe(5.0, asked_at=100.0, now=100.0) == {}


def test_who_has_left_takes_nothing():
    pace = Pace()
    pace.join("left", claim(since=1))
    pace.join("stays", claim(since=2))
    pace.leave("left")
    pace.leave("left")

    assert let_go(pace, 3.0) == ["stays"]


def test_a_newcomer_alone_is_told_of_a_balance_that_the_others_know():
    pace = Pace()
    pace.join("poor", claim(100.0))
    pace.join("gone", claim())
    assert let_go(pace, 7.0) == ["gone"]
    pace.join("newcomer", claim())

    assert pace.observe(7.0, asked_at=0.0, now=5.0, only="newcomer") == {"newcomer": 3.0}
    pace.join("another", claim())
    assert pace.observe(7.0, asked_at=0.0, now=5.0, only="another") == {"another": 6.0}


def test_it_is_settled_when_nobody_waits_and_nothing_is_spoken_for():
    pace = Pace()
    assert pace.is_settled(0.0)
    pace.join("gate", claim(settle=10.0))
    assert not pace.is_settled(1000.0)
    pace.observe(5.0, asked_at=0.0, now=0.0)

    assert not pace.is_settled(9.9)
    assert pace.is_settled(10.0)


_amounts = st.floats(0, 100, allow_nan=False).map(lambda number: round(number, 2))


@given(
    claims=st.lists(st.tuples(_amounts, _amounts, st.integers(0, 20)), max_size=12),
    balances=st.lists(st.tuples(_amounts, st.integers(0, 90)), max_size=6),
)
def test_never_more_are_let_go_than_a_balance_carries(claims, balances):
    pace = Pace()
    made = {number: claim(credits, minimum, since) for number, (credits, minimum, since) in enumerate(claims)}
    for who, each in made.items():
        pace.join(who, each)
    now, gone = 0.0, []
    for balance, seconds in balances:
        now += seconds
        released = let_go(pace, balance, asked_at=now)
        spoken_for = sum(made[who].credits for who, at in gone if now - at < SETTLE)
        for who in released:
            assert balance - spoken_for > made[who].minimum
            spoken_for += made[who].credits
            assert spoken_for <= balance - made[who].minimum + 1e-9
        assert [made[who].since for who in released] == sorted(made[who].since for who in released)
        gone += [(who, now) for who in released]
    assert len({who for who, _ in gone}) == len(gone)
