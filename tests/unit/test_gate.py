from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from airflow_stability.errors import (
    StabilityAuthenticationError,
    StabilityRateLimitError,
    StabilityUnavailableError,
)
from airflow_stability.rules.gate import GRACE, Gate, Verdict
from airflow_stability.rules.log_throttle import LOG_EVERY

UNKNOWN = "the balance of the key's default organization is unknown, needs more than 50."

START = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


def after(**time):
    return START + timedelta(**time)


def outage(error_id="a1", **fields):
    return StabilityUnavailableError(f"answered 503 (error id {error_id}).", status=503, **fields)


REFUSED = StabilityAuthenticationError("answered 401.", status=401)


@pytest.mark.parametrize(
    ("credits", "minimum", "verdict"),
    [
        (8.000000000000002, 8, Verdict.OPEN),
        (8.0, 8, Verdict.WAIT),
        (8.0, "8", Verdict.WAIT),
        (7.999999999999999, "8.0", Verdict.WAIT),
        (0.0, 0, Verdict.WAIT),
        (0.01, 0, Verdict.OPEN),
        (-3.5, 0, Verdict.WAIT),
    ],
)
def test_opens_on_more_than_the_minimum_only(credits, minimum, verdict):
    assert Gate(minimum).observe_balance(credits, START).verdict is verdict


def test_open_decision_carries_the_balance_as_it_was_sent():
    decision = Gate(0.5).observe_balance(0.6336833840314097, START)

    assert decision.credits == 0.6336833840314097
    assert decision.text == (
        "The gate opens: the key's default organization has 0.6336833840314097 credits, needs more than 0.5."
    )


@pytest.mark.parametrize("minimum", [True, -1, float("nan"), float("inf"), "many", "", [8]])
def test_a_minimum_that_is_none_is_refused(minimum):
    with pytest.raises(ValueError, match="minimum_credits must be a finite number"):
        Gate(minimum)


def test_waiting_says_how_much_there_is_of_how_much():
    decision = Gate(50, organization="org-1").observe_balance(3.2, START)

    assert decision.text == "Waiting: organization org-1 has 3.2 credits, needs more than 50."
    assert decision.should_log


def test_waiting_speaks_at_a_change_and_every_hour_and_not_between():
    gate = Gate(50)

    spoken = [
        gate.observe_balance(credits, after(minutes=minute)).should_log
        for minute, credits in [(0, 3.2), (1, 3.2), (59, 3.2), (60, 3.2), (61, 3.2), (62, 3.1), (63, 3.1)]
    ]

    assert spoken == [True, False, False, True, False, True, False]
    assert timedelta(hours=1) == LOG_EVERY


def test_the_same_failure_with_another_id_is_no_news_but_another_failure_is():
    gate = Gate(50)

    assert gate.observe_failure(outage("a1"), START).should_log
    assert not gate.observe_failure(outage("b2"), after(minutes=1)).should_log
    assert gate.observe_failure(StabilityRateLimitError("429.", status=429), after(minutes=2)).should_log
    assert gate.observe_balance(3.2, after(minutes=3)).should_log


def test_an_outage_neither_opens_nor_fails_however_long_it_lasts():
    gate = Gate(0)
    gate.observe_balance(0.0, START)

    verdicts = {gate.observe_failure(outage(), after(hours=hour)).verdict for hour in range(100)}

    assert verdicts == {Verdict.WAIT}


def test_no_poll_before_the_server_allows_one():
    gate = Gate(50)
    assert gate.seconds_until_poll(START) == 0.0

    gate.observe_failure(outage(retry_after=60.0), START)

    assert gate.seconds_until_poll(after(seconds=15)) == 45.0
    assert gate.seconds_until_poll(after(seconds=60)) == 0.0


def test_a_lock_out_ends_with_the_next_answer_and_with_another_key():
    gate = Gate(50)
    gate.observe_failure(outage(retry_after=60.0), START)
    gate.observe_balance(1.0, after(seconds=1))
    assert gate.seconds_until_poll(after(seconds=1)) == 0.0

    gate.observe_failure(outage(retry_after=60.0), after(seconds=2))
    gate.key_changed()
    assert gate.seconds_until_poll(after(seconds=3)) == 0.0


