"""The decision of every sensor mode and of every task that spends: is there enough credit?

A driver (poke, reschedule, trigger) passes a balance or a failure to the gate. The gate returns a
:class:`Decision`. The rules:

- The gate opens when the credits are more than the minimum; exactly the minimum is not enough. With expected
  credits, that much must also be there beyond the minimum and not be reserved for others.
- A transient failure neither opens the gate nor fails it: an unknown balance is not a low balance.
- A permanent failure fails the gate. A key that has worked for this gate gets ten minutes of grace first,
  because a key and its connection are not replaced at the same moment.
- The balance is not polled before the server allows a call.
- The gate logs when it starts to wait, at each change, every hour, and at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from airflow_stability.errors import StabilityError, StabilityPermanentError
from airflow_stability.rules import wording
from airflow_stability.rules.credits import total
from airflow_stability.rules.lockout import Lockout
from airflow_stability.rules.log_throttle import LogThrottle
from airflow_stability.validation import check_credits, check_organization

#: How long a key that has worked before may be refused before the gate fails.
GRACE = timedelta(minutes=10)


def suffices(credits: float, minimum: float | None, expected: float, *, reserved: float = 0.0) -> bool:
    """Tell whether there is enough credit.

    :param credits: the balance.
    :param minimum: credits that must be exceeded; None if the expected credits are enough.
    :param expected: credits that are to be spent; 0.0 where that is not known.
    :param reserved: credits of the balance that are reserved for others.
    """
    left = total(credits, -reserved)
    return (minimum is None or left > minimum) and left >= total(minimum or 0.0, expected)


class Verdict(Enum):
    """What a driver does next."""

    OPEN = "open"
    WAIT = "wait"
    FAIL = "fail"


@dataclass(frozen=True)
class Decision:
    """What one balance or failure means for the gate.

    :param verdict: open, wait or fail.
    :param text: the reason in a sentence, for the log and for the failure.
    :param should_log: whether the text is news for the log.
    :param credits: the balance that opened the gate.
    :param failure: name of the error class that failed the gate.
    """

    verdict: Verdict
    text: str
    should_log: bool
    credits: float | None = None
    failure: str | None = None


class Gate:
    """One gate, and what it remembers between two polls.

    :param minimum_credits: the gate opens on more credits than this: a number, or a string that is one; None
        to open when the expected credits are there, even if they are 0.
    :param expected_credits: credits that the run behind the gate will spend: a number, or a string that is
        one; None where that is not known.
    :param organization: whose balance is polled, for the texts; None for the key's default.
    :param stateful: whether this object sees all polls of the wait. If False, it is made anew for each poll
        and its texts do not mention earlier ones.
    :param grace: how long a key that has worked may be refused.
    :raises ValueError: one of the arguments is unusable.
    """

    def __init__(
        self,
        minimum_credits: object,
        *,
        expected_credits: object = None,
        organization: str | None = None,
        stateful: bool = True,
        grace: timedelta = GRACE,
    ) -> None:
        self.minimum_credits = None if minimum_credits is None else check_credits(minimum_credits)
        self.expected_credits = (
            0.0 if expected_credits is None else check_credits(expected_credits, argument="expected_credits")
        )
        self.organization = check_organization(organization)
        self.stateful = stateful
        self.grace = grace
        #: The balance that was read last, and when.
        self.last_balance: tuple[float, datetime] | None = None
        #: The last failure; None if a balance was read after it.
        self.last_failure: StabilityError | None = None
        self._failures = 0
        self._reserved = 0.0
        self._obstacle: str | None = None
        self._lockout = Lockout()
        self._key_has_worked = False
        self._refused_since: datetime | None = None
        self._log = LogThrottle()

    @property
    def last_credits(self) -> float | None:
        """The credits that were read last; None if none were read."""
        return None if self.last_balance is None else self.last_balance[0]

    def last_reading(self, now: datetime) -> tuple[float, float] | None:
        """Return the credits that were read last, and how many seconds ago; None if none were read.

        :param now: aware time.
        """
        balance = self.last_balance
        return None if balance is None else (balance[0], (now - balance[1]).total_seconds())

    @property
    def last_credits_suffice(self) -> bool:
        """Whether the balance that was read last is enough."""
        credits = self.last_credits
        return credits is not None and suffices(credits, self.minimum_credits, self.expected_credits)

    def seconds_until_poll(self, now: datetime) -> float:
        """Return for how many more seconds the server wants no call; 0.0 if it allows one."""
        return self._lockout.seconds_left(now.timestamp())

    def key_changed(self) -> None:
        """Take note that another key is in use from now on. It has not worked yet."""
        self._key_has_worked = False
        self._refused_since = None
        self._lockout.end()  # a lock-out belongs to a key

    def key_has_worked(self) -> None:
        """Take note that the key in use has worked before, though not for this gate itself."""
        self._key_has_worked = True

    def restore(self, balance: tuple[float, datetime] | None, failure: StabilityError | None = None) -> None:
        """Take over what the same gate knew on the worker that deferred it.

        :param balance: the credits that were read last and when; None if none were read.
        :param failure: the last failure; None if a balance was read after it.
        """
        if balance is not None:
            self.last_balance = balance
            self._key_has_worked = True
        if failure is not None:
            self.last_failure = failure
            self._failures = 1

    def observe_balance(self, credits: float, now: datetime, *, reserved: float = 0.0) -> Decision:
        """Decide on a balance.

        :param credits: the balance as the API sent it.
        :param now: aware time at which it was read.
        :param reserved: credits of it that are reserved for others, who may not have spent them yet.
        """
        self.last_balance, self._reserved = (credits, now), reserved
        self._key_has_worked = True
        self._refused_since = self.last_failure = None
        self._failures = 0
        self._lockout.end()
        if suffices(credits, self.minimum_credits, self.expected_credits, reserved=reserved):
            # An obstacle stays the reason of a timeout until the ledger has answered anew.
            return Decision(Verdict.OPEN, wording.opens_text(self._balance_text(credits)), True, credits)
        self._obstacle = None
        return self._wait(f"{self._balance_text(credits)}.", ("low", credits, reserved > 0), now)

    def observe_obstacle(self, text: str, now: datetime) -> Decision:
        """Decide on a balance that is enough, where the ledger holds no credits for the task.

        :param text: the reason.
        :param now: aware time.
        """
        self._obstacle = text
        return self._wait(text, ("obstacle", text), now)

    def observe_hold_failure(self, error: StabilityError, now: datetime) -> Decision:
        """Decide on a balance that is enough, where the ledger could not hold credits for the task.

        :param error: what went wrong. Unless it is permanent, the gate waits: the ledger may answer later.
        :param now: aware time.
        """
        if isinstance(error, StabilityPermanentError):
            return Decision(Verdict.FAIL, str(error), True, failure=type(error).__name__)
        return self.observe_obstacle(str(error), now)

    def observe_failure(self, error: StabilityError, now: datetime) -> Decision:
        """Decide on a failure to read the balance.

        :param error: what went wrong.
        :param now: aware time after the call.
        """
        self._failures += 1
        self.last_failure = error
        self._lockout.extend(error.retry_after, now.timestamp())
        kind = (type(error), error.status, error.name)
        if not isinstance(error, StabilityPermanentError):
            return self._wait(f"{self._unknown_text()}. {error}{self._history_text()}", kind, now)

        self._refused_since = min(self._refused_since or now, now)  # the clock may have been set back
        grace_ends = self._refused_since + self.grace
        if self._key_has_worked and now < grace_ends:
            return self._wait(f"{wording.grace_text(grace_ends)} {error}", kind, now)
        worked = " The key had worked before." if self._key_has_worked else ""
        return Decision(Verdict.FAIL, f"{error}{worked}", True, failure=type(error).__name__)

    def timeout_text(self, timeout: float) -> str:
        """Return why the gate did not open in time: too little credit, or no response.

        :param timeout: seconds that the gate was given.
        """
        if self.last_failure is not None:
            reason = self._failure_text()
        elif self._obstacle is not None:
            reason = self._obstacle
        elif self.last_balance is None:
            reason = f"the balance was never polled, {self._needs()}."
        else:
            reason = f"{self._balance_text(self.last_balance[0])}."
            if not self.last_credits_suffice:
                reason = f"{reason} {wording.BUY_CREDITS}"
        return wording.timeout_text(timeout, reason)

    def locked_out_text(self, timeout: float, now: datetime) -> str:
        """Return why the gate cannot open in time: the server wants no call before the timeout.

        :param timeout: seconds that the gate was given.
        """
        until = now + timedelta(seconds=self.seconds_until_poll(now))
        return wording.locked_out_text(until, timeout, self._failure_text())

    def _wait(self, reason: str, situation: tuple[object, ...], now: datetime) -> Decision:
        text = wording.waits_text(reason, again=not self._log.is_new(situation))
        return Decision(Verdict.WAIT, text, self._log.should_log(situation, now))

    def _needs(self) -> str:
        return f"needs {wording.credits_needed(self.minimum_credits, self.expected_credits)}"

    def _balance_text(self, credits: float) -> str:
        return wording.balance_text(self.organization, credits, self._reserved, self._needs())

    def _unknown_text(self) -> str:
        return f"the balance of {wording.organization_label(self.organization)} is unknown, {self._needs()}"

    def _failure_text(self) -> str:
        return f"{self._unknown_text()}.{self._history_text()} The last failure: {self.last_failure}"

    def _history_text(self) -> str:
        return wording.history_text(self._failures, self.last_balance) if self.stateful else ""
