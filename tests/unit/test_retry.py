"""Whether to try again, and when: tenacity's strategies on made-up states, without sleeping."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import Future, RetryCallState, wait_fixed, wait_none

from airflow_stability import errors
from airflow_stability.client.retry import (
    build_retrying,
    is_worth_retrying,
    parse_retry_after,
    wait_retry_after,
    with_jitter,
)
from airflow_stability.errors import (
    StabilityError,
    StabilityPermanentError,
    StabilityRateLimitError,
    StabilityTransientError,
    StabilityUnavailableError,
)

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
CLASSES = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, StabilityError)
]


def state_after(error: BaseException, *, attempt: int = 1) -> RetryCallState:
    state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})
    state.attempt_number = attempt
    state.outcome = Future(attempt)
    state.outcome.set_exception(error)
    return state


@pytest.mark.parametrize("kind", CLASSES)
def test_only_what_may_pass_is_tried_again(kind):
    assert is_worth_retrying(kind("x")) is issubclass(kind, StabilityTransientError)


def test_the_server_can_forbid_another_attempt_but_not_demand_one():
    assert not is_worth_retrying(StabilityUnavailableError("x", temporary=False))
    assert is_worth_retrying(StabilityUnavailableError("x", temporary=True))
    assert not is_worth_retrying(StabilityPermanentError("x", temporary=True))


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), KeyboardInterrupt()])
def test_a_bug_is_not_tried_again(error):
    assert not is_worth_retrying(error)


@given(st.floats(0, 1e7))
def test_the_wait_is_never_shorter_than_told_and_at_most_a_tenth_longer(told):
    wait = wait_retry_after(backoff=wait_none())(state_after(StabilityRateLimitError("x", retry_after=told)))
    assert told <= wait <= told * 1.1 + 1e-6


def test_a_short_wait_that_was_told_does_not_shorten_the_backoff():
    wait = wait_retry_after(backoff=wait_fixed(7))
    assert wait(state_after(StabilityUnavailableError("x", retry_after=0.0))) == 7
    assert wait(state_after(StabilityUnavailableError("x"))) == 7
    assert wait(state_after(ValueError("x"))) == 7


def test_jitter_spreads_callers():
    assert len({with_jitter(60) for _ in range(20)}) > 10


@pytest.mark.parametrize(
    ("attempt", "most"), [(1, 0.5), (2, 1), (3, 2), (6, 16), (7, 30), (12, 30), (5000, 30)]
)
def test_backoff_has_full_jitter_from_half_a_second_to_thirty(attempt, most):
    state = state_after(StabilityUnavailableError("x"), attempt=attempt)
    waits = [build_retrying(120).wait(state) for _ in range(200)]
    assert 0 <= min(waits) < most * 0.2
    assert most * 0.8 < max(waits) <= most


class Failing:
    """Raises the given errors one after the other, the last of them for ever."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        error = self.errors[min(self.calls, len(self.errors)) - 1]
        if isinstance(error, Exception):
            raise error
        return error


def test_a_call_that_fails_once_succeeds_the_second_time(clock):
    assert build_retrying(120)(Failing(StabilityUnavailableError("x"), "done")) == "done"
    assert len(clock.waits) == 1


def test_rate_limit_waits_out_the_lockout(clock):
    build_retrying(120)(Failing(StabilityRateLimitError("x", retry_after=60.0), "done"))
    assert 60 <= clock.waits[0] <= 66


@pytest.mark.parametrize("told", [120.0, 121.0, 3600.0])
def test_a_wait_that_does_not_fit_is_not_begun_and_the_error_says_how_long_it_is(clock, told):
    failing = Failing(StabilityRateLimitError("x", retry_after=told))
    with pytest.raises(StabilityRateLimitError) as failure:
        build_retrying(120)(failing)
    assert failure.value.retry_after == told
    assert (failing.calls, clock.waits) == (1, [])


def test_a_second_lockout_does_not_fit_the_default_deadline(clock):
    failing = Failing(StabilityRateLimitError("x", retry_after=60.0))
    with pytest.raises(StabilityRateLimitError):
        build_retrying(120)(failing)
    assert failing.calls == 2
    assert clock.now - 1000 < 120


def test_an_outage_is_ridden_out_until_the_deadline_and_not_beyond(clock):
    failing = Failing(StabilityUnavailableError("x"))
    with pytest.raises(StabilityUnavailableError):
        build_retrying(120)(failing)
    assert failing.calls > 5
    assert sum(clock.waits) < 120


def test_a_deadline_of_zero_means_one_attempt(clock):
    failing = Failing(StabilityUnavailableError("x"))
    with pytest.raises(StabilityUnavailableError):
        build_retrying(0)(failing)
    assert failing.calls == 1


def test_a_permanent_failure_ends_the_call_as_it_is(clock):
    error = StabilityPermanentError("x")
    failing = Failing(error)
    with pytest.raises(StabilityPermanentError) as failure:
        build_retrying(120)(failing)
    assert failure.value is error
    assert failing.calls == 1


def test_a_retry_is_logged_with_its_reason_and_the_wait(clock, caplog):
    caplog.set_level(logging.INFO)
    build_retrying(120)(Failing(StabilityRateLimitError("It happened.", retry_after=60.0), "done"))
    assert len(caplog.messages) == 1
    assert caplog.messages[0] == f"It happened. Retrying in {clock.waits[0]:.1f} s."


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("0x10", None),
        ("٦٠", None),  # digits, but not ASCII ones
        ("²", None),
        ("0", 0.0),
        ("7", 7.0),
        (" 60 ", 60.0),
        ("5, 120", 120.0),
        ("9" * 5000, 86400.0),
        ("Fri, 01 May 2026 12:01:30 GMT", 90.0),
        ("Friday, 01-May-26 12:01:30 GMT", 90.0),
        ("Fri, 01 May 2026 14:01:30 +0200", 90.0),
        ("Fri, 01 May 2026 12:01:30 -0000", 90.0),  # a naive time to Python
        ("Fri, 01 May 2026 11:00:00 GMT", 0.0),
        ("Fri, 01 May 9999 12:00:00 GMT", 86400.0),
        ("Fri, 01 May 99999 12:00:00 GMT", None),
        ("Fri, 41 May 2026 12:00:00 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(header, seconds):
    assert parse_retry_after(header, now=NOW) == seconds


@given(st.integers(0, 86400))
def test_a_date_says_the_same_as_seconds(seconds):
    date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert parse_retry_after(date, now=NOW) == parse_retry_after(str(seconds), now=NOW) == seconds


@given(
    st.one_of(
        st.text(),
        st.from_regex(
            r"\A(Mon|Fri)?,? ?[0-9]{0,3}[ -](May|Foo)[ -][0-9]{0,6} [0-9:.]{0,12} ?(GMT|[+-][0-9]{0,6})?\Z"
        ),
    )
)
def test_any_retry_after_is_a_bounded_number_of_seconds_or_nothing(header):
    seconds = parse_retry_after(header, now=NOW)
    assert seconds is None or 0 <= seconds <= 86400