def test_a_key_that_never_worked_fails_at_once():
    decision = Gate(50).observe_failure(REFUSED, START)

    assert decision.verdict is Verdict.FAIL
    assert decision.text == "answered 401."


def test_a_key_that_worked_has_ten_minutes_from_its_first_refusal():
    gate = Gate(50)
    gate.observe_balance(3.2, START)

    first = gate.observe_failure(REFUSED, after(minutes=5))
    gate.observe_failure(outage(), after(minutes=10))
    last = gate.observe_failure(REFUSED, after(minutes=14, seconds=59))
    failed = gate.observe_failure(REFUSED, after(minutes=15))

    assert timedelta(minutes=10) == GRACE
    assert first.verdict is last.verdict is Verdict.WAIT
    assert "if it is still refused at 2026-11-22 10:15:00 UTC, the task fails. answered 401." in first.text
    assert failed.verdict is Verdict.FAIL
    assert failed.text == "answered 401. The key had worked before."


def test_a_balance_ends_the_grace_and_the_next_refusal_begins_another():
    gate = Gate(50)
    gate.observe_balance(3.2, START)
    gate.observe_failure(REFUSED, after(minutes=1))
    gate.observe_balance(3.2, after(minutes=2))

    assert gate.observe_failure(REFUSED, after(minutes=20)).verdict is Verdict.WAIT


def test_a_new_key_that_never_worked_has_no_grace():
    gate = Gate(50)
    gate.observe_balance(3.2, START)
    gate.observe_failure(REFUSED, after(minutes=1))
    gate.key_changed()

    assert gate.observe_failure(REFUSED, after(minutes=1)).verdict is Verdict.FAIL


def test_timeout_says_too_little_credit():
    gate = Gate(50, organization="org-1")
    gate.observe_failure(outage(), START)
    gate.observe_balance(3.2, after(minutes=1))

    assert gate.timeout_text(3600.0) == (
        "Timed out after 3600 s: organization org-1 has 3.2 credits, needs more than 50. Buy credits at "
        "https://platform.stability.ai/account/credits; a top-up takes 1 to 15 minutes to show."
    )


def test_timeout_says_no_answer_with_the_last_balance_and_how_many_polls_failed():
    gate = Gate(50)
    gate.observe_balance(3.2, after(minutes=2))
    for minute in range(3, 12):
        gate.observe_failure(outage("c3"), after(minutes=minute))

    assert gate.timeout_text(600) == (
        f"Timed out after 600 s: {UNKNOWN} Last balance 3.2 at "
        "2026-11-22 10:02:00 UTC; 9 polls failed since. The last failure: answered 503 (error id c3)."
    )


def test_timeout_writes_long_times_in_seconds():
    gate = Gate(50)
    gate.observe_balance(3.2, START)

    assert gate.timeout_text(30 * 86400.0).startswith("Timed out after 2592000 s: ")


def test_a_gate_that_is_made_anew_for_each_poll_does_not_talk_of_earlier_ones():
    gate = Gate(50, stateful=False)

    decision = gate.observe_failure(outage("c3"), START)

    assert decision.text == (f"Waiting: {UNKNOWN} answered 503 (error id c3).")
    assert gate.timeout_text(600) == (
        f"Timed out after 600 s: {UNKNOWN} The last failure: answered 503 (error id c3)."
    )


def test_a_wait_beyond_the_timeout_is_given_up_with_the_time_that_the_server_named():
    gate = Gate(50, stateful=False)
    gate.observe_failure(outage("c3", retry_after=7200.0), START)

    assert gate.locked_out_text(3600, START) == (
        "Gave up, since the server allows no call until 2026-11-22 12:00:00 UTC and that is after the "
        f"timeout of 3600 s: {UNKNOWN} The last failure: answered 503 "
        "(error id c3)."
    )


