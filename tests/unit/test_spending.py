from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import pytest

from airflow_stability.errors import (
    StabilityNetworkError,
    StabilityPaymentRequiredError,
    StabilityRateLimitError,
    StabilityRequestError,
    StabilityTimeoutError,
    StabilityUnavailableError,
)
from airflow_stability.rules.gate import Gate
from airflow_stability.rules.spending import GiveUp, Run, Spending, SpendState, Wait, is_refusal

NOW = datetime(2026, 11, 25, 10, 0, tzinfo=UTC)
REFUSED = StabilityPaymentRequiredError("answered 402.")


def spending(state=SpendState(), *, stateful=True, **changes):  # noqa: B008  # it is frozen
    arguments = {"wait_timeout": 3600.0, "max_refusals": 3, "poke_interval": 60.0, "min_wait": 10.0}
    return Spending(Gate(0, expected_credits=3, stateful=stateful), state, **arguments | changes)


def poll(one, credits, now=NOW):
    return one.gate.observe_balance(credits, now)


def refuse(one, before=5.0, after=5.0, *, maybe_paid=0, now=NOW):
    """Return what follows a 402 of a function that ran at one balance and left another."""
    assert isinstance(one.after_poll(poll(one, before), now), Run)
    return one.after_refusal(REFUSED, maybe_paid, poll(one, after), now)


def test_the_function_runs_when_the_balance_covers_it():
    assert spending().after_poll(spending().gate.observe_balance(3.0, NOW), NOW) == Run()


def test_too_little_credit_waits_without_a_pause_for_as_long_as_is_left():
    one = spending(SpendState(seconds_waited=600.0))

    step = one.after_poll(poll(one, 2.9), NOW)

    assert (step.pause, step.time_left) == (0.0, 3000.0)
    assert (step.state.since, step.state.waiting_since) == (NOW.isoformat(), NOW.isoformat())


def test_a_poll_without_a_balance_pauses_a_task_that_remembers():
    one = spending(SpendState(last_pause=60.0))
    assert one.after_poll(one.gate.observe_failure(StabilityTimeoutError(""), NOW), NOW).pause == 120.0

    one = spending(SpendState(last_pause=60.0), stateful=False)
    assert one.after_poll(one.gate.observe_failure(StabilityTimeoutError(""), NOW), NOW).pause == 60.0


@pytest.mark.parametrize(
    ("last_pause", "poke_interval", "pause"),
    [
        (0.0, 60.0, 60.0),
        (60.0, 60.0, 120.0),
        (400.0, 60.0, 800.0),
        (800.0, 60.0, 900.0),
        (0.0, 3600.0, 3600.0),
    ],
)
def test_each_pause_is_twice_as_long_up_to_15_minutes(last_pause, poke_interval, pause):
    one = spending(SpendState(last_pause=last_pause), poke_interval=poke_interval)

    assert refuse(one).pause == pause


@pytest.mark.parametrize(
    ("before", "after", "maybe_paid", "counts"),
    [(5.0, 5.0, 0, 1), (5.0, 4.0, 0, 1), (5.0, 2.0, 0, 0), (5.0, 6.0, 0, 0), (5.0, 2.0, 1, 1)],
)
def test_a_refusal_counts_unless_low_credit_explains_it(before, after, maybe_paid, counts):
    assert refuse(spending(), before, after, maybe_paid=maybe_paid).state.refusals == counts


def test_it_gives_up_after_as_many_refusals_and_says_why():
    step = refuse(spending(SpendState(refusals=2)), 120.0, 120.0)

    assert step == GiveUp(
        "The balance is 120, the call is still refused: is another organization billed? Image generation "
        "bills the key's default organization, whichever is watched. Or does a run cost more than the 3 "
        "credits that this task expects? The last refusal: answered 402."
    )


def test_by_reschedule_refusals_are_not_counted():
    assert isinstance(refuse(spending(SpendState(refusals=9), stateful=False)), Wait)


