"""What the ledger says of its spends."""

from datetime import date, datetime, timedelta

import pytest

from airflow_stability.ledger.ledger import Call, Hold, Reading, Spender
from airflow_stability.ledger.report import BY, daily_sums, open_spends, open_sums, remainders, sums

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
        ("wallet", {("connection stability_default",): (7.3, 2.5, 8, 6)}),
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


def test_sums_by_day_dag_and_budget_are_those_of_whole_days_in_utc(spends):
    spends.time = datetime(2026, 11, 18, 0, 0, 1)
    found = [(*each.group, numbers(each)) for each in daily_sums(spends.database, 7)[1]]

    assert found == [
        (date(2026, 11, 12), "images", None, (0, 0, 8, 1)),
        (date(2026, 11, 12), "images", "team", (0.2, 0, 0, 1)),
        (date(2026, 11, 18), None, None, (4, 0, 0, 1)),
        (date(2026, 11, 18), "other", None, (0, 2.5, 0, 1)),
    ]
    assert daily_sums(spends.database, 1)[0] == date(2026, 11, 18)
    assert daily_sums(spends.database, 8)[1][0].group[0] == date(2026, 11, 11)


def test_what_is_held_and_unknown_is_summed_up_however_old_it_is(spends):
    spends.spend("9", 5, "unknown", at=datetime(2025, 1, 1))
    held, unknown = open_sums(spends.database)

    assert (numbers(held), numbers(unknown)) == ((0, 2.5, 0, 1), (0, 0, 13, 2))


def test_nothing_is_held_or_unknown_in_a_new_ledger(ledger):
    assert [numbers(each) for each in open_sums(ledger.database)] == [(0, 0, 0, 0)] * 2


def test_it_sums_up_by_nothing_else(ledger):
    with pytest.raises(
        ValueError, match=r"^by must be one of dag, task, run, budget, wallet, day; got 'x'\."
    ):
        sums(ledger.database, "x", SINCE)


def test_what_is_open_is_what_is_unknown_or_held_beyond_its_lease_oldest_first(ledger):
    ledger.set_budget("team", 1000, "total")
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


# The remainder

NINE = datetime(2026, 11, 18, 9)


def read(ledger, hour, credits, organization="org-1"):
    """Read a balance at an hour of the day, as a task does that must wait."""
    ledger.time = NINE.replace(hour=0) + timedelta(hours=hour)
    wanted = Hold("waits", Spender("stability_default", organization), 1e6)
    assert "waits" in ledger.hold([wanted], Reading(credits, 0.0)).refused


def spend(ledger, key, credits, state, begins, ends, **more):
    """Spend credits between two hours of the day."""
    ledger.time = NINE.replace(hour=0) + timedelta(hours=begins)
    ledger.spend(key, credits, "held", organization="org-1", **more)
    if state != "held":
        ledger.time = NINE.replace(hour=0) + timedelta(hours=ends)
        ledger.end(key, state)


def rest(ledger, since=NINE):
    return {each.wallet: each.microcredits / 1e6 for each in remainders(ledger.database, since)}


def test_the_remainder_is_what_the_balance_fell_by_less_what_was_recorded(ledger):
    read(ledger, 9, 100)
    spend(ledger, "1", 10, "posted", 9.1, 9.2)
    read(ledger, 10, 90)
    spend(ledger, "2", 10, "unknown", 10.1, 10.2)
    spend(ledger, "3", 1000, "void", 10.1, 10.2)
    read(ledger, 11, 70)
    (found,) = remainders(ledger.database, NINE)

    assert (found.wallet, found.fell, found.recorded) == ("org-1", 30_000_000, 20_000_000)
    assert found.microcredits == 10_000_000
    assert (found.first_read_at, found.last_read_at) == (NINE, NINE.replace(hour=11))


def test_a_top_up_is_no_fall_and_hides_what_was_spent_before_it_was_read(ledger):
    read(ledger, 9, 100)
    read(ledger, 10, 60)
    read(ledger, 11, 1060)
    read(ledger, 12, 1055)

    assert rest(ledger) == {"org-1": 45}


def test_the_remainder_is_never_less_than_nothing(ledger):
    read(ledger, 9, 100)
    spend(ledger, "1", 10, "posted", 9.1, 9.2)
    read(ledger, 10, 95)

    assert rest(ledger) == {"org-1": 0}


@pytest.mark.parametrize(
    ("begins", "ends", "state", "left"),
    [
        (8, 8.5, "posted", 10),  # over before the first reading
        (8, 9.5, "posted", 0),  # under way at the first reading
        (9.5, 10.5, "posted", 0),  # under way at the last one
        (9.5, 10.5, "unknown", 0),
        (9.5, None, "held", 0),
        (10.5, 10.6, "posted", 10),  # began after the last reading
        (10.5, None, "held", 10),
    ],
)
def test_a_call_that_is_under_way_at_a_reading_is_not_taken_for_somebody_elses(
    begins, ends, state, left, ledger
):
    steps = {9: lambda: read(ledger, 9, 100), 10: lambda: read(ledger, 10, 90)}
    steps[begins] = lambda: spend(ledger, "1", 10, "held", begins, None)
    if ends:
        steps[ends] = lambda: ledger.end("1", state)
    for hour in sorted(steps):
        ledger.time = NINE.replace(hour=0) + timedelta(hours=hour)
        steps[hour]()

    assert rest(ledger) == {"org-1": left}


def test_what_cannot_have_been_paid_for_does_not_hide_others(ledger):
    read(ledger, 9, 100)
    spend(ledger, "itemized", 10, "held", 9.1, None, itemized=True)
    spend(ledger, "never-began", 10, "held", 9.1, None, runs=False)
    read(ledger, 10, 90)

    assert rest(ledger) == {"org-1": 10}


def test_the_balance_at_that_time_is_the_last_one_read_before(ledger):
    read(ledger, 7, 200)
    read(ledger, 8, 100)
    read(ledger, 8.5, 100)
    read(ledger, 10, 90)

    assert rest(ledger) == {"org-1": 10}
    assert rest(ledger, NINE.date()) == {"org-1": 110}
    ledger.time = NINE.replace(hour=13)
    assert rest(ledger, timedelta(hours=4)) == {"org-1": 10}


def test_wallets_are_apart_and_the_limit_leaves_out_those_that_were_read_first(ledger):
    read(ledger, 9, 100)
    read(ledger, 9, 100, "org-2")
    read(ledger, 10, 93)
    read(ledger, 11, 95, "org-2")

    assert rest(ledger) == {"org-1": 7, "org-2": 5}
    assert [each.wallet for each in remainders(ledger.database, NINE, 1)] == ["org-2"]


def test_of_a_wallet_that_was_not_read_since_then_nothing_is_known(ledger):
    read(ledger, 7, 100)
    read(ledger, 8, 50)

    assert rest(ledger) == {}
    assert rest(ledger, NINE.date()) == {"org-1": 50}
