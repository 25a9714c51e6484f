from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from airflow_stability.errors import (
    StabilityContentFilteredError,
    StabilityJobPendingError,
    StabilityModeratedError,
    StabilityNetworkError,
    StabilityOutcomeUnknownError,
    StabilityPayloadTooLargeError,
    StabilityPaymentRequiredError,
    StabilityRateLimitError,
    StabilityRequestError,
    StabilityTimeoutError,
    StabilityUnavailableError,
)
from airflow_stability.rules.gate import Gate
from airflow_stability.rules.spending import (
    GiveUp,
    Payments,
    Run,
    Spending,
    SpendState,
    Wait,
    final_text,
    is_refusal,
    what_counts,
    why_no_result,
)
from airflow_stability.rules.wording import NO_WAIT, PAY_AGAIN

NOW = datetime(2026, 11, 25, 10, 0, tzinfo=UTC)
REFUSED = StabilityPaymentRequiredError("answered 402.")


def spending(state=SpendState(), *, stateful=True, credits=3, **changes):  # noqa: B008  # it is frozen
    arguments = {"wait_timeout": 3600.0, "max_refusals": 3, "poke_interval": 60.0, "min_wait": 10.0}
    return Spending(Gate(0, expected_credits=credits, stateful=stateful), state, **arguments | changes)


def poll(one, credits, now=NOW):
    return one.gate.observe_balance(credits, now)


def refuse(one, before=5.0, after=5.0, *, maybe_paid=0, durably=0, now=NOW):
    """Return what follows a 402 of a function that ran at one balance and left another."""
    assert isinstance(one.after_poll(poll(one, before), now), Run)
    return one.after_refusal(REFUSED, Payments(maybe_paid, durably), poll(one, after), now)


@pytest.mark.parametrize(
    ("state", "stateful", "replays"),
    [
        (SpendState(try_number=1), True, False),
        (SpendState(try_number=2), True, True),
        (SpendState(try_number=1, last_refusal="402"), True, True),
        (SpendState(try_number=1, rest_refused_at=0.0), True, True),
        (SpendState(try_number=1), False, True),  # it does not remember
    ],
)
def test_a_task_that_may_have_run_before_replays(state, stateful, replays):
    assert spending(state, stateful=stateful).replays is replays


def test_the_function_runs_when_the_balance_covers_it():
    assert spending().after_poll(spending().gate.observe_balance(3.0, NOW), NOW) == Run()


def test_too_little_credit_waits_without_a_pause_for_as_long_as_is_left():
    one = spending(SpendState(seconds_waited=600.0))

    step = one.after_poll(poll(one, 2.9), NOW)

    assert (step.pause, step.time_left) == (0.0, 3000.0)


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

    step = one.after_refusal(StabilityRateLimitError("429", retry_after=75.0), Payments(), None, NOW)

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
        (ValueError(""), 0, False),
    ],
)
def test_which_errors_send_the_task_back_to_waiting(error, maybe_paid, waits):
    assert is_refusal(error, Payments(maybe_paid)) is waits


@pytest.mark.parametrize("error", [REFUSED, StabilityRateLimitError("")])
@pytest.mark.parametrize("stateful", [True, False])
def test_payments_that_need_not_be_made_again_never_stand_in_the_way_of_another_run(error, stateful):
    assert is_refusal(error, Payments(2, durably=2), stateful=stateful)


def test_a_task_that_remembers_nothing_does_not_wait_after_a_payment():
    assert not is_refusal(REFUSED, Payments(1), stateful=False)
    assert not is_refusal(REFUSED, Payments(2, durably=1), stateful=False)
    assert is_refusal(REFUSED, Payments(), stateful=False)


# What a group of exceptions comes to

UNKNOWN = StabilityOutcomeUnknownError("No complete response.")
PENDING = StabilityJobPendingError("Not finished.")
MODERATED = StabilityModeratedError("Not with this prompt.", status=403)
LOCKED_OUT = StabilityRateLimitError("429")
OWN = ValueError("The frame is broken.")
INTERRUPTED = KeyboardInterrupt()


def test_an_exception_that_is_no_group_counts_itself():
    assert what_counts(OWN) is OWN


@pytest.mark.parametrize(
    ("graver", "other"),
    list(pairwise([UNKNOWN, INTERRUPTED, PENDING, REFUSED, MODERATED, LOCKED_OUT, OWN])),
    ids=lambda error: type(error).__name__,
)
def test_the_gravest_exception_of_a_group_counts(graver, other):
    for errors in ([graver, other], [other, graver]):
        assert what_counts(BaseExceptionGroup("in a task group", errors)) is graver


