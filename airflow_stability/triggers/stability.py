"""StabilityBalanceTrigger: drives a gate in a triggerer, on the feed that all gates there share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_stability.compat import success_event
from airflow_stability.errors import StabilityError, StabilityTransientError
from airflow_stability.rules.gate import GRACE, Decision, Gate, Verdict
from airflow_stability.rules.pacing import RESERVATION_SECONDS, Reservation
from airflow_stability.triggers.feed import observations
from airflow_stability.validation import check_later

if TYPE_CHECKING:
    from airflow_stability.triggers.events import StabilityBalanceEventTrigger as StabilityBalanceEventTrigger

#: The version of the arguments that StabilityBalanceTrigger.serialize() returns. Airflow keeps them while a
#: task waits, and hands them to whichever release its triggerer has by then. It rises whenever they change in
#: any way: in names, types or meanings, what stands in `memory` included. What is added has a default, for
#: rows that are older. What was once written is written for ever, and never means anything else: earlier
#: releases take it for granted. tests/integration/recorded keeps what each version looked like.
ARGUMENTS_VERSION = 1

#: Seconds that a trigger waits before it hands a task back for having later arguments than it knows, and that
#: the task waits at least when it has started over: it may come back until all have the same release.
START_OVER_AFTER = 60.0

#: Seconds after a deferral before which a task does not resume. Airflow (all versions up to 3.3) fails a task
#: that is started again before its scheduler has noticed that the worker has ended with the deferral: "the
#: task instance finished with state success, but its state attribute is queued". It notices in seconds.
MIN_DEFERRAL_SECONDS = 10.0


class StabilityBalanceTrigger(BaseTrigger):
    """Fires once, when a gate opens, fails or times out.

    The event is a dict of ``verdict`` (``open``, ``fail``, ``timeout``, ``unusable`` for an argument that
    cannot be what it should, or ``again`` for a task that is to start over), ``text``, ``credits``, the
    balance that opened the gate or was there last, and ``failure``, the name of the error that failed it; and
    ``memory``, if it was given one. All that the trigger needs stands in its arguments: another triggerer can
    go on where one was killed.

    :param stability_conn_id: a connection of type ``stability``. Never a key: arguments are kept in clear.
    :param organization: id such as ``org-123456``; None for the connection's, else the key's default.
    :param minimum_credits: the gate opens on more credits than this: a number, or a string that is one.
    :param poke_interval: seconds between two looks at the balance.
    :param timeout: seconds that the gate was given, for the text.
    :param deadline: when they are over: an aware time in ISO format, as all times here. None for a task that
        started in the triggerer, whose time begins with it; Airflow's own timeout bounds that one when a
        triggerer is killed.
    :param end_from_trigger: succeed here, instead of resuming on a worker.
    :param do_xcom_push: whether the balance is then pushed to XCom.
    :param grace: seconds for which a key that has worked before may be refused.
    :param last_organization: whose balance the worker asked for, before it deferred: a trigger that times out
        without a look names it, too. None for the key's default.
    :param last_credits: the balance that it read; None if it got none.
    :param last_credits_at: when it was read.
    :param last_failure: what kept the worker from reading one; None if nothing did.
    :param not_before: before this time the server wants no call; None where it said nothing.
    :param expected_credits: what the run behind the gate expects to spend: a number, or a string that is one.
        The gate is then let go in turn with others that say so. None where nobody said.
    :param reservation_seconds: seconds for which that counts as spent after it was let go.
    :param since: when it began to wait, for its turn; None for now.
    :param join_at: before this time the gate does not open, and takes no look; None for at once.
    :param deferred_at: when the task deferred from a worker; None for one that started in the triggerer.
    :param memory: what the task has to remember, as plain JSON types: the event hands it back.
    :param arguments_version: what these arguments are; rows from before there were versions have none.
    :param later: what only a later release knows. The task of such arguments is handed back.
    :raises TypeError: an argument that is not known, of a version that is.
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
        join_at: str | None = None,
        deferred_at: str | None = None,
        memory: dict[str, Any] | None = None,
        arguments_version: int = ARGUMENTS_VERSION,
        **later: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        check_later(later, arguments_version, ARGUMENTS_VERSION, of="StabilityBalanceTrigger")
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
        self.join_at = join_at
        self.deferred_at = deferred_at
        self.memory = memory
        self.arguments_version = arguments_version
        self.later = later

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, as Airflow stores them."""
        return (
            "airflow_stability.triggers.stability.StabilityBalanceTrigger",
            {
                "stability_conn_id": self.stability_conn_id,
                "organization": self.organization,
                "minimum_credits": self.minimum_credits,
                "poke_interval": self.poke_interval,
                "timeout": self.timeout,
                "deadline": self.deadline,
                "end_from_trigger": self.end_from_trigger,
                "do_xcom_push": self.do_xcom_push,
                "grace": self.grace,
                "last_organization": self.last_organization,
                "last_credits": self.last_credits,
                "last_credits_at": self.last_credits_at,
                "last_failure": self.last_failure,
                "not_before": self.not_before,
                "expected_credits": self.expected_credits,
                "reservation_seconds": self.reservation_seconds,
                "since": self.since,
                "join_at": self.join_at,
                "deferred_at": self.deferred_at,
                "memory": self.memory,
                "arguments_version": self.arguments_version,
                **self.later,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait for the gate's verdict."""
        yield await self._event(await self._verdict())

    async def _event(self, verdict: dict[str, Any]) -> TriggerEvent:
        if self.end_from_trigger and verdict["verdict"] == Verdict.OPEN.value:
            credits, push = verdict["credits"], self.do_xcom_push
            try:
                return await success_event(self.task_instance, credits, do_xcom_push=push)
            except Exception as error:  # whatever Airflow's API raises
                text = "The balance could not be pushed to XCom from here (%s): a worker does it."
                await asyncio.to_thread(self.log.warning, text, type(error).__name__)
        if self.memory is not None:
            verdict["memory"] = self.memory
        await self._let_the_scheduler_see_the_deferral()
        return TriggerEvent(verdict)  # type: ignore[no-untyped-call]  # Airflow's

    async def _let_the_scheduler_see_the_deferral(self) -> None:
        # `airflow dags test` runs the trigger without a triggerer and a scheduler: then it has no id.
        if (deferred_at := _time(self.deferred_at)) and self.trigger_id is not None:
            left = MIN_DEFERRAL_SECONDS - (datetime.now(UTC) - deferred_at).total_seconds()
            await asyncio.sleep(
                min(left, MIN_DEFERRAL_SECONDS)
            )  # the worker's clock may be ahead of this one

    async def _verdict(self) -> dict[str, Any]:
        if self.arguments_version > ARGUMENTS_VERSION:
            return await self._hand_back()
        try:
            gate = Gate(
                self.minimum_credits,
                expected_credits=self.expected_credits,
                organization=self.organization or self.last_organization,
                grace=timedelta(seconds=self.grace),
            )
        except ValueError as error:
            return {"verdict": "unusable", "text": str(error)}
        gate.restore(
            (self.last_credits, looked_at)
            if self.last_credits is not None and (looked_at := _time(self.last_credits_at))
            else None,
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
            return {"verdict": "timeout", "text": text, "credits": gate.last_credits}
        await self._say(decision.text)  # out here: a log that takes its time ends no gate that is open
        return {
            "verdict": decision.verdict.value,
            "text": decision.text,
            "credits": decision.credits,
            "failure": decision.failure.name if decision.failure else None,
        }

    async def _say(self, text: str) -> None:
        # In a thread: Airflow's log goes through a socket that nobody reads while the triggerer's other
        # process is busy, as it is when many gates open.
        await asyncio.to_thread(self.log.info, "%s", text)

    async def _hand_back(self) -> dict[str, Any]:
        """Let a worker start the task over: this release may not know what it waits for."""
        text = (
            "It deferred under a later release of airflow-provider-stability than its triggerer has: its "
            f"arguments are of version {self.arguments_version}, the triggerer knows {ARGUMENTS_VERSION}."
        )
        back = "In %.0f s this task goes back to a worker, to start over. %s"
        await asyncio.to_thread(self.log.warning, back, START_OVER_AFTER, text)
        await asyncio.sleep(START_OVER_AFTER)
        return {"verdict": "again", "text": text, "credits": None, "failure": None}

    async def _follow(self, gate: Gate) -> Decision:
        feed = observations(
            self.stability_conn_id,
            self.organization,
            self.poke_interval,
            not_before=_time(self.not_before),
            ignore_before=_time(self.last_credits_at),
            join_at=_time(self.join_at),
            reservation=self._claim(gate),
        )
        key: int | None = None
        async with contextlib.aclosing(feed):
            async for observation in feed:
                gate.organization = observation.organization
                if key is not None and observation.key != key:
                    gate.key_changed()
                key = observation.key
                if isinstance(observation.outcome, StabilityError):
                    if observation.key_has_worked:
                        gate.key_has_worked()
                    decision = gate.observe_failure(observation.outcome, observation.at)
                else:
                    decision = gate.observe_balance(
                        observation.outcome, observation.at, spoken_for=observation.spoken_for
                    )
                if decision.verdict is not Verdict.WAIT:
                    return decision
                if decision.should_log:
                    await self._say(decision.text)
        raise AssertionError("a feed does not end before its followers")

    def _claim(self, gate: Gate) -> Reservation | None:
        if self.expected_credits is None:
            return None
        since = _time(self.since) or datetime.now(UTC)
        return Reservation(gate.expected_credits, gate.minimum_credits, since, self.reservation_seconds)


def _time(argument: str | None) -> datetime | None:
    if not argument:
        return None
    time = datetime.fromisoformat(argument)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def __getattr__(name: str) -> Any:
    # Loaded when it is asked for: Airflow 2.11 has no such trigger, and says so then.
    if name == "StabilityBalanceEventTrigger":
        from airflow_stability.triggers.events import StabilityBalanceEventTrigger

        return StabilityBalanceEventTrigger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
