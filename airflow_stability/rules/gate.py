"""When credit suffices: the one decision that every sensor mode shares. Knows no HTTP and no Airflow.

A driver (poke, reschedule, trigger) observes the balance or a failure and tells the gate; the gate
answers with a :class:`Decision`. The rules:

- The gate opens when the credits are more than the minimum; as many as the minimum is not enough. One that
  says what the run behind it is expected to spend opens when that much is there beyond the minimum, and not
  spoken for by others.
- A transient failure never opens it and never fails it: unknown is not poor.
- A permanent failure fails it, but a key that has worked for this gate gets ten minutes of grace first,
  because replacing a key takes a moment.
- No poll before the server allows one.
- It speaks when it starts to wait, at each change, every hour, and at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from airflow_stability.errors import CREDITS_URL, StabilityError, StabilityPermanentError
from airflow_stability.validation import check_credits, check_organization, format_number

#: How long a key that has worked before may be refused until the gate fails.
GRACE = timedelta(minutes=10)

#: A waiting gate says something at least this often.
LOG_EVERY = timedelta(hours=1)


def suffices(credits: float, minimum: float, expected: float) -> bool:
    """Tell whether there is credit enough.

    :param credits: the balance, less what is spoken for by others.
    :param minimum: what must be left over, and a little more.
    :param expected: what is to be spent; 0.0 where that is not known.
    """
    return credits > minimum and credits - minimum >= expected


def needed(minimum: float, expected: float) -> str:
    """Say how many credits suffice: ``more than 50``, ``30 beyond 50`` or ``30``; see :func:`suffices`."""
    if not expected:
        return f"more than {format_number(minimum)}"
    return format_number(expected) + (f" beyond {format_number(minimum)}" if minimum else "")


class Verdict(Enum):
    """What a driver has to do next."""

    OPEN = "open"
    WAIT = "wait"
    FAIL = "fail"


@dataclass(frozen=True)
class Decision:
    """What the gate made of one observation.

    :param verdict: open, wait or fail.
    :param text: why, in a sentence: for the log, and for the failure.
    :param should_log: whether the log should have the text, or has heard it before.
    :param credits: the balance that opened the gate.
    :param failure: what failed the gate.
    """

    verdict: Verdict
    text: str
    should_log: bool
    credits: float | None = None
    failure: StabilityError | None = None


class Gate:
    """One gate and what it remembers between observations.

    :param minimum_credits: it opens on more credits than this: a number, or a string that is one.
    :param expected_credits: what the run behind it is expected to spend: a number, or a string that is one;
        None where nobody said.
    :param organization: whose balance is observed, for the texts; None for the key's default.
    :param stateful: whether it lives from the first observation to the last. One that is made anew for each
        does not talk of earlier ones.
    :param grace: how long a key that has worked may be refused.
    :raises ValueError: one of the arguments cannot be what it should.
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
        self.minimum_credits = check_credits(minimum_credits)
        self.expected_credits = (
            0.0 if expected_credits is None else check_credits(expected_credits, argument="expected_credits")
        )
        self.organization = check_organization(organization)
        self.stateful = stateful
        self.grace = grace
        self._not_before: datetime | None = None
        self._balance: tuple[float, datetime] | None = None
        self._spoken_for = 0.0
        self._key_has_worked = False
        self._refused_since: datetime | None = None
        self._failures = 0
        self._last_failure: StabilityError | None = None
        self._said: tuple[object, ...] | None = None
        self._said_at: datetime | None = None

    def seconds_until_poll(self, now: datetime) -> float:
        """Return for how many seconds yet the server wants no call; 0.0 when it may be asked."""
        if self._not_before is None:
            return 0.0
        return max((self._not_before - now).total_seconds(), 0.0)

    def key_changed(self) -> None:
        """Take note that another key is used from now on: it has not worked yet."""
        self._key_has_worked = False
        self._refused_since = None
        self._not_before = None  # a lock-out belongs to a key

    def key_has_worked(self) -> None:
        """Take note that the key in use has worked before, though not for this gate itself."""
        self._key_has_worked = True

    def restore(self, balance: tuple[float, datetime] | None, failure: StabilityError | None) -> None:
        """Take over what the same gate knew elsewhere: in the worker that deferred it.

        :param balance: the credits that were read last and when, if ever.
        :param failure: what went wrong last, unless a balance was read after it.
        """
        if balance is not None:
            self._balance = balance
            self._key_has_worked = True
        if failure is not None:
            self._last_failure = failure
            self._failures = 1

    @property
    def not_before(self) -> datetime | None:
        """Before this time the server wants no call; None where it said nothing."""
        return self._not_before

    @property
    def last_failure(self) -> StabilityError | None:
        """What went wrong last, unless a balance was read after it."""
        return self._last_failure

    @property
    def last_balance(self) -> tuple[float, datetime] | None:
        """The credits that were read last and when, if ever."""
        return self._balance

    @property
    def last_credits(self) -> float | None:
        """The credits that were read last, if ever."""
        return None if self._balance is None else self._balance[0]

    def observe_balance(self, credits: float, now: datetime, *, spoken_for: float = 0.0) -> Decision:
        """Decide on a balance.

        :param credits: the balance as the API sent it.
        :param now: aware time at which it was read.
        :param spoken_for: how much of it others were let go for, who may not have spent it yet.
        """
        self._balance, self._spoken_for = (credits, now), spoken_for
        self._key_has_worked = True
        self._refused_since = self._not_before = self._last_failure = None
        self._failures = 0
        if suffices(credits - spoken_for, self.minimum_credits, self.expected_credits):
            return Decision(Verdict.OPEN, f"The gate opens: {self._has(credits)}.", True, credits)
        return self._wait(f"{self._has(credits)}.", ("poor", credits, spoken_for > 0), now)

    def observe_failure(self, error: StabilityError, now: datetime) -> Decision:
        """Decide on a failure to read the balance.

        :param error: what went wrong.
        :param now: aware time after the call.
        """
        self._failures += 1
        self._last_failure = error
        self._not_before = None if error.retry_after is None else now + timedelta(seconds=error.retry_after)
        kind = (type(error), error.status, error.name)
        if not isinstance(error, StabilityPermanentError):
            return self._wait(f"{self._unknown()}. {error}{self._history()}", kind, now)

        self._refused_since = self._refused_since or now
        grace_ends = self._refused_since + self.grace
        if self._key_has_worked and now < grace_ends:
            text = (
                "the key has worked before and may be about to be replaced; if it is still refused at "
                f"{_clock(grace_ends)}, the gate fails. {error}"
            )
            return self._wait(text, kind, now)
        worked = " The key had worked before." if self._key_has_worked else ""
        return Decision(Verdict.FAIL, f"{error}{worked}", True, failure=error)

    def timeout_text(self, seconds: float) -> str:
        """Say why the gate did not open in time: too little credit, or no answer.

        :param seconds: the time that it was given.
        """
        text = f"Timed out after {format_number(seconds)} s: "
        if self._last_failure is not None:
            return f"{text}{self._unanswered()}"
        if self._balance is None:
            return f"{text}the balance was never asked for, {self._needs()}."
        text += f"{self._has(self._balance[0])}."
        if suffices(self._balance[0], self.minimum_credits, self.expected_credits):
            return text  # credit is not what was missing
        return f"{text} Buy credits at {CREDITS_URL}; a top-up takes 1 to 15 minutes to show."

    def hopeless_text(self, seconds: float) -> str:
        """Say that the server wants no call before the time is over, so that the gate cannot open in time.

        :param seconds: the time that it was given.
        """
        until = "" if self._not_before is None else f" until {_clock(self._not_before)}"
        return (
            f"Gave up, since the server allows no call{until} and that is after the timeout of "
            f"{format_number(seconds)} s: {self._unanswered()}"
        )

    def _unanswered(self) -> str:
        return f"{self._unknown()}.{self._history()} The last failure: {self._last_failure}"

    def _wait(self, why: str, what: tuple[object, ...], now: datetime) -> Decision:
        news = what != self._said
        should_log = news or self._said_at is None or now - self._said_at >= LOG_EVERY
        if should_log:
            self._said, self._said_at = what, now
        return Decision(Verdict.WAIT, f"{'Waiting' if news else 'Still waiting'}: {why}", should_log)

    def _has(self, credits: float) -> str:
        spoken_for = ""
        if self._spoken_for:
            spoken_for = f" of which {format_number(self._spoken_for)} are spoken for,"
        return f"{self._whose()} has {format_number(credits)} credits,{spoken_for} {self._needs()}"

    def _unknown(self) -> str:
        return f"the balance of {self._whose()} is unknown, {self._needs()}"

    def _whose(self) -> str:
        return f"organization {self.organization}" if self.organization else "the key's default organization"

    def _needs(self) -> str:
        return f"needs {needed(self.minimum_credits, self.expected_credits)}"

    def _history(self) -> str:
        if not self.stateful:
            return ""
        polls = "1 poll" if self._failures == 1 else f"{self._failures} polls"
        if self._balance is None:
            return f" No balance was read yet; {polls} failed."
        credits, at = self._balance
        return f" Last balance {format_number(credits)} at {_clock(at)}; {polls} failed since."


def _clock(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S %Z}"