def test_a_group_in_a_group_counts_too():
    inner = ExceptionGroup("inner", [OWN, ExceptionGroup("innermost", [REFUSED])])

    assert what_counts(ExceptionGroup("outer", [ValueError(), inner])) is REFUSED


# Which failures are final


@pytest.mark.parametrize(
    "error", [MODERATED, StabilityContentFilteredError(""), StabilityPayloadTooLargeError("")]
)
@pytest.mark.parametrize("retry_after_paying", [True, False])
def test_an_error_about_the_content_of_a_call_is_never_retried(error, retry_after_paying):
    assert final_text(error, Payments(), retry_after_paying=retry_after_paying)


@pytest.mark.parametrize(
    "error", [OWN, INTERRUPTED, StabilityRequestError("", status=400), REFUSED, LOCKED_OUT]
)
@pytest.mark.parametrize(
    ("payments", "final"),
    [
        (Payments(), False),
        (Payments(1), True),
        (Payments(3, durably=3), False),
        (Payments(3, durably=2), True),
    ],
)
def test_any_other_error_is_final_if_a_retry_would_pay_again(error, payments, final):
    assert (final_text(error, payments, retry_after_paying=False) is not None) is final
    assert final_text(error, payments, retry_after_paying=True) is None


def test_an_unknown_outcome_is_final_unless_the_user_takes_the_risk():
    assert final_text(UNKNOWN, Payments(), retry_after_paying=False) is not None
    assert final_text(UNKNOWN, Payments(1, durably=1), retry_after_paying=False) is not None
    assert final_text(UNKNOWN, Payments(1), retry_after_paying=True) is None


@pytest.mark.parametrize(
    ("error", "payments", "text"),
    [
        (MODERATED, Payments(), "Not with this prompt. Airflow's retries are not used."),
        (
            OWN,
            Payments(3, durably=1),
            (
                "ValueError: The frame is broken. 2 calls of this run may have been paid for. "
                f"Airflow's retries are not used. {PAY_AGAIN}"
            ),
        ),
        (
            INTERRUPTED,
            Payments(1),
            (
                "KeyboardInterrupt. 1 call of this run may have been paid for. "
                f"Airflow's retries are not used. {PAY_AGAIN}"
            ),
        ),
        (
            REFUSED,
            Payments(2),
            (
                "answered 402. 2 calls of this run may have been paid for. Airflow's retries are not used. "
                f"{NO_WAIT} {PAY_AGAIN}"
            ),
        ),
    ],
)
def test_the_text_says_what_happened_and_how_many_calls_may_have_been_paid_for(error, payments, text):
    assert final_text(error, payments, retry_after_paying=False) == text


BYTES = "the function has returned an object of type bytes"


@pytest.mark.parametrize(
    ("result", "facts", "text"),
    [
        (b"PNG", {"can_hold": False}, f"XCom cannot hold the result: {BYTES}. Save the picture, and"),
        (
            {"image": b"PNG"},
            {"can_hold": False, "multiple_outputs": True},
            "XCom cannot hold the result: the",
        ),
        (
            ["PNG"],
            {"multiple_outputs": True},
            "multiple_outputs needs a dict, but the function has returned an",
        ),
        (
            {1: "PNG"},
            {"multiple_outputs": True},
            "multiple_outputs needs a dict, but a key of what the function",
        ),
        (
            "PNG",
            {"mapped_over": True},
            "A task that is mapped over the result needs a list or a dict, but the",
        ),
        (b"PNG", {"mapped_over": True}, f"needs a list or a dict, but {BYTES}."),
        (
            None,
            {"mapped_over": True},
            "needs a list or a dict, but the function has returned an object of type",
        ),
    ],
)
def test_a_result_that_cannot_be_returned_is_named_by_its_type_only(result, facts, text):
    reason = why_no_result(result, **{"can_hold": True, **facts})

    assert text in reason
    assert "PNG" not in reason


@pytest.mark.parametrize(
    ("result", "facts"),
    [
        ("1.png", {}),
        (None, {}),
        (None, {"multiple_outputs": True}),
        ({"path": "1.png"}, {"multiple_outputs": True}),
        (["1.png"], {"mapped_over": True}),
        (("1.png",), {"mapped_over": True}),
        ({"path": "1.png"}, {"mapped_over": True}),
    ],
)
def test_any_other_result_can_be_returned(result, facts):
    assert why_no_result(result, can_hold=True, **facts) is None


# A run whose payments need not be made again


def test_the_rest_of_a_run_waits_for_more_than_it_was_refused_at():
    one = spending(credits=15)

    step = refuse(one, 15.0, 1.5, maybe_paid=2, durably=2)

    assert (one.gate.minimum_credits, one.gate.expected_credits) == (1.5, 0.0)
    assert (step.state.rest_refused_at, step.state.refusals) == (1.5, 0)
    again = spending(SpendState.from_memory(json.loads(json.dumps(asdict(step.state)))), credits=15)
    assert isinstance(again.after_poll(poll(again, 1.5), NOW), Wait)
    assert again.after_poll(poll(again, 9.0), NOW) == Run()