def test_a_lock_out_is_longer_than_the_pause_and_counts_for_the_balance_too():
    one = spending()
    one.after_poll(poll(one, 5.0), NOW)

    step = one.after_refusal(StabilityRateLimitError("429", retry_after=75.0), 0, None, NOW)

    assert step.pause == 75.0
    assert one.gate.seconds_until_poll(NOW) == 75.0
    assert step.state.refusals == 0


def test_the_time_is_over():
    one = spending(SpendState(seconds_waited=3600.0))

    step = one.after_poll(poll(one, 2.5), NOW)

    assert step.text.startswith(
        "Timed out after 3600 s: the key's default organization has 2.5 credits, needs 3"
    )


def test_by_reschedule_a_lock_out_beyond_the_timeout_ends_the_wait_at_once():
    one = spending(SpendState(seconds_waited=3590.0), stateful=False)
    failure = one.gate.observe_failure(StabilityRateLimitError("429", retry_after=60.0), NOW)

    step = one.after_poll(failure, NOW)

    assert "the server allows no call until 2026-11-25 10:01:00 UTC" in step.text


@pytest.mark.parametrize(("poke_interval", "pause"), [(60.0, 10.0), (3.0, 3.0)])
def test_the_last_wait_by_reschedule_is_long_enough_for_the_scheduler_to_notice(poke_interval, pause):
    one = spending(
        SpendState(seconds_waited=89.9), stateful=False, wait_timeout=90.0, poke_interval=poke_interval
    )

    assert one.after_poll(poll(one, 0.0), NOW).pause == pause


@pytest.mark.parametrize(
    ("refusals", "credits", "text"),
    [
        (0, 5.0, "so it is. The last refusal: answered 402."),
        (1, 1.0, "so it is. The last refusal: answered 402."),
        (2, 5.0, "so it is. The balance was enough, the call is still refused: "),
    ],
)
def test_a_timeout_in_the_triggerer_says_what_was_refused(refusals, credits, text):
    one = spending(SpendState(refusals=refusals, last_refusal="answered 402."))

    assert one.timeout_text("so it is.", credits).startswith(text)


@pytest.mark.parametrize(
    ("error", "maybe_paid", "waits"),
    [
        (REFUSED, 0, True),
        (REFUSED, 2, True),
        (StabilityRateLimitError(""), 0, True),
        (StabilityRateLimitError(""), 1, False),
        (StabilityUnavailableError("", status=503), 0, True),
        (StabilityUnavailableError("", status=503), 1, False),
        (StabilityUnavailableError("", status=502), 0, False),
        (StabilityNetworkError(""), 0, True),
        (StabilityTimeoutError(""), 1, False),
        (StabilityRequestError("", status=400), 0, False),
    ],
)
def test_which_errors_send_the_task_back_to_waiting(error, maybe_paid, waits):
    assert is_refusal(error, maybe_paid) is waits


def test_the_state_adds_up_what_was_waited():
    waiting = replace(SpendState(seconds_waited=5.0), waiting_since=NOW.isoformat())

    resumed = waiting.resumed(NOW + timedelta(seconds=90))

    assert (resumed.seconds_waited, resumed.waiting_since) == (95.0, None)
    assert resumed.resumed(NOW + timedelta(seconds=900)) == resumed


def test_the_state_of_a_rescheduled_task_is_the_time_since_its_first_reschedule():
    state = SpendState.rescheduled(NOW - timedelta(seconds=80), NOW)

    assert (state.seconds_waited, state.with_next_pause(1.0).last_pause) == (80.0, 80.0)


def test_the_state_comes_back_from_json_less_what_another_release_has_added():
    state = SpendState(2, NOW.isoformat(), None, 5.0, 60.0, 1, "answered 402.")
    stored = json.loads(json.dumps(asdict(state))) | {"of_a_later_release": 1}

    assert SpendState.from_memory(stored) == state
    assert SpendState.from_memory({}) == SpendState()
