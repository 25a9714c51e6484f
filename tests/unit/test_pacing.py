from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_stability.rules.pacing import RESERVATION_SECONDS, Pacer, Reservation

START = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


def reservation(credits=3.0, minimum=0.0, since=0, **kwargs):
    return Reservation(credits, minimum, START + timedelta(seconds=since), **kwargs)


def let_go(pacer, balance, requested_at=0.0, **kwargs):
    """Return waiter is let go at a balance that arrives at once, in their order."""
    waiting = set(pacer.waiting)
    shares = pacer.observe(balance, requested_at=requested_at, now=requested_at, **kwargs)
    return [waiter for waiter in shares if waiter in waiting - set(pacer.waiting)]


def test_the_oldest_go_first_and_as_many_as_the_balance_carries():
    pacer = Pacer()
    for name, since in {"late": 3, "early": 1, "middle": 2}.items():
        pacer.join(name, reservation(since=since))

    assert let_go(pacer, 6.5) == ["early", "middle"]


def test_each_is_told_how_much_is_reserved():
    pacer = Pacer()
    for name in "abc":
        pacer.join(name, reservation())

    assert pacer.observe(6.5, requested_at=0.0, now=0.0) == {"a": 0.0, "b": 3.0, "c": 6.0}


def test_one_for_whom_it_is_not_enough_holds_back_nobody():
    pacer = Pacer()
    pacer.join("large", reservation(100.0, since=1))
    pacer.join("careful", reservation(minimum=500.0, since=2))
    pacer.join("small", reservation(since=3))

    assert let_go(pacer, 10.0) == ["small"]


@pytest.mark.parametrize(("balance", "opens"), [(11.0, True), (10.9, False)])
def test_the_minimum_is_left_over(balance, opens):
    pacer = Pacer()
    pacer.join("gate", reservation(3.0, minimum=8.0))

    assert let_go(pacer, balance) == (["gate"] if opens else [])


def test_what_somebody_was_let_go_for_counts_as_spent_until_it_has_settled():
    pacer = Pacer()
    pacer.join("first", reservation())
    assert let_go(pacer, 5.0, requested_at=0.0) == ["first"]
    pacer.join("second", reservation())

    assert let_go(pacer, 5.0, requested_at=RESERVATION_SECONDS - 0.1) == []
    assert let_go(pacer, 5.0, requested_at=RESERVATION_SECONDS) == ["second"]


def test_a_balance_that_was_asked_for_before_it_had_settled_does_not_count():
    pacer = Pacer()
    pacer.join("first", reservation(seconds=10.0))
    pacer.observe(5.0, requested_at=0.0, now=2.0)  # the answer took two seconds
    pacer.join("second", reservation())

    assert pacer.observe(5.0, requested_at=11.9, now=30.0) == {"second": 3.0}
    assert pacer.observe(5.0, requested_at=12.0, now=30.0) == {"second": 0.0}


def test_who_was_let_go_is_not_let_go_again():
    pacer = Pacer()
    pacer.join("gate", reservation(seconds=1.0))

    assert let_go(pacer, 5.0) == ["gate"]
    assert pacer.observe(5.0, requested_at=100.0, now=100.0) == {}


def test_who_has_left_takes_nothing():
    pacer = Pacer()
    pacer.join("left", reservation(since=1))
    pacer.join("stays", reservation(since=2))
    pacer.leave("left")
    pacer.leave("left")

    assert let_go(pacer, 3.0) == ["stays"]


def test_a_newcomer_alone_is_told_of_a_balance_that_the_others_know():
    pacer = Pacer()
    pacer.join("poor", reservation(100.0))
    pacer.join("gone", reservation())
    assert let_go(pacer, 7.0) == ["gone"]
    pacer.join("newcomer", reservation())

    assert pacer.observe(7.0, requested_at=0.0, now=5.0, only="newcomer") == {"newcomer": 3.0}
    pacer.join("another", reservation())
    assert pacer.observe(7.0, requested_at=0.0, now=5.0, only="another") == {"another": 6.0}