@pytest.mark.parametrize(
    ("after", "minimum"), [(2.0, 2.0), (120.0, 15.0), (-3.0, 0.0)], ids=["low", "enough", "in debt"]
)
def test_the_rest_of_a_run_never_waits_for_more_than_a_whole_one(after, minimum):
    one = spending(credits=15)
    step = refuse(one, 120.0, after, maybe_paid=1, durably=1)

    assert (one.gate.minimum_credits, step.state.refusals) == (minimum, 0)


def test_a_rest_that_is_refused_again_is_still_a_rest():
    one = spending(SpendState(rest_refused_at=1.0), credits=15)

    step = refuse(one, 2.0, 2.0)

    assert (step.state.rest_refused_at, step.state.refusals) == (2.0, 0)


def test_a_rest_that_is_refused_with_enough_for_a_whole_run_counts():
    assert refuse(spending(SpendState(rest_refused_at=1.0), credits=15), 20.0, 20.0).state.refusals == 1


def test_a_payment_that_must_be_made_again_ends_the_rest():
    one = spending(SpendState(rest_refused_at=1.0), credits=15)

    step = refuse(one, 9.0, 6.0, maybe_paid=2, durably=1)

    assert (step.state.rest_refused_at, step.state.refusals) == (None, 1)
    assert (one.gate.minimum_credits, one.gate.expected_credits) == (0.0, 15.0)


def test_a_rest_waits_for_any_credit_if_the_balance_is_not_known():
    one = spending(credits=15)
    one.after_poll(poll(one, 15.0), NOW)
    failed = one.gate.observe_failure(StabilityTimeoutError(""), NOW)
    one.after_refusal(REFUSED, Payments(2, durably=2), failed, NOW)

    assert (one.gate.minimum_credits, one.gate.expected_credits) == (0.0, 0.0)


def test_a_timeout_does_not_call_the_balance_enough_that_was_enough_for_a_rest_only():
    one = spending(SpendState(refusals=1, last_refusal="answered 402.", rest_refused_at=1.0), credits=15)

    assert one.timeout_text("so it is.", 9.0) == "so it is. The last refusal: answered 402."


def test_the_state_adds_up_what_was_waited():
    assert SpendState(seconds_waited=5.0).resumed(90.0).seconds_waited == 95.0


def test_the_state_of_a_rescheduled_task_is_the_time_since_its_first_reschedule():
    state = SpendState.rescheduled(NOW - timedelta(seconds=80), NOW)

    assert (state.seconds_waited, state.with_next_pause(1.0).last_pause) == (80.0, 80.0)


def test_the_state_comes_back_from_json_less_what_another_release_has_added():
    state = SpendState(2, 5.0, 60.0, 1, "answered 402.", 1.5)
    stored = json.loads(json.dumps(asdict(state))) | {"of_a_later_release": 1}

    assert SpendState.from_memory(stored) == state
    assert SpendState.from_memory({}) == SpendState()


@pytest.mark.parametrize(("balance", "runs"), [(0.0, True), (0.5, True), (-0.5, False)])
def test_a_run_that_spends_nothing_needs_a_balance_of_0(balance, runs):
    one = spending(credits=0)

    assert isinstance(one.after_poll(poll(one, balance), NOW), Run) is runs
    assert (one.gate.minimum_credits, one.gate.expected_credits) == (None, 0.0)


def test_a_run_that_spends_nothing_and_is_refused_is_not_repeated_for_ever():
    one = spending(credits=0, max_refusals=1)

    step = refuse(one, 0.0, 0.0)

    assert step.text.startswith("The balance is 0, the call is still refused")


@pytest.mark.parametrize(
    ("stateful", "answered", "pause"),
    [
        (True, True, 0.0),  # the triggerer asks the ledger at each balance
        (True, False, 120.0),  # it may answer there and not here
        (False, True, 60.0),
        (False, False, 60.0),
    ],
)
def test_a_run_without_a_hold_waits_as_for_credit(stateful, answered, pause):
    one = spending(SpendState(last_pause=60.0), stateful=stateful)

    assert one.after_obstacle("the budget is used up.", NOW, answered=answered).pause == pause


def test_a_run_without_a_hold_in_time_says_why():
    one = spending(SpendState(seconds_waited=3600.0, last_refusal="answered 402."))

    assert one.after_obstacle("the budget is used up.", NOW, answered=True) == GiveUp(
        "Timed out after 3600 s: the budget is used up. The last refusal: answered 402."
    )
