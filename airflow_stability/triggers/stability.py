"""StabilityBalanceTrigger: the driver of the gate in a triggerer, on the feed that all gates there share."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_stability.compat import success_event
from airflow_stability.deferral import MIN_DEFERRAL_SECONDS, TRIGGER_PATH, DeferralEvent
from airflow_stability.errors import StabilityError, StabilityTransientError
from airflow_stability.rules.gate import GRACE, Decision, Gate, Verdict
from airflow_stability.rules.pacing import RESERVATION_SECONDS, Reservation
from airflow_stability.triggers.feed import observations
from airflow_stability.validation import parse_time

if TYPE_CHECKING:
    from airflow_stability.triggers.events import StabilityBalanceEventTrigger as StabilityBalanceEventTrigger


class StabilityBalanceTrigger(BaseTrigger):
    """A trigger that fires once: when a gate opens, fails or times out.

    The payload of its event is a :class:`~airflow_stability.deferral.DeferralEvent`. All that the trigger
    needs is in its arguments, so another triggerer can go on when one is killed. Airflow stores the arguments
    unencrypted while a task waits, and may hand them to another release of this package.

    :param stability_conn_id: a connection of type ``stability``. Never a key.
    :param organization: id such as ``org-123456``; None for the connection's, else the key's default.
    :param minimum_credits: the gate opens on more credits than this: a number, or a string that is one.
    :param poke_interval: seconds between two polls of the balance.
    :param timeout: seconds that the gate was given, for the text.
    :param deadline: when those seconds are over: an aware time in ISO format, like all times here. None for a
        task that started in the triggerer, whose time begins with the trigger. If a triggerer is killed,
        Airflow's own timeout limits such a task.
    :param end_from_trigger: succeed here, instead of resuming on a worker.
    :param do_xcom_push: whether the balance is then pushed to XCom.
    :param grace: seconds for which a key that has worked before may be refused.
    :param last_organization: whose balance the worker polled before it deferred, for the text of a timeout
        that comes before the first poll. None for the key's default.
    :param last_credits: the balance that the worker read; None if it got none.
    :param last_credits_at: when it was read.
    :param last_failure: why the worker got no balance; None if it got one.
    :param not_before: before this time the server wants no call; None if it named no time.
    :param expected_credits: credits that the run behind the gate will spend: a number, or a string that is
        one. The gate then takes turns with others. None if unknown.
    :param reservation_seconds: seconds for which those credits stay reserved after the gate was let go.
    :param since: when the task began to wait, which decides its turn; None for now.
    :param paused_until: the gate does not open and causes no poll before this time; None for no pause.
    :param deferred_at: when the task deferred from a worker; None for one that started in the triggerer.
    :param memory: what the task has to remember, as plain JSON types: the event hands it back.
    :param unknown_arguments: arguments of another release. They are kept, handed on and ignored.
    """

    def __init__(
        self,
        *,
        stability_conn_id: str,
        organization: str | None,
        minimum_credits: float | str,
        poke_interval: float,
        timeout: float,
        deadline: str | None = None,
        end_from_trigger: bool = False,
        do_xcom_push: bool = True,
        grace: float = GRACE.total_seconds(),
        last_organization: str | None = None,
        last_credits: float | None = None,
        last_credits_at: str | None = None,
        last_failure: str | None = None,
        not_before: str | None = None,
        expected_credits: float | str | None = None,
        reservation_seconds: float = RESERVATION_SECONDS,
        since: str | None = None,
        paused_until: str | None = None,
        deferred_at: str | None = None,
        memory: dict[str, Any] | None = None,
        **unknown_arguments: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.stability_conn_id = stability_conn_id
        self.organization = organization
        self.minimum_credits = minimum_credits
        self.poke_interval = poke_interval
        self.timeout = timeout
        self.deadline = deadline
        self.end_from_trigger = end_from_trigger
        self.do_xcom_push = do_xcom_push
        self.grace = grace
        self.last_organization = last_organization
        self.last_credits = last_credits
        self.last_credits_at = last_credits_at
        self.last_failure = last_failure
        self.not_before = not_before
        self.expected_credits = expected_credits
        self.reservation_seconds = reservation_seconds
        self.since = since
        self.paused_until = paused_until
        self.deferred_at = deferred_at
        self.memory = memory
        self.unknown_arguments = unknown_arguments

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, as Airflow stores them."""
        arguments = {name: getattr(self, name) for name in _ARGUMENT_NAMES}
        return TRIGGER_PATH, arguments | self.unknown_arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait until the gate opens, fails or times out."""
        event = replace(await self._wait_for_gate(), memory=self.memory)
        if (success := await self._end_task(event)) is not None:
            yield success
            return
        await wait_for_scheduler(self)
        yield TriggerEvent(event.to_payload())  # type: ignore[no-untyped-call]  # Airflow's

    async def _end_task(self, event: DeferralEvent) -> TriggerEvent | None:
        """Return the event that ends the task here; None if it resumes on a worker."""
        if not self.end_from_trigger or event.verdict != DeferralEvent.OPEN or event.credits is None:
            return None
        try:
            return await success_event(self.task_instance, event.credits, do_xcom_push=self.do_xcom_push)
        except Exception as error:  # whatever Airflow's API raises
            text = "The balance could not be pushed to XCom from here (%s): a worker does it."
            await asyncio.to_thread(self.log.warning, text, type(error).__name__)
            return None

    async def _wait_for_gate(self) -> DeferralEvent:
        try:
            gate = Gate(
                self.minimum_credits,
                expected_credits=self.expected_credits,
                organization=self.organization or self.last_organization,
                grace=timedelta(seconds=self.grace),
            )
        except ValueError as error:
            return DeferralEvent(DeferralEvent.UNUSABLE, str(error))
        read_at = _time(self.last_credits_at)
        gate.restore(
            (self.last_credits, read_at) if self.last_credits is not None and read_at else None,
            StabilityTransientError(self.last_failure) if self.last_failure else None,
        )
        left = self.timeout
        if deadline := _time(self.deadline):
            left = (deadline - datetime.now(UTC)).total_seconds()
        try:
            async with asyncio.timeout(left):
                decision = await self._follow(gate)
        except TimeoutError:
            text = gate.timeout_text(self.timeout)
            return DeferralEvent(DeferralEvent.TIMEOUT, text, gate.last_credits)
        # This comes after the timeout's block, so that a slow log does not end an open gate.
        await self._log_in_thread(decision.text)
        verdict = DeferralEvent.OPEN if decision.verdict is Verdict.OPEN else DeferralEvent.FAIL
        return DeferralEvent(verdict, decision.text, decision.credits, decision.failure)

    async def _log_in_thread(self, text: str) -> None:
        # Airflow's log goes through a socket. The triggerer's other process does not read it while busy, for
        # example when many gates open.
        await asyncio.to_thread(self.log.info, "%s", text)

    async def _follow(self, gate: Gate) -> Decision:
        """Return the decision that ends the wait."""
        feed = observations(
            self.stability_conn_id,
            self.organization,
            self.poke_interval,
            not_before=_time(self.not_before),
            ignore_before=_time(self.last_credits_at),
            paused_until=_time(self.paused_until),
            reservation=self._reservation(gate),
        )
        key: int | None = None
        async with contextlib.aclosing(feed):
            async for observation in feed:
                gate.organization = observation.organization
                if key is not None and observation.key != key:
                    gate.key_changed()
                key = observation.key
                outcome = observation.outcome
                if isinstance(outcome, StabilityError):
                    if observation.key_has_worked:
                        gate.key_has_worked()
                    decision = gate.observe_failure(outcome, observation.at)
                else:
                    decision = gate.observe_balance(outcome, observation.at, reserved=observation.reserved)
                if decision.verdict is not Verdict.WAIT:
                    return decision
                if decision.should_log:
                    await self._log_in_thread(decision.text)
        raise AssertionError("a feed does not end before its followers")

    def _reservation(self, gate: Gate) -> Reservation | None:
        if self.expected_credits is None:
            return None
        since = _time(self.since) or datetime.now(UTC)
        return Reservation(gate.expected_credits, gate.minimum_credits, since, self.reservation_seconds)


async def wait_for_scheduler(trigger: Any) -> None:
    """Let the scheduler notice the deferral before the task resumes: see MIN_DEFERRAL_SECONDS.

    :param trigger: a trigger with an argument ``deferred_at``.
    """
    # `airflow dags test` runs the trigger without a triggerer and a scheduler. Then it has no id.
    if (deferred_at := _time(trigger.deferred_at)) and trigger.trigger_id is not None:
        left = MIN_DEFERRAL_SECONDS - (datetime.now(UTC) - deferred_at).total_seconds()
        await asyncio.sleep(min(left, MIN_DEFERRAL_SECONDS))  # the worker's clock may be ahead


_ARGUMENT_NAMES = [
    argument.name
    for argument in inspect.signature(StabilityBalanceTrigger).parameters.values()
    if argument.kind is argument.KEYWORD_ONLY
]


def _time(argument: str | None) -> datetime | None:
    return parse_time(argument) if argument else None


def __getattr__(name: str) -> Any:
    # An alias, loaded on demand: on Airflow 2.11 there is no such trigger, and the import says so.
    if name == "StabilityBalanceEventTrigger":
        from airflow_stability.triggers.events import StabilityBalanceEventTrigger

        return StabilityBalanceEventTrigger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