def test_it_is_idle_when_nobody_waits_and_nothing_is_reserved():
    pacer = Pacer()
    assert pacer.is_idle(0.0)
    pacer.join("gate", reservation(seconds=10.0))
    assert not pacer.is_idle(1000.0)
    pacer.observe(5.0, requested_at=0.0, now=0.0)

    assert not pacer.is_idle(9.9)
    assert pacer.is_idle(10.0)


_amounts = st.floats(0, 100, allow_nan=False).map(lambda number: round(number, 2))


@given(
    claims=st.lists(st.tuples(_amounts, _amounts, st.integers(0, 20)), max_size=12),
    balances=st.lists(st.tuples(_amounts, st.integers(0, 90)), max_size=6),
)
def test_never_more_are_let_go_than_a_balance_carries(claims, balances):
    pacer = Pacer()
    made = {
        number: reservation(credits, minimum, since)
        for number, (credits, minimum, since) in enumerate(claims)
    }
    for waiter, each in made.items():
        pacer.join(waiter, each)
    now, gone = 0.0, []
    for balance, seconds in balances:
        now += seconds
        released = let_go(pacer, balance, requested_at=now)
        reserved = sum(made[waiter].credits for waiter, at in gone if now - at < RESERVATION_SECONDS)
        for waiter in released:
            assert balance - reserved > made[waiter].minimum
            reserved += made[waiter].credits
            assert reserved <= balance - made[waiter].minimum + 1e-9
        assert [made[waiter].since for waiter in released] == sorted(
            made[waiter].since for waiter in released
        )
        gone += [(waiter, now) for waiter in released]
    assert len({waiter for waiter, _ in gone}) == len(gone)


def test_a_balance_that_was_asked_for_earlier_and_comes_later_counts_what_was_reserved_then():
    pacer = Pacer()
    pacer.join("first", reservation(seconds=10.0))
    pacer.observe(5.0, requested_at=0.0, now=0.0)
    pacer.join("second", reservation())

    assert pacer.observe(1.0, requested_at=11.0, now=11.0) == {"second": 0.0}
    assert pacer.observe(5.0, requested_at=9.0, now=12.0) == {"second": 3.0}


def test_what_may_be_the_same_wallet_reserves_too():
    pacer, other = Pacer(), Pacer()
    other.join("first", reservation())
    other.observe(5.0, requested_at=0.0, now=0.0)
    pacer.join("second", reservation())

    assert let_go(pacer, 5.0, also_reserved=other.reserved(0.0)) == []
    assert let_go(pacer, 5.0, requested_at=60.0, also_reserved=other.reserved(60.0)) == ["second"]


def test_tasks_of_a_wallet_with_two_names_are_paced_together_once_that_is_known():
    pacer, other = Pacer(), Pacer()
    other.join("gone", reservation())
    other.observe(5.0, requested_at=0.0, now=0.0)
    other.join("old", reservation(since=1))
    other.join("stays", reservation(since=0))
    pacer.join("young", reservation(since=2))
    for _ in range(2):
        pacer.take_waiting(other, ["gone", "old"])
        pacer.take_reserved(other)

    assert set(other.waiting) == {"stays"}
    assert pacer.observe(5.0, requested_at=1.0, now=1.0) == {"old": 3.0, "young": 3.0}
    assert let_go(pacer, 6.5) == ["old"]


def test_who_turns_out_to_wait_for_another_wallet_brings_no_reservations_of_the_old_one():
    pacer, old = Pacer(), Pacer()
    old.join("gone", reservation())
    old.observe(5.0, requested_at=0.0, now=0.0)
    old.join("moves", reservation())
    pacer.take_waiting(old, ["moves"])

    assert let_go(pacer, 3.0) == ["moves"]
    assert old.reserved(1.0) == 3.0


def test_a_balance_lets_go_all_that_it_covers_in_fractions():
    pacer = Pacer()
    for name in "abc":
        pacer.join(name, reservation(0.1))

    assert let_go(pacer, 0.3) == ["a", "b", "c"]
    assert pacer.observe(0.3, requested_at=1.0, now=1.0) == {}
    pacer.join("late", reservation(0.1))
    assert pacer.observe(0.4, requested_at=2.0, now=2.0) == {"late": 0.3}
    assert "late" not in pacer.waiting
