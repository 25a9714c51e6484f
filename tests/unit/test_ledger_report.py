"""What the ledger says of its spends."""

from datetime import date, datetime, timedelta

import pytest

from airflow_stability.ledger.ledger import Call, Spender
from airflow_stability.ledger.report import BY, open_spends, sums

SINCE = datetime(2026, 11, 11)


def numbers(each):
    return each.posted / 1e6, each.held / 1e6, each.unknown / 1e6, each.spends


@pytest.fixture
def spends(ledger):
    """A ledger with spends in it."""
    ledger.set_budget("team", 1000, "month")
    ledger.spend("1", 3, "posted", at=datetime(2026, 11, 11))
    ledger.spend("2", 0.1, "posted", at=datetime(2026, 11, 11, 23, 59, 59), budget="team")
    ledger.spend("3", 0.2, "posted", at=datetime(2026, 11, 12), budget="team", task_id="upscale")
    ledger.spend("4", 8, "unknown", at=datetime(2026, 11, 12), run_id="run-2")
    ledger.spend("5", 2.5, "held", dag_id="other")
    ledger.spend("6", 1000, "void", dag_id="void")
    ledger.spend("7", 4, "posted", dag_id=None, task_id=None, run_id=None)
    ledger.spend("8", 1000, "posted", at=SINCE - timedelta(seconds=1))
    return ledger


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("dag", {("images",): (3.3, 0, 8, 4), (None,): (4, 0, 0, 1), ("other",): (0, 2.5, 0, 1)}),
        (
            "task",
            {
                ("images", "generate"): (3.1, 0, 8, 3),
                (None, None): (4, 0, 0, 1),
                ("other", "generate"): (0, 2.5, 0, 1),
                ("images", "upscale"): (0.2, 0, 0, 1),
            },
        ),
        (
            "run",
            {
                ("images", "run-2"): (0, 0, 8, 1),
                (None, None): (4, 0, 0, 1),
                ("images", "run-1"): (3.3, 0, 0, 3),
                ("other", "run-1"): (0, 2.5, 0, 1),
            },
        ),
        ("budget", {(None,): (7, 2.5, 8, 4), ("team",): (0.3, 0, 0, 2)}),
        (
            "day",
            {
                (date(2026, 11, 11),): (3.1, 0, 0, 2),
                (date(2026, 11, 12),): (0.2, 0, 8, 2),
                (date(2026, 11, 18),): (4, 2.5, 0, 2),
            },
        ),
    ],
)
def test_sums_are_exact_and_the_largest_come_first_or_the_days_in_order(by, groups, spends):
    found = {each.group: numbers(each) for each in sums(spends.database, by, SINCE)}

    assert found == groups
    assert list(found) == list(groups)
    assert {len(group) for group in found} == {len(BY[by])}


def test_a_time_may_be_how_long_ago_by_the_databases_clock(spends):
    (only,) = sums(spends.database, "dag", timedelta(days=6, hours=12, seconds=1))[2:]
    assert only.group == ("other",)
    (image, *_) = sums(spends.database, "dag", timedelta(days=6, hours=12))

    assert numbers(image) == (0.2, 0, 8, 2)


def test_a_hold_that_calls_have_used_up_is_no_spend_and_a_call_without_a_price_is_one(ledger):
    spender = Spender("stability_default", dag_id="images")
    ledger.spend("hold", 3, "held", itemized=True)
    ledger.begin_call(Call("call", spender, "stable-image/generate/core", 3), "hold")
    ledger.begin_call(Call("other", spender, "stable-image/edit/new", None), "hold")
    ledger.end("call", "posted")

    assert [numbers(each) for each in sums(ledger.database, "dag", SINCE)] == [(3, 0, 0, 2)]


def test_it_sums_up_by_nothing_else(ledger):
    with pytest.raises(ValueError, match=r"^by must be one of dag, task, run, budget, day; got 'wallet'\."):
        sums(ledger.database, "wallet", SINCE)


def test_what_is_open_is_what_is_unknown_or_held_beyond_its_lease_oldest_first(ledger):
    ledger.set_budget("team", 1000, "month")
    ledger.spend("late", 2.5, "held")
    ledger.spend("never-began", 1, "held", runs=False, at=ledger.time + timedelta(seconds=1))
    ledger.spend("unknown", 3, "unknown", at=ledger.time - timedelta(days=40), budget="team", map_index=2)
    for state in ("posted", "void"):
        ledger.spend(state, state=state)
    ledger.time += timedelta(hours=2)
    ledger.spend("held", state="held")

    unknown, late, never_began = open_spends(ledger.database)

    assert (unknown.key, unknown.state, unknown.microcredits, unknown.budget) == (
        "unknown",
        "unknown",
        3_000_000,
        "team",
    )
    assert (unknown.dag_id, unknown.run_id, unknown.task_id, unknown.map_index) == (
        "images",
        "run-1",
        "generate",
        2,
    )
    assert unknown.age == 40 * 86400 + 7200
    assert (late.key, late.state, late.age, late.may_be_paid) == ("late", "held", 7200, True)
    assert (never_began.key, never_began.may_be_paid) == ("never-began", False)
