"""StabilityBalanceTrigger: the driver of the gate in a triggerer, on the feed that all gates there share."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_stability.compat import success_event
from airflow_stability.deferral import (
    MIN_DEFERRAL_SECONDS,
    TRIGGER_PATH,
    DeferralEvent,
    seconds_since_deferral,
)
from airflow_stability.errors import (
    StabilityConfigurationError,
    StabilityError,
    StabilityPermanentError,
    StabilityTransientError,
)
from airflow_stability.rules import wording
from airflow_stability.rules.gate import GRACE, Decision, Gate, Verdict
from airflow_stability.rules.pacing import RESERVATION_SECONDS, Reservation
from airflow_stability.triggers.feed import Observation, observations
from airflow_stability.validation import check_budget, check_conn_id, safe_repr

if TYPE_CHECKING:
    from jinja2 import Environment

    from airflow_stability.compat import Context
    from airflow_stability.triggers.budget_events import (
        StabilityBudgetEventTrigger as StabilityBudgetEventTrigger,
    )
    from airflow_stability.triggers.events import StabilityBalanceEventTrigger as StabilityBalanceEventTrigger


class StabilityBalanceTrigger(BaseTrigger):
    """A trigger that fires once: when a gate opens, fails or times out.

    The payload of its event is a :class:`~airflow_stability.deferral.DeferralEvent`. All that the trigger
    needs is in its arguments, so another triggerer can go on when one is killed. Airflow stores the arguments
    unencrypted while a task waits, and may hand them to another release of this package.

    :param stability_conn_id: a connection of type ``stability``. Never a key.
    :param organization: id such as ``org-123456``; None for the connection's, else the key's default.
    :param minimum_credits: the gate opens on more credits than this: a number, or a string that is one; None
        to open when the expected credits are there, even if they are 0.
    :param poke_interval: seconds between two polls of the balance.
    :param timeout: seconds that the gate was given. All times here are durations, which end when as much time
        has passed since the task deferred: another machine's clock may differ.
    :param end_from_trigger: succeed here, instead of resuming on a worker.
    :param do_xcom_push: whether the balance is then pushed to XCom.
    :param grace: seconds for which a key that has worked before may be refused.
    :param last_organization: whose balance the worker polled before it deferred, for the text of a timeout
        that comes before the first poll. None for the key's default.
    :param last_credits: the balance that the worker read; None if it got none.
    :param last_credits_age: how many seconds before the task deferred it was read.
    :param last_failure: why the worker got no balance; None if it got one.
    :param locked_out: seconds for which the server wants no call.
    :param expected_credits: credits that the run behind the gate will spend: a number, or a string that is
        one. The gate then takes turns with others. None if unknown.
    :param reservation_seconds: seconds for which those credits stay reserved after the gate was let go.
    :param waited: seconds of the timeout for which the task had waited before. They count for its turn, too.
    :param pause: seconds in which the gate does not open and causes no poll.
    :param deferral_timeout: seconds after which Airflow itself ends the deferral: see
        :func:`~airflow_stability.deferral.seconds_since_deferral`. None for a task that started in the
        triggerer. Its time begins with the trigger. If a triggerer is killed, Airflow's own timeout limits
        such a task.
    :param budget: the budget of the ledger that the expected credits are taken from; None for the
        connection's. Without a ledger, the gate fails if it names one.
    :param hold: the key of what is held in the ledger for the run behind the gate; None for a new one.
    :param is_of_task: whether that run is the task's own, which goes on with the hold on a worker. If not, it
        is held for ``reservation_seconds``.
    :param run_credits: credits of a whole run, if the task has had a run before. The ledger then holds these
        credits, less those that the task has paid for durable calls. None to hold the expected credits.
    :param memory: what the task has to remember, as plain JSON types: the event hands it back.
    :param unknown_arguments: arguments of another release. They are kept, handed on and ignored.
    """

    def __init__(
        self,
        *,
        stability_conn_id: str,
        organization: str | None,
        minimum_credits: float | str | None,
        poke_interval: float,
        timeout: float,
        end_from_trigger: bool = False,
        do_xcom_push: bool = True,
        grace: float = GRACE.total_seconds(),
        last_organization: str | None = None,
        last_credits: float | None = None,
        last_credits_age: float = 0.0,
        last_failure: str | None = None,
        locked_out: float = 0.0,
        expected_credits: float | str | None = None,
        reservation_seconds: float = RESERVATION_SECONDS,
        waited: float = 0.0,
        pause: float = 0.0,
        deferral_timeout: float | None = None,
        budget: str | None = None,
        hold: str | None = None,
        is_of_task: bool = False,
        run_credits: float | None = None,
        memory: dict[str, Any] | None = None,
        **unknown_arguments: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.stability_conn_id = stability_conn_id
        self.organization = organization
        self.minimum_credits = minimum_credits
        self.poke_interval = poke_interval
        self.timeout = timeout
        self.end_from_trigger = end_from_trigger
        self.do_xcom_push = do_xcom_push
        self.grace = grace
        self.last_organization = last_organization
        self.last_credits = last_credits
        self.last_credits_age = last_credits_age
        self.last_failure = last_failure
        self.locked_out = locked_out
        self.expected_credits = expected_credits
        self.reservation_seconds = reservation_seconds
        self.waited = waited
        self.pause = pause
        self.deferral_timeout = deferral_timeout
        self.budget = budget
        self.hold = hold or uuid.uuid4().hex
        self.is_of_task = is_of_task
        self.run_credits = run_credits
        self.memory = memory
        self.unknown_arguments = unknown_arguments
        self._unrendered: str | None = None
        self._holds = False
        # Of a run that was paid for in part, the ledger could hold the rest while the gate waits for more.
        self._may_fit = run_credits is not None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, as Airflow stores them."""
        arguments = {name: getattr(self, name) for name in _ARGUMENT_NAMES}
        return TRIGGER_PATH, arguments | self.unknown_arguments

    def render_template_fields(self, context: Context, jinja_env: Environment | None = None) -> None:
        """Render the arguments of a task that starts in the triggerer. Airflow (3.3 and later) calls this.

        A missing name is an error, as on a worker. Airflow's own environment in a triggerer would take it for
        false in a condition.
        """
        from jinja2 import StrictUndefined

        strict = (jinja_env or self.get_template_env()).overlay(undefined=StrictUndefined)
        try:
            super().render_template_fields(context, strict)
        except Exception as error:  # whatever a template raises
            problem = f"{type(error).__name__}: {error}"
            self._unrendered = f"An argument could not be rendered in the triggerer: {safe_repr(problem)}."

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait until the gate opens, fails or times out."""
        deferral = Deferral(self)
        event = replace(await self._wait_for_gate(deferral), memory=self.memory)
        if self._holds:
            event = replace(event, hold=self.hold)
        if (success := await self._end_task(event)) is not None:
            yield success
            return
        await deferral.wait_for_scheduler()
        event = replace(event, seconds=deferral.seconds)
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

    async def _wait_for_gate(self, deferral: Deferral) -> DeferralEvent:
        if self._unrendered is not None:
            return DeferralEvent(DeferralEvent.UNUSABLE, self._unrendered)
        try:
            check_conn_id(self.stability_conn_id)
            check_budget(self.budget)
            gate = Gate(
                self.minimum_credits,
                expected_credits=self.expected_credits,
                organization=self.organization or self.last_organization,
                grace=timedelta(seconds=self.grace),
            )
        except ValueError as error:
            return DeferralEvent(DeferralEvent.UNUSABLE, str(error))
        read_at = datetime.now(UTC) - timedelta(seconds=deferral.seconds + self.last_credits_age)
        gate.restore(
            None if self.last_credits is None else (self.last_credits, read_at),
            StabilityTransientError(self.last_failure) if self.last_failure else None,
        )
        try:
            async with asyncio.timeout_at(deferral.began + self.timeout - self.waited):
                decision = await self._follow(gate, deferral)
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

    async def _log_lock_out(self, seconds: float) -> None:
        # The worker has met none: nothing in this task's log says why there is no poll.
        until = wording.clock_time(datetime.now(UTC) + timedelta(seconds=seconds))
        await self._log_in_thread(
            f"No poll before {until}: the server allows no call with the connection's key."
        )

    async def _follow(self, gate: Gate, deferral: Deferral) -> Decision:
        """Return the decision that ends the wait."""
        feed = observations(
            self.stability_conn_id,
            self.organization,
            self.poke_interval,
            not_before=deferral.began + self.locked_out,
            deferred_at=deferral.began,
            on_lock_out=None if self.locked_out else self._log_lock_out,
            ignore_before=None if self.last_credits is None else deferral.began - self.last_credits_age,
            paused_until=deferral.began + self.pause,
            reservation=self._reservation(gate, deferral),
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
                    # The ledger knows better what is reserved, for all triggerers together.
                    reserved = 0.0 if observation.ledger else observation.reserved
                    decision = gate.observe_balance(outcome, observation.at, reserved=reserved)
                    if decision.verdict is Verdict.OPEN or not self._may_fit:
                        # Ask the ledger at the first balance, too: it knows if it can never hold the credits.
                        decision = await self._hold(gate, observation, decision, deferral)
                if decision.verdict is not Verdict.WAIT:
                    return decision
                if decision.should_log:
                    await self._log_in_thread(decision.text)
        raise AssertionError("a feed does not end before its followers")

    async def _hold(
        self, gate: Gate, observation: Observation, decision: Decision, deferral: Deferral
    ) -> Decision:
        """Hold the expected credits in the ledger, if there is one; return what follows."""
        if observation.ledger is None:
            if self.budget is None:
                return decision
            text = wording.no_ledger_text(self.budget, self.stability_conn_id)
            return gate.observe_hold_failure(StabilityConfigurationError(text), observation.at)
        if self.expected_credits is None:
            return decision
        is_open = decision.verdict is Verdict.OPEN
        # It loads SQLAlchemy, and the loop must load no module.
        holds = await asyncio.to_thread(importlib.import_module, "airflow_stability.triggers.ledger_holds")
        try:
            obstacle = await holds.hold_credits(
                self,
                gate,
                observation,
                # If the balance is too low, nothing is held. A new key leaves an earlier hold untouched.
                key=self.hold if is_open else uuid.uuid4().hex,
                since=deferral.began - self.waited,
            )
        except StabilityPermanentError as error:
            return gate.observe_hold_failure(error, observation.at)
        except StabilityError as error:
            return gate.observe_hold_failure(error, observation.at) if is_open else decision
        self._may_fit = True
        if obstacle is not None:
            return gate.observe_obstacle(obstacle, observation.at) if is_open else decision
        self._holds = is_open
        return decision

    def _reservation(self, gate: Gate, deferral: Deferral) -> Reservation | None:
        if self.expected_credits is None:
            return None
        since = deferral.began - self.waited
        return Reservation(gate.expected_credits, gate.minimum_credits, since, self.reservation_seconds)


class Deferral:
    """How long a trigger's task has been deferred. Times are the event loop's.

    :param trigger: a trigger that starts, with an argument ``deferral_timeout``.
    """

    def __init__(self, trigger: Any) -> None:
        self._trigger = trigger
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        #: When the task deferred.
        self.began = self._started - seconds_since_deferral(trigger, datetime.now(UTC))

    @property
    def seconds(self) -> float:
        """For how many seconds the task has been deferred."""
        return self._loop.time() - self.began

    async def wait_for_scheduler(self) -> None:
        """Let the scheduler notice the deferral before the task resumes: see MIN_DEFERRAL_SECONDS."""
        # `airflow dags test` runs the trigger without a triggerer and a scheduler. Then it has no id.
        if self._trigger.deferral_timeout is not None and self._trigger.trigger_id is not None:
            # Since the trigger's start, which is certain: a task that resumes too early fails.
            await asyncio.sleep(self._started + MIN_DEFERRAL_SECONDS - self._loop.time())


_ARGUMENT_NAMES = [
    argument.name
    for argument in inspect.signature(StabilityBalanceTrigger).parameters.values()
    if argument.kind is argument.KEYWORD_ONLY
]


def __getattr__(name: str) -> Any:
    # Aliases, loaded on demand: on Airflow 2.11 there are no such triggers, and the import says so.
    if name == "StabilityBalanceEventTrigger":
        from airflow_stability.triggers.events import StabilityBalanceEventTrigger

        return StabilityBalanceEventTrigger
    if name == "StabilityBudgetEventTrigger":
        from airflow_stability.triggers.budget_events import StabilityBudgetEventTrigger

        return StabilityBudgetEventTrigger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
