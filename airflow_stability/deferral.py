"""The deferral: what a task hands to its trigger, and the event that the trigger answers with.

The sensor, the operator that spends and the trigger all use this module. What a task hands over are
durations, because the clocks of two machines may differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar

from airflow_stability.compat import (
    AirflowFailException,
    BaseOperator,
    Context,
    TaskDeferred,
    deferral_ends_at,
    deferral_limit,
    is_left_over,
)
from airflow_stability.errors import StabilityConnectionNotFoundError
from airflow_stability.rules.gate import Gate
from airflow_stability.rules.wording import airflow_timeout_text
from airflow_stability.validation import in_utc

#: The path of the trigger's class, as Airflow stores it.
TRIGGER_PATH = "airflow_stability.triggers.stability.StabilityBalanceTrigger"

#: The method of a task that gets the trigger's event.
RESUME_METHOD = "execute_complete"

#: Airflow's own timeout of a deferral comes this much after the trigger's, in case no triggerer runs.
BACKSTOP = timedelta(minutes=5)

#: A trigger ends at least this many seconds before Airflow would end the deferral, or halfway if that is
#: less. Airflow 2.11 ends it at the task's ``execution_timeout``, and fails a task that resumes later.
RESUME_SECONDS = 60.0

#: The shortest deferral, in seconds. Airflow (all versions up to 3.4) fails a task that resumes before the
#: scheduler has noticed that its worker ended: "the task instance finished with state success, but its state
#: attribute is queued". The scheduler notices within seconds.
MIN_DEFERRAL_SECONDS = 10.0


@dataclass(frozen=True)
class DeferralEvent:
    """The event that resumes a task.

    :param verdict: one of the constants below. A later release may have more of them.
    :param text: the reason in a sentence.
    :param credits: the balance that opened the gate, or was read last; None if none was read.
    :param failure: name of the error class that failed the gate.
    :param memory: what the task had to remember, as plain JSON types.
    :param seconds: how long the task was deferred, by the triggerer's count.
    :param hold: the key of what the trigger holds in the ledger for the task; None for nothing.
    """

    OPEN: ClassVar = "open"
    TIMEOUT: ClassVar = "timeout"
    FAIL: ClassVar = "fail"
    UNUSABLE: ClassVar = "unusable"  # an argument is unusable
    JOB: ClassVar = "job"  # there is something to learn about an asynchronous job

    verdict: str
    text: str
    credits: float | None = None
    failure: str | None = None
    memory: Mapping[str, Any] | None = None
    seconds: float = 0.0
    hold: str | None = None

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> DeferralEvent:
        """Return the event in a trigger's payload, which may come from another release."""
        get = payload.get
        return cls(
            verdict=payload["verdict"],
            text=get("text", ""),
            credits=get("credits"),
            failure=get("failure"),
            memory=get("memory"),
            seconds=get("seconds") or 0.0,
            hold=get("hold"),
        )

    def to_payload(self) -> dict[str, Any]:
        """Return the event as plain JSON types."""
        return asdict(self)

    @property
    def unknown_verdict_text(self) -> str:
        """The log line of a task that polls again, because its release does not know the verdict."""
        return f"Polling again, because another release has sent the verdict {self.verdict!r}. {self.text}"

    def is_left_over(self, context: Context) -> bool:
        """Tell whether the event belongs to an earlier try: Airflow 3.0 hands it to the next one."""
        return self.memory is not None and is_left_over(context, self.memory.get("try_number", 0))


def handover_arguments(gate: Gate, now: datetime) -> dict[str, Any]:
    """Return what a gate has learned on a worker, as arguments of the trigger that goes on waiting."""
    reading, failure = gate.last_reading(now), gate.last_failure
    return {
        "last_organization": gate.organization,
        "last_credits": gate.last_credits,
        "last_credits_age": reading[1] if reading else 0.0,
        "last_failure": str(failure) if failure else None,
        "locked_out": gate.seconds_until_poll(now),
    }


def deferred(task: BaseOperator, context: Context, trigger: Any, timeout: timedelta) -> TaskDeferred:
    """Return the exception that makes a task go on in a triggerer.

    :param trigger: a trigger with an argument ``deferral_timeout``, which is set here, and arguments
        ``timeout`` and ``waited``. Its timeout is made shorter if Airflow would end the deferral before.
    :param timeout: after this time, Airflow itself ends the deferral.
    """
    timeout = deferral_limit(task, context, timeout)
    trigger.deferral_timeout = seconds = timeout.total_seconds()
    latest = trigger.waited + seconds - min(RESUME_SECONDS, seconds / 2)
    if latest < trigger.timeout:
        trigger.timeout = round(latest)
    return TaskDeferred(trigger=trigger, method_name=RESUME_METHOD, timeout=timeout)


def seconds_since_deferral(trigger: Any, now: datetime) -> float:
    """Return how long ago a task deferred, in seconds; 0.0 if that is unknown.

    A trigger that starts anew in another triggerer would count its times from the beginning. Airflow's own
    timeout of the deferral, which is in Airflow's database, tells how much has passed. It is not believed if
    it says that the task is yet to defer, or that Airflow has ended the deferral: then the clocks differ.

    :param trigger: a trigger with an argument ``deferral_timeout``.
    :param now: aware time.
    """
    timeout, ends_at = trigger.deferral_timeout, deferral_ends_at(trigger)
    if timeout is None or ends_at is None:
        return 0.0
    passed: float = timeout - (in_utc(ends_at) - now).total_seconds()
    return passed if 0 < passed < timeout else 0.0


def failure_exception(text: str, failure: str | None) -> Exception:
    """Return the exception that a task raises when its gate has failed.

    :param failure: name of the error class that failed it.
    """
    if failure == StabilityConnectionNotFoundError.__name__:
        # Airflow reports a broken secrets backend in the same way. That may pass, so Airflow's retries apply.
        return StabilityConnectionNotFoundError(text)
    return AirflowFailException(text)


def airflow_timeout(task: BaseOperator, argument: str) -> str:
    """Return the text for a deferral that Airflow ended, not the trigger.

    :param argument: name of the task's argument that limits the wait.
    """
    limits = {argument: float(getattr(task, argument))}
    if task.execution_timeout:
        limits["execution_timeout"] = task.execution_timeout.total_seconds()
    return airflow_timeout_text(limits)
