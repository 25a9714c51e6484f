"""What a person may say of a spend, and what comes of it."""

from datetime import timedelta

import pytest


def used(ledger):
    (budget,) = ledger.budgets()
    return budget.used / 1_000_000


@pytest.mark.parametrize(("state", "left"), [("posted", 3), ("void", 0)])
def test_an_unknown_spend_is_settled_once_and_its_budget_knows(state, left, ledger):
    ledger.set_budget("team", 10, "month")
    ledger.spend("a", state="unknown", budget="team")
    assert used(ledger) == 3

    assert ledger.settle("a", state, "ann", "seen in the folder")
    assert not ledger.settle("a", state, "bob")

    row = ledger.row("a")
    assert (row.state, row.reason) == (state, "Settled by ann: seen in the folder")
    assert used(ledger) == left


def test_a_reason_need_not_be_given(ledger):
    ledger.spend("a", state="unknown")

    ledger.settle("a", "void", "ann")

    assert ledger.row("a").reason == "Settled by ann."


def test_what_is_held_beyond_its_lease_can_be_settled_as_if_it_were_unknown(ledger):
    ledger.set_budget("team", 10, "month")
    ledger.spend("a", state="held", budget="team")

    with pytest.raises(ValueError, match=r"^Spend 'a' is held until 2026-11-18 12:15:00 UTC, and"):
        ledger.settle("a", "void", "ann")
    ledger.time += timedelta(hours=1)

    assert ledger.settle("a", "void", "ann")
    assert used(ledger) == 0


@pytest.mark.parametrize("how", [{"runs": False}, {"itemized": True}])
def test_what_cannot_have_been_paid_for_is_void_and_nothing_else(how, ledger):
    ledger.spend("a", state="held", **how)
    ledger.time += timedelta(hours=1)

    with pytest.raises(ValueError, match=r"^Spend 'a' never ran, or each of its calls is a spend of its own"):
        ledger.settle("a", "posted", "ann")

    assert ledger.settle("a", "void", "ann")


@pytest.mark.parametrize(("is_", "not_"), [("posted", "void"), ("void", "posted")])
def test_what_is_known_stays_so(is_, not_, ledger):
    ledger.spend("a", state="unknown")
    ledger.settle("a", is_, "ann")

    with pytest.raises(
        ValueError, match=rf"^Spend 'a' is {is_} already \(Settled by ann\.\), so it cannot become {not_}\."
    ):
        ledger.settle("a", not_, "bob")

    assert ledger.row("a").reason == "Settled by ann."


def test_a_spend_that_is_not_there_is_an_error(ledger):
    with pytest.raises(ValueError, match=r"^There is no spend 'a' in the ledger"):
        ledger.settle("a", "void", "ann")


def test_a_spend_becomes_nothing_else_than_posted_or_void(ledger):
    ledger.spend("a", state="unknown")

    with pytest.raises(ValueError, match=r"^A spend is settled as posted or void; got 'held'\."):
        ledger.settle("a", "held", "ann")


def test_what_a_person_settled_a_worker_that_comes_back_may_still_correct(ledger):
    ledger.set_budget("team", 10, "month")
    ledger.spend("a", state="unknown", budget="team")
    ledger.settle("a", "void", "ann")

    assert ledger.end("a", "posted")
    assert used(ledger) == 3
