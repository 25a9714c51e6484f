"""When a balance crosses a threshold, and what is said about it."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_stability.errors import StabilityAuthenticationError, StabilityUnavailableError
from airflow_stability.rules.crossing import ThresholdWatch, WatchedWallet
from airflow_stability.rules.log_throttle import LOG_EVERY

START = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
OUTAGE = StabilityUnavailableError("answered 503 (error id a1).", status=503)
REFUSED = StabilityAuthenticationError("answered 401.", status=401)


def crossings(watch, *balances):
    """Return the balances that a watch fires an event for."""
    return [credits for credits in balances if watch.observe_balance(credits, START).crossed]


@pytest.mark.parametrize(
    ("direction", "balances", "fired"),
    [
        ("above", [2, 50, 50.00000000000001, 60, 55], [50.00000000000001]),
        ("above", [2, 60, 60, 50, 60], [60, 60]),
        ("above", [60, 70, 50, 51], [51]),
        ("above", [-3, 60], [60]),
        ("below", [60, 50.00000000000001, 50, 40, 45], [50]),
        ("below", [60, 40, 51, 49], [40, 49]),
        ("below", [40, 30, 60, -1], [-1]),
    ],
)
def test_fires_once_for_each_crossing(direction, balances, fired):
    assert crossings(ThresholdWatch(50, direction), *balances) == fired


@pytest.mark.parametrize(
    ("direction", "balance"), [("above", 60), ("above", 40), ("below", 40), ("below", 60)]
)
def test_the_first_balance_fires_nothing(direction, balance):
    assert crossings(ThresholdWatch(50, direction), balance, balance, balance) == []


@pytest.mark.parametrize(
    ("direction", "balances", "fired"),
    [
        ("above", [2, 60, 41, 60, 40.00000000000001, 60], [60]),
        ("above", [2, 60, 40, 60], [60, 60]),
        ("above", [2, 60, 40, 45, 60], [60, 60]),
        ("below", [90, 50, 60, 50, 59, 50], [50]),
        ("below", [90, 50, 60.00000000000001, 50], [50, 50]),
        ("below", [90, 50, 61, 55, 50], [50, 50]),
    ],
)
def test_with_a_margin_it_fires_again_only_after_the_balance_has_gone_back_by_it(direction, balances, fired):
    assert crossings(ThresholdWatch(50, direction, margin=10), *balances) == fired


@pytest.mark.parametrize(("direction", "balances"), [("above", [45, 51]), ("below", [55, 49])])
def test_a_first_balance_on_the_near_side_is_near_enough_whatever_the_margin(direction, balances):
    assert crossings(ThresholdWatch(50, direction, margin=10), *balances) == balances[1:]


@pytest.mark.parametrize(
    ("direction", "balances", "fired"),
    [
        ("above", [60, 45, 60], []),
        ("above", [60, 40, 60], [60]),
        ("below", [40, 55, 40], []),
        ("below", [40, 61, 40], [40]),
    ],
)
def test_a_first_balance_beyond_the_threshold_counts_as_if_it_had_fired(direction, balances, fired):
    assert crossings(ThresholdWatch(50, direction, margin=10), *balances) == fired


@given(st.lists(st.integers(0, 20), min_size=1), st.integers(0, 20), st.sampled_from(["above", "below"]))
def test_without_a_margin_each_change_to_the_side_fires(balances, threshold, direction):
    watch = ThresholdWatch(threshold, direction)
    beyond = [(credits > threshold) == (direction == "above") for credits in balances]

    fired = [watch.observe_balance(credits, START).crossed for credits in balances]

    assert fired == [False, *(now and not before for before, now in pairwise(beyond))]


@given(st.lists(st.integers(0, 40)), st.integers(0, 20), st.sampled_from(["above", "below"]))
def test_between_two_events_the_balance_has_gone_back_by_the_margin(balances, margin, direction):
    watch = ThresholdWatch(20, direction, margin=margin)
    fired = [index for index, credits in enumerate(balances) if watch.observe_balance(credits, START).crossed]

    for earlier, later in pairwise(fired):
        between = balances[earlier:later]
        assert min(between) <= 20 - margin if direction == "above" else max(between) > 20 + margin


@given(
    st.lists(st.integers(0, 40)),
    st.lists(st.integers(0, 40)),
    st.integers(0, 20),
    st.sampled_from(["above", "below"]),
)
def test_what_was_remembered_makes_a_restart_unseen(before, after, margin, direction):
    stayed = ThresholdWatch(20, direction, margin=margin)
    crossings(stayed, *before)
    restarted = ThresholdWatch(20, direction, margin=margin)
    restarted.restore(json.loads(json.dumps(stayed.state)))

    assert crossings(restarted, *after) == crossings(stayed, *after)


def test_an_event_tells_the_balance_before_it_across_a_restart_too():
    watch = ThresholdWatch(50, "above")
    watch.restore({"armed": True, "credits": 3})

    report = watch.observe_balance(60.0, START)

    assert (report.crossed, report.previous_credits) == (True, 3.0)


def test_recalled_late_it_still_counts_for_the_next_balance():
    watch = ThresholdWatch(50, "above")
    watch.observe_balance(60.0, START)
    watch.restore({"armed": True, "credits": 3.0})

    assert crossings(watch, 61) == [61]


def test_recalled_late_it_does_not_fire_what_was_fired():
    watch = ThresholdWatch(50, "above")
    assert crossings(watch, 2, 60) == [60]
    watch.restore({"armed": True, "credits": 3.0})

    assert crossings(watch, 61) == []


def test_recalled_late_it_does_not_disarm():
    watch = ThresholdWatch(50, "above")
    watch.observe_balance(2.0, START)
    watch.restore({"armed": False, "credits": 70.0})

    report = watch.observe_balance(60.0, START)

    assert (report.crossed, report.previous_credits) == (True, 2.0)


@pytest.mark.parametrize(
    "state",
    [
        *(None, [], "armed", 3.0, {}, {"armed": True}, {"credits": 3.0}),
        *({"armed": "yes", "credits": 3.0}, {"armed": True, "credits": "3"}),
        {"armed": True, "credits": math.nan},
    ],
)
def test_a_memory_that_is_none_is_not_minded(state):
    watch = ThresholdWatch(50, "above")
    watch.restore(state)

    assert watch.state is None
    assert crossings(watch, 60) == []


def test_it_knows_nothing_to_remember_before_the_first_balance():
    watch = ThresholdWatch(50, "below")
    watch.observe_failure(OUTAGE, START)

    assert watch.state is None


def test_a_failure_fires_nothing_and_forgets_nothing():
    watch = ThresholdWatch(50, "above")
    watch.observe_balance(2.0, START)
    failures = [watch.observe_failure(failure, START) for failure in (OUTAGE, REFUSED)]

    report = watch.observe_balance(60.0, START)

    assert not any(failure.crossed for failure in failures)
    assert (report.crossed, report.previous_credits) == (True, 2.0)


def test_only_a_failure_that_stays_is_a_refusal():
    watch = ThresholdWatch(50, "above")

    assert watch.observe_failure(REFUSED, START).refused
    assert not watch.observe_failure(OUTAGE, START).refused
    assert not watch.observe_balance(2.0, START).refused


@pytest.mark.parametrize(
    ("direction", "balances", "texts"),
    [
        (
            "above",
            [2, 60, 40],
            [
                "Watching: organization org-A has 2 credits, an event is fired when it has more than 50.",
                "An event is fired: organization org-A has 60 credits, more than 50; it had 2.",
                "Watching: organization org-A has 40 credits, an event is fired when it has more than 50.",
            ],
        ),
        (
            "above",
            [60],
            ["Watching: organization org-A has 60 credits, no event is fired before it has had 40 or fewer."],
        ),
        (
            "below",
            [60, 7.5],
            [
                "Watching: organization org-A has 60 credits, an event is fired when it has 50 or fewer.",
                "An event is fired: organization org-A has 7.5 credits, 50 or fewer; it had 60.",
            ],
        ),
        (
            "below",
            [3],
            ["Watching: organization org-A has 3 credits, no event is fired before it has had more than 60."],
        ),
    ],
)
def test_it_says_what_it_saw_and_what_it_waits_for(direction, balances, texts):
    watch = ThresholdWatch(50, direction, margin=10)
    reports = [watch.observe_balance(float(credits), START, "org-A") for credits in balances]

    assert [report.text for report in reports] == texts
    assert all(report.should_log for report in reports)


def test_it_says_what_is_wrong_and_when_it_is_tried_again():
    watch = ThresholdWatch(50, "above")

    assert watch.observe_failure(OUTAGE, START).text == (
        "The balance of the key's default organization is unknown, so no event can be fired: answered 503 "
        "(error id a1)."
    )
    assert watch.observe_failure(REFUSED, START, "org-A").text == (
        "The balance of organization org-A is unknown, so no event can be fired: answered 401. Until that is "
        "fixed, the balance is polled less often."
    )


def test_it_speaks_at_each_change_and_every_hour():
    watch = ThresholdWatch(50, "above")
    now = START
    spoken = []
    for outcome in (2.0, 3.0, OUTAGE, OUTAGE, REFUSED, REFUSED, 4.0, 60.0, 61.0, 49.0, 48.0):
        now += timedelta(minutes=1)
        if isinstance(outcome, float):
            report = watch.observe_balance(outcome, now)
        else:
            report = watch.observe_failure(outcome, now)
        spoken += [outcome] if report.should_log else []

    assert spoken == [2.0, OUTAGE, REFUSED, 4.0, 60.0, 49.0]
    assert not watch.observe_balance(48.0, now + timedelta(minutes=50)).should_log
    assert watch.observe_balance(48.0, now + LOG_EVERY).should_log


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"threshold": -1}, "threshold must be a finite number of credits, 0 or more"),
        ({"threshold": True}, "threshold must be a finite number of credits, 0 or more"),
        ({"margin": "some"}, "margin must be a finite number of credits, 0 or more"),
        ({"direction": "up"}, "direction must be 'above' or 'below'; got 'up'."),
        ({"direction": None}, "direction must be 'above' or 'below'; got None."),
        (
            {"margin": 50.5},
            "margin must not be more than the threshold of 50, or no balance is low enough",
        ),
    ],
)
def test_an_argument_that_cannot_work_is_refused(arguments, text):
    with pytest.raises(ValueError, match="^" + text.replace(".", r"\.")):
        ThresholdWatch(**{"threshold": 50, "direction": "above"} | arguments)


def test_below_a_margin_may_be_any():
    assert crossings(ThresholdWatch(50, "below", margin=500), 90, 40, 549, 40, 551, 40) == [40, 40]


def wallet(organization=None, *, named=None, address="https://api", key=1):
    return WatchedWallet(organization or named, address, (named, bytes([key])))


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        (wallet(), wallet(), True),
        (wallet(), wallet(key=2), False),
        (wallet(), wallet(address="https://other"), False),
        (wallet("org-1"), wallet("org-1", key=2), True),
        (wallet("org-1"), wallet("org-2"), False),
        (wallet("org-1"), wallet("org-1", address="https://other"), False),
        # The account could be read only the first time, or only the second.
        (wallet("org-1"), wallet(), True),
        (wallet(), wallet("org-1"), True),
        (wallet("org-1"), wallet(key=2), False),
        (wallet(), wallet("org-1", key=2), False),
        (wallet("org-1"), wallet(named="org-1"), True),
        (wallet("org-1"), wallet(named="org-2"), False),
        (wallet(), wallet(named="org-1"), False),
        (wallet(named="org-1"), wallet(), False),
        (wallet(named="org-1"), wallet(named="org-1", key=2), True),
        # A failure tells nothing.
        (wallet("org-1"), None, True),
    ],
)
def test_only_a_rise_of_one_wallets_credits_is_a_crossing(before, after, same):
    watch = ThresholdWatch(50, "above")
    watch.observe_balance(2.0, START, wallet=before)

    report = watch.observe_balance(60.0, START, wallet=after)

    assert (report.crossed, report.previous_credits) == ((True, 2.0) if same else (False, None))


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        (wallet("org-1"), wallet("org-1", key=2), True),
        (wallet("org-1"), wallet("org-2"), False),
        # Which one it was, or is, is not known: a crossing must not be lost.
        (wallet(), wallet("org-1"), True),
        (wallet("org-1"), wallet(key=2), True),
        (wallet(), wallet(key=2), True),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_after_a_restart_only_an_organization_can_tell_wallets_apart(before, after, same, late):
    stopped, watch = ThresholdWatch(50, "above"), ThresholdWatch(50, "above")
    stopped.observe_balance(2.0, START, wallet=before)
    if late:
        watch.observe_balance(60.0, START, wallet=after)
    watch.restore(json.loads(json.dumps(stopped.state)))

    assert watch.observe_balance(60.0, START, wallet=after).crossed is same


def test_what_is_remembered_of_a_wallet_is_its_organization_only():
    watch = ThresholdWatch(50, "above")
    watch.observe_balance(2.0, START, wallet=wallet("org-1"))
    watch.observe_balance(2.0, START, wallet=wallet())

    assert watch.state == {"armed": True, "credits": 2.0, "organization": "org-1"}


def test_recalled_after_the_wallet_has_changed_it_does_not_count():
    watch = ThresholdWatch(50, "above")
    watch.observe_balance(60.0, START, wallet=wallet())
    watch.observe_balance(60.0, START, wallet=wallet(key=2))
    watch.restore({"armed": True, "credits": 2.0, "organization": None})

    assert crossings(watch, 61) == []


def test_it_says_that_the_wallet_has_changed():
    watch = ThresholdWatch(50, "above")
    watch.observe_balance(2.0, START, "org-1", wallet("org-1"))

    report = watch.observe_balance(3.0, START, "org-2", wallet("org-2"))

    assert report.should_log
    assert report.text == (
        "The connection leads to other credits than before, so the watch begins anew. Watching: organization "
        "org-2 has 3 credits, an event is fired when it has more than 50."
    )


def test_the_way_back_is_measured_in_the_fractions_that_people_write():
    one = ThresholdWatch(0.3, "above", margin=0.1)
    one.observe_balance(0.1, START)

    assert one.observe_balance(0.4, START).crossed
    assert not one.observe_balance(0.2, START).crossed  # 0.3 less 0.1
    assert one.observe_balance(0.4, START).crossed