def test_a_gate_goes_on_from_what_was_known_elsewhere():
    gate = Gate(50)
    gate.restore((3.2, START), outage("c3"))

    assert gate.timeout_text(600) == (
        f"Timed out after 600 s: {UNKNOWN} Last balance 3.2 at 2026-11-22 10:00:00 UTC; 1 poll failed since. "
        "The last failure: answered 503 (error id c3)."
    )
    assert gate.observe_failure(REFUSED, after(minutes=1)).verdict is Verdict.WAIT  # the key had worked


def test_timeout_says_that_no_balance_was_ever_read():
    gate = Gate(50)
    gate.observe_failure(outage(), START)

    assert "No balance was read yet; 1 poll failed." in gate.timeout_text(60)


@pytest.mark.parametrize(
    ("credits", "minimum", "expected", "reserved", "verdict"),
    [
        (3.0, 0, 3, 0.0, Verdict.OPEN),
        (2.999999999999999, 0, 3, 0.0, Verdict.WAIT),
        (11.0, 8, 3, 0.0, Verdict.OPEN),
        (10.5, 8, 3, 0.0, Verdict.WAIT),
        (11.0, 8, "3", 0.5, Verdict.WAIT),
        (11.5, 8, 3, 0.5, Verdict.OPEN),
        (0.0, 0, 0, 0.0, Verdict.WAIT),
        (0.5, 0, 0, 0.0, Verdict.OPEN),
        (0.5, 0, 0, 0.5, Verdict.WAIT),
        (8.0, 8, 0, 0.0, Verdict.WAIT),
    ],
)
def test_opens_when_what_is_expected_is_there_beyond_the_minimum(
    credits, minimum, expected, reserved, verdict
):
    gate = Gate(minimum, expected_credits=expected)

    assert gate.observe_balance(credits, START, reserved=reserved).verdict is verdict


@pytest.mark.parametrize("expected", [True, -1, float("nan"), "many", [3]])
def test_an_expectation_that_is_none_is_refused(expected):
    with pytest.raises(ValueError, match="expected_credits must be a finite number"):
        Gate(0, expected_credits=expected)


@pytest.mark.parametrize(
    ("minimum", "reserved", "text"),
    [
        (0, 0.0, "has 2 credits, needs 3."),
        (8, 0.0, "has 2 credits, needs 3 beyond 8."),
        (0, 1.5, "has 2 credits, of which 1.5 are reserved for other tasks, needs 3."),
    ],
)
def test_says_what_is_needed_and_what_is_reserved(minimum, reserved, text):
    gate = Gate(minimum, expected_credits=3)

    assert gate.observe_balance(2.0, START, reserved=reserved).text.endswith(text)
    assert text in gate.timeout_text(60)
    assert "Buy credits" in gate.timeout_text(60)


def test_a_timeout_while_others_had_reserved_it_sends_nobody_shopping():
    gate = Gate(0, expected_credits=3)
    gate.observe_balance(5.0, START, reserved=3.0)

    assert gate.timeout_text(60) == (
        "Timed out after 60 s: the key's default organization has 5 credits, of which 3 are reserved for "
        "other tasks, needs 3."
    )


def test_speaks_when_what_it_waits_for_is_reserved():
    gate = Gate(0, expected_credits=3)

    spoken = [
        gate.observe_balance(credits, after(minutes=minute), reserved=reserved).should_log
        for minute, (credits, reserved) in enumerate([(2.0, 0.0), (2.0, 0.0), (5.0, 3.0), (5.0, 4.0)])
    ]

    assert spoken == [True, False, True, False]


def test_a_budget_stays_the_reason_while_its_ledger_is_asked_again():
    gate = Gate(None, expected_credits=3)
    gate.observe_balance(25, START)
    gate.observe_obstacle("budget images: 9 of 9 credits used or held.", START)
    gate.observe_balance(25, after(minutes=1))

    assert gate.timeout_text(60) == "Timed out after 60 s: budget images: 9 of 9 credits used or held."

    gate.observe_balance(2, after(minutes=2))

    assert "has 2 credits" in gate.timeout_text(60)
