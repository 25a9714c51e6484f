"""What a task that spends does next: run its function, wait, or give up.

A balance may be out of date as soon as it is read. Only the server knows whether a call can be paid for, so
the task finds out by spending. The rules:

- The function runs when the balance covers what it is expected to spend. Otherwise the task waits.
- A 402 response (payment required) sends the task back to waiting. So does a failure which says that nothing
  was accepted (429, 503, no connection), unless an earlier call of the same run may have been charged.
- A call that is durable finds its result when the function runs again, and is not charged again. It never
  stands in the way of another run. After such calls, the run needs less credit than a whole one.
- After any other call that may have been charged, a failure ends the task: Airflow's retries would pay again.
- After a refusal the task pauses before the function runs again: for ``poke_interval`` at first, then for
  twice as long each time, up to 15 minutes.
- The task gives up after ``wait_timeout`` or ``max_refusals`` refusals that low credit does not explain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, TypeGuard

from airflow_stability.errors import (
    StabilityBudgetExhaustedError,
    StabilityContentFilteredError,
    StabilityError,
    StabilityJobPendingError,
    StabilityLedgerUnavailableError,
    StabilityModeratedError,
    StabilityNetworkError,
    StabilityOutcomeUnknownError,
    StabilityPayloadTooLargeError,
    StabilityPaymentRequiredError,
    StabilityRateLimitError,
    StabilityTimeoutError,
)
from airflow_stability.rules import wording
from airflow_stability.rules.gate import Decision, Gate, Verdict, suffices
from airflow_stability.validation import format_number

#: The longest pause after a refusal, in seconds: a top-up takes up to 15 minutes to show in the balance.
MAX_PAUSE = 900.0

#: Errors that are about what a call asks for. The same call is refused each time.
VERDICTS = (StabilityModeratedError, StabilityContentFilteredError, StabilityPayloadTooLargeError)

#: Errors of calls that were not accepted, or not sent. A later call may succeed.
NOTHING_SENT = (
    StabilityRateLimitError,
    StabilityNetworkError,
    StabilityTimeoutError,
    StabilityBudgetExhaustedError,
    StabilityLedgerUnavailableError,
)


@dataclass(frozen=True)
class SpendState:
    """What a task remembers while it waits, as plain JSON types.

    :param try_number: the try that waits.
    :param seconds_waited: seconds for which it waited before.
    :param last_pause: length of its last pause in seconds; 0.0 before the first.
    :param refusals: number of refusals that low credit does not explain.
    :param last_refusal: text of the last refusal.
    :param rest_refused_at: balance at which the rest of a run was refused, after durable payments only; 0.0
        if that balance was not read. None if the next run needs all its credits.
    """

    try_number: int = 0
    seconds_waited: float = 0.0
    last_pause: float = 0.0
    refusals: int = 0
    last_refusal: str | None = None
    rest_refused_at: float | None = None

    @classmethod
    def from_memory(cls, memory: Mapping[str, Any]) -> SpendState:
        """Return the state that was stored. Fields that this release does not know are ignored."""
        return cls(**{each.name: memory[each.name] for each in fields(cls) if each.name in memory})

    @classmethod
    def rescheduled(cls, first_reschedule: datetime, now: datetime) -> SpendState:
        """Return the state of a task that waits by reschedule, and so remembers nothing but its start.

        All the time since then counts as waiting. The next pause is as long as that time.
        """
        # Another worker has noted the first one, and its clock may be ahead.
        passed = max((now - first_reschedule).total_seconds(), 0.0)
        return cls(seconds_waited=passed, last_pause=passed / 2)

    def resumed(self, seconds: float) -> SpendState:
        """Return the state after a wait of so many seconds."""
        return replace(self, seconds_waited=self.seconds_waited + seconds)

    def with_next_pause(self, poke_interval: float) -> SpendState:
        """Return the state with the next pause, which is twice as long as the last one."""
        return replace(self, last_pause=max(poke_interval, min(2 * self.last_pause, MAX_PAUSE)))


@dataclass(frozen=True)
class Run:
    """The function runs now."""


@dataclass(frozen=True)
class Wait:
    """The task waits.

    :param state: what it remembers.
    :param pause: seconds before the function may run again; 0.0 to run it as soon as there is credit.
    :param time_left: seconds of ``wait_timeout`` that are left.
    """

    state: SpendState
    pause: float
    time_left: float


@dataclass(frozen=True)
class GiveUp:
    """The task fails.

    :param text: the reason.
    """

    text: str


@dataclass(frozen=True)
class Payments:
    """The calls of one run that may have been charged.

    :param maybe_paid: how many there are.
    :param durably: how many of them are not charged again when the function runs again.
    """

    maybe_paid: int = 0
    durably: int = 0

    @property
    def unprotected(self) -> int:
        """How many of them would be charged again."""
        return self.maybe_paid - self.durably


def what_counts(error: BaseException) -> BaseException:
    """Return what decides about a run that ended with an exception: of a group, the gravest one in it."""
    return min(_errors_in(error), key=_rank)


def is_refusal(
    error: BaseException, payments: Payments, *, stateful: bool = True
) -> TypeGuard[StabilityError]:
    """Tell whether an exception of the function sends the task back to waiting.

    :param payments: those of the same run.
    :param stateful: whether the task remembers its refusals. Otherwise it would pay again and again.
    """
    if isinstance(error, StabilityPaymentRequiredError):
        return stateful or not payments.unprotected
    return _accepted_nothing(error) and not payments.unprotected


def final_text(error: BaseException, payments: Payments, *, retry_after_paying: bool) -> str | None:
    """Return why a run that ended with an exception is not retried; None if Airflow's retries apply.

    :param error: see :func:`what_counts`.
    :param payments: those of the same run.
    :param retry_after_paying: whether the user accepts that a retry pays again.
    """
    if isinstance(error, VERDICTS):
        return wording.final_text(_text_of(error), payments.unprotected)
    if retry_after_paying or not (payments.unprotected or isinstance(error, StabilityOutcomeUnknownError)):
        return None
    text = wording.final_text(_text_of(error), payments.unprotected)
    if isinstance(error, StabilityPaymentRequiredError):  # see is_refusal: the task remembers nothing
        text = f"{text} {wording.NO_WAIT}"
    return f"{text} {wording.PAY_AGAIN}"


def why_no_result(
    result: object, *, can_hold: bool, multiple_outputs: bool = False, mapped_over: bool = False
) -> str | None:
    """Return why a task cannot return what its function has returned; None if it can.

    The text shows nothing of the result, which may be a picture.

    :param result: the result; None if the task returns none.
    :param can_hold: whether XCom can hold the result.
    :param multiple_outputs: whether each item of the result is an XCom of its own.
    :param mapped_over: whether another task is mapped over the result.
    """
    returned = f"the function has returned an object of type {type(result).__name__}"
    if mapped_over and (not isinstance(result, Sequence | dict) or isinstance(result, str | bytes)):
        return f"A task that is mapped over the result needs a list or a dict, but {returned}."
    if result is None:
        return None
    if multiple_outputs:
        if not isinstance(result, Mapping):
            return f"multiple_outputs needs a dict, but {returned}."
        if not all(isinstance(key, str) for key in result):
            return "multiple_outputs needs a dict, but a key of what the function has returned is no string."
    if not can_hold:
        return f"XCom cannot hold the result: {returned}. Save the picture, and return its path."
    return None


def _errors_in(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [each for inner in error.exceptions for each in _errors_in(inner)]


def _rank(error: BaseException) -> int:
    order = (
        isinstance(error, StabilityOutcomeUnknownError),
        not isinstance(error, Exception),  # Airflow's timeout, for example, whatever was refused meanwhile
        isinstance(error, StabilityJobPendingError),
        isinstance(error, StabilityPaymentRequiredError),
        isinstance(error, VERDICTS),
        _accepted_nothing(error),
        True,
    )
    return order.index(True)


def _accepted_nothing(error: BaseException) -> bool:
    return isinstance(error, NOTHING_SENT) or (isinstance(error, StabilityError) and error.status == 503)


def _text_of(error: BaseException) -> str:
    text = str(error) if isinstance(error, StabilityError) else f"{type(error).__name__}: {error}"
    return text.rstrip(": ")


class Spending:
    """The decisions of one task that spends, for one start on a worker.

    :param gate: the gate of the task, with a minimum of 0 and the credits that a whole run will spend. It is
        stateful if the task remembers its state while it waits.
    :param state: what the task remembers.
    :param wait_timeout: seconds that the task may wait in all.
    :param max_refusals: number of refusals that low credit does not explain after which the task gives up.
    :param poke_interval: seconds between two polls of the balance.
    :param min_wait: the shortest wait by reschedule when the time is nearly over, in seconds.
    """

    def __init__(
        self,
        gate: Gate,
        state: SpendState,
        *,
        wait_timeout: float,
        max_refusals: int,
        poke_interval: float,
        min_wait: float,
    ) -> None:
        self.gate = gate
        self.state = state
        self.wait_timeout = wait_timeout
        self.max_refusals = max_refusals
        self.poke_interval = poke_interval
        self.min_wait = min_wait
        #: Credits that a whole run will spend.
        self.credits = gate.expected_credits
        self._credits_before_run = 0.0
        self._set_gate()

    @property
    def replays(self) -> bool:
        """Whether the task may have had a run before. That run's durable calls are not paid for again."""
        state = self.state
        has_run = state.try_number > 1 or state.last_refusal is not None or state.rest_refused_at is not None
        return has_run or not self.gate.stateful  # a gate without a state remembers no run

    def after_poll(self, decision: Decision, now: datetime) -> Run | Wait | GiveUp:
        """Return what follows a poll that did not fail permanently."""
        if decision.verdict is Verdict.OPEN:
            self._credits_before_run = decision.credits or 0.0
            return Run()
        if self.gate.last_failure is None or not self.gate.stateful:
            return self._wait(0.0, now)
        # A triggerer may get a response where this worker gets none, and would send the task back at once.
        self.state = self.state.with_next_pause(self.poke_interval)
        return self._wait(self.state.last_pause, now)

    def after_refusal(
        self, refusal: StabilityError, payments: Payments, poll: Decision | None, now: datetime
    ) -> Wait | GiveUp:
        """Return what follows a refusal of the function.

        :param refusal: an error for which :func:`is_refusal` is true.
        :param payments: those of the same run.
        :param poll: a poll of the balance after a 402; None after another refusal.
        """
        self.state = replace(self.state.with_next_pause(self.poke_interval), last_refusal=str(refusal))
        self._remember_durable_payments(payments, poll)
        if poll is not None:
            if payments.unprotected or (not payments.durably and self._is_unexplained()):
                self.state = replace(self.state, refusals=self.state.refusals + 1)
            if self.gate.stateful and self.state.refusals >= self.max_refusals:
                balance = format_number(self.gate.last_credits or 0.0)
                return GiveUp(self._refused_text(f"The balance is {balance},"))
        elif refusal.retry_after is not None:
            self.gate.observe_failure(refusal, now)  # the balance must not be polled either
        return self._wait(max(self.state.last_pause, refusal.retry_after or 0.0), now)

    def after_obstacle(self, text: str, now: datetime, *, answered: bool) -> Wait | GiveUp:
        """Return what follows when the ledger holds nothing for a run.

        :param text: the reason.
        :param answered: whether the ledger has answered. If not, it may answer a triggerer, which would send
            the task back at once.
        """
        pause = 0.0
        if self.gate.stateful and not answered:
            self.state = self.state.with_next_pause(self.poke_interval)
            pause = self.state.last_pause
        step = self._wait(pause, now)
        if isinstance(step, GiveUp):
            return GiveUp(self.timeout_text(wording.timeout_text(self.wait_timeout, text), None))
        return step

    def after_job_pending(self, now: datetime, timeout_text: str) -> Wait | GiveUp:
        """Return what follows when the function waits for an asynchronous job.

        :param timeout_text: why the task gives up, if it may not wait any more.
        """
        # The job is paid for: what is left of the run needs less credit than all of it.
        self.state = replace(self.state, rest_refused_at=self.state.rest_refused_at or 0.0)
        step = self._wait(0.0, now)
        return GiveUp(timeout_text) if isinstance(step, GiveUp) else step

    def timeout_text(self, text: str, credits: float | None) -> str:
        """Return why the task gives up after ``wait_timeout``.

        :param text: the gate's reason.
        :param credits: the balance that was read last; None if none was read.
        """
        state = self.state
        if state.refusals and credits is not None and suffices(credits, None, self.credits):
            return self._refused_text(f"{text} The balance was enough,")
        return f"{text} The last refusal: {state.last_refusal}" if state.last_refusal else text

    def _remember_durable_payments(self, payments: Payments, poll: Decision | None) -> None:
        """Remember the balance at which a run stopped whose payments so far need not be made again."""
        if payments.unprotected:
            self.state = replace(self.state, rest_refused_at=None)
        elif payments.durably or self.state.rest_refused_at is not None:
            known = poll is not None and self.gate.last_failure is None
            balance = (self.gate.last_credits or 0.0) if known else 0.0
            self.state = replace(self.state, rest_refused_at=max(0.0, min(balance, self.credits)))
        self._set_gate()

    def _set_gate(self) -> None:
        """Let the gate ask for the credits of a whole run, or for more than those that were refused."""
        rest = self.state.rest_refused_at
        if rest is not None:
            self.gate.minimum_credits, self.gate.expected_credits = rest, 0.0
        else:
            # A run that spends nothing needs no more than a balance of 0.
            self.gate.minimum_credits = 0.0 if self.credits else None
            self.gate.expected_credits = self.credits

    def _is_unexplained(self) -> bool:
        # Enough credit before and after: nobody else has spent it, and nobody has topped up meanwhile.
        credits = self.gate.last_credits
        if credits is None or self.gate.last_failure is not None:
            return False
        return suffices(credits, None, self.credits) and credits <= self._credits_before_run

    def _wait(self, pause: float, now: datetime) -> Wait | GiveUp:
        left = self.wait_timeout - self.state.seconds_waited
        if left <= 0:
            text = self.gate.timeout_text(self.wait_timeout)
            return GiveUp(self.timeout_text(text, self.gate.last_credits))
        if not self.gate.stateful:
            locked_out = self.gate.seconds_until_poll(now)
            if locked_out > left:  # it would not remember that after the wait, and would poll
                text = self.gate.locked_out_text(self.wait_timeout, now)
                return GiveUp(self.timeout_text(text, self.gate.last_credits))
            pause = min(max(pause, self.poke_interval, locked_out), max(left, self.min_wait))
        return Wait(self.state, pause, left)

    def _refused_text(self, beginning: str) -> str:
        return (
            f"{beginning} the call is still refused: is another organization billed? Image generation bills "
            "the key's default organization, whichever is watched. Or does a run cost more than the "
            f"{format_number(self.credits)} credits that this task expects? The last refusal: "
            f"{self.state.last_refusal}"
        )
