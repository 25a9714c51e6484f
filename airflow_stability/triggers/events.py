"""StabilityBalanceEventTrigger: the driver of the threshold watch in a triggerer. It needs Airflow 3.

It shares the feed with all gates there. The dangers for an AssetWatcher's trigger, and what prevents them:

- If a trigger ends or raises, Airflow restarts it every two seconds, for ever. ``run`` does neither.
- An event is lost if the triggerer is killed before Airflow has stored it. So the state is stored a moment
  after the event. If the triggerer is killed in between, the event fires again: it may come twice, but is not
  lost.
- If the state cannot be read or stored, events still fire. Each balance brings another attempt.
- Another release may have stored the arguments. Unknown ones are ignored. If one is unusable, nothing is
  watched until the DAG is parsed again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import timedelta
from typing import Any

from airflow.triggers.base import TriggerEvent

from airflow_stability.compat import EVENT_TRIGGERS_HAVE_QUEUES, BaseEventTrigger, asset_state_store
from airflow_stability.errors import StabilityError
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.rules.crossing import CrossingDecision, Direction, ThresholdWatch
from airflow_stability.triggers.feed import Observation, observations
from airflow_stability.validation import check_conn_id, check_organization, check_seconds, safe_repr

#: Seconds that Airflow gets to store an event. It takes one or two, and does not report the end.
EVENT_STORE_SECONDS = 5.0


class StabilityBalanceEventTrigger(BaseEventTrigger):
    """A trigger for an ``AssetWatcher`` that fires when a balance crosses a threshold. It needs Airflow 3.

    It fires once per crossing, and again only after the balance was back on the other side. The first balance
    that it ever reads fires nothing. If it is beyond the threshold, it counts as if it had fired. The same
    holds for the first balance after somebody has edited the connection, if it now leads to another wallet.
    From Airflow 3.3 on, the side, the last balance and its organization are stored in the asset's state
    store, so a crossing while no triggerer ran is noticed afterwards. Before, the watch begins anew with each
    restart of the triggerer.

    The event's payload is a dict of ``credits``, ``previous_credits``, ``threshold``, ``direction``,
    ``organization`` (None for the key's default) and ``time`` (in ISO format).

    The trigger never ends by itself. Failures are in the triggerer's log. After a permanent failure, such as
    a refused key, it polls every five minutes at most.

    :param threshold: credits: a finite number, 0 or more, or a string that is one.
    :param direction: ``above`` fires when the balance rises to more credits than the threshold, ``below``
        when it falls to the threshold or fewer.
    :param margin: credits by which the balance must go back before it fires again: ``above`` to the threshold
        less the margin or fewer, ``below`` to more than the threshold plus the margin; default 0.
    :param organization: id such as ``org-123456``; None for the connection's organization, else the key's
        default.
    :param stability_conn_id: a connection of type ``stability``. Never a key: Airflow stores the arguments.
    :param poke_interval: seconds, or a timedelta, between two polls of the balance; default 60.
    :param queue: only triggerers of this queue run the trigger (``airflow triggerer --queues``); None for
        triggerers without a queue. It needs Airflow 3.4.
    :raises ValueError: an argument is unusable.
    :raises TypeError: an argument is unknown.
    """

    #: The shortest time between two polls after a permanent failure, in seconds. A gate fails then. A watcher
    #: goes on until somebody fixes the cause, which may take days.
    poll_interval_after_permanent_failure = 300.0

    def __init__(
        self,
        *,
        threshold: float | str,
        direction: Direction,
        margin: float | str = 0,
        organization: str | None = None,
        stability_conn_id: str = StabilityHook.default_conn_name,
        poke_interval: float | timedelta = 60,
        queue: str | None = None,
        **unknown_arguments: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        # Only serialize() passes it: Airflow makes this trigger from its database. Then arguments of another
        # release are kept and ignored, and an unusable argument raises nothing.
        stored = unknown_arguments.pop("stored", False)
        if unknown_arguments and not stored:
            unknown = ", ".join(sorted(unknown_arguments))
            raise TypeError(f"StabilityBalanceEventTrigger has no argument {unknown}")
        self.unknown_arguments = unknown_arguments
        self.threshold = threshold
        self.direction = direction
        self.margin = margin
        self.organization = organization
        self.stability_conn_id = stability_conn_id
        self.poke_interval: float = poke_interval  # type: ignore[assignment]  # checked below
        self.queue = queue  # Airflow reads it when it stores the trigger of a DAG
        #: Why nothing can be watched; None if it can.
        self.unusable: str | None = None
        try:
            self._check()
        except ValueError as error:
            if not stored:
                raise
            self.unusable = str(error)  # a ValueError would end a triggerer that makes the trigger anew

    def _check(self) -> None:
        watch = ThresholdWatch(self.threshold, self.direction, margin=self.margin)
        self.threshold, self.margin = watch.threshold, watch.margin
        check_organization(self.organization)
        check_conn_id(self.stability_conn_id)
        self.poke_interval = check_seconds(self.poke_interval, argument="poke_interval")
        if self.queue is None:
            return
        if not isinstance(self.queue, str) or not self.queue:
            raise ValueError(f"queue must be the name of a queue; got {safe_repr(self.queue)}.")
        if not EVENT_TRIGGERS_HAVE_QUEUES:
            raise ValueError(
                "queue needs Airflow 3.4 or later: before, a watcher's trigger is in no queue. Leave it out; "
                f"got {safe_repr(self.queue)}."
            )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, as Airflow stores them. Equal ones make one trigger."""
        arguments = {
            "threshold": self.threshold,
            "direction": self.direction,
            "margin": self.margin,
            "organization": self.organization,
            "stability_conn_id": self.stability_conn_id,
            "poke_interval": self.poke_interval,
            "stored": True,
        }
        if self.queue is not None:
            # Airflow stores the queue beside these, and takes no notice of a change of it alone.
            arguments["queue"] = self.queue
        return (
            "airflow_stability.triggers.events.StabilityBalanceEventTrigger",
            arguments | self.unknown_arguments,
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Fire at each crossing, for ever."""
        if self.unusable:
            self.log.warning(
                "Nothing is watched, because another release of airflow-provider-stability has stored an "
                "argument that this one cannot use: %s",
                self.unusable,
            )
            await asyncio.Event().wait()  # until Airflow cancels it; if it ended, Airflow would restart it
        if self.unknown_arguments:
            ignored = ", ".join(sorted(self.unknown_arguments))
            self.log.warning("Arguments that only another release knows are ignored: %s.", ignored)
        watch = ThresholdWatch(self.threshold, self.direction, margin=self.margin)
        store = _WatchStore(self, watch)
        while True:
            try:
                async with contextlib.aclosing(self._events(watch, store)) as events:
                    async for event in events:
                        yield event
            except Exception:
                self.log.exception("An unexpected error; the watch goes on.")
            await asyncio.sleep(self.poke_interval)

    async def _events(self, watch: ThresholdWatch, store: _WatchStore) -> AsyncGenerator[TriggerEvent, None]:
        refused = False
        while True:
            interval = self.poke_interval
            if refused:
                interval = max(interval, self.poll_interval_after_permanent_failure)
            feed = observations(self.stability_conn_id, self.organization, interval, is_gate=False)
            async with contextlib.aclosing(feed):
                async for observation in feed:
                    decision = await self._decide(observation, watch, store)
                    if decision.crossed:
                        yield self._event(observation, decision)
                        await asyncio.sleep(min(EVENT_STORE_SECONDS, self.poke_interval))
                    await store.write()
                    if decision.refused != refused:
                        refused = decision.refused
                        break  # and follow at the other interval

    async def _decide(
        self, observation: Observation, watch: ThresholdWatch, store: _WatchStore
    ) -> CrossingDecision:
        outcome, at, organization = observation.outcome, observation.at, observation.organization
        if isinstance(outcome, StabilityError):
            decision = watch.observe_failure(outcome, at, organization)
            log = self.log.warning
        else:
            await store.read()
            decision = watch.observe_balance(outcome, at, organization, observation.wallet)
            log = self.log.info
        if decision.should_log:
            await asyncio.to_thread(log, "%s", decision.text)  # in a thread: see StabilityBalanceTrigger
        return decision

    def _event(self, observation: Observation, decision: CrossingDecision) -> TriggerEvent:
        payload = {
            "credits": observation.outcome,
            "previous_credits": decision.previous_credits,
            "threshold": self.threshold,
            "direction": self.direction,
            "organization": observation.organization,
            "time": observation.at.isoformat(),
        }
        return TriggerEvent(payload)  # type: ignore[no-untyped-call]  # Airflow's


class _WatchStore:
    """The state of a watch in the asset's state store, if this Airflow has one."""

    def __init__(self, trigger: StabilityBalanceEventTrigger, watch: ThresholdWatch) -> None:
        self._watch = watch
        self._log = trigger.log
        self._store = asset_state_store(trigger)
        # Several triggers can watch one asset, and each threshold has its own state. The interval is not in
        # the key, so that the state survives a change of it.
        self._key = (
            f"stability_balance {trigger.direction} {trigger.threshold} margin {trigger.margin} "
            f"{trigger.organization or 'default'} {trigger.stability_conn_id}"
        )
        self._was_read = False
        self._written: object = None
        self._fails = False

    async def read(self) -> None:
        """Restore the state from before a restart, unless that was done already."""
        if self._store is None or self._was_read:
            return
        try:
            self._written = await self._store.aget(self._key)
        except Exception as error:  # whatever Airflow's API or a state backend raises
            self._log_failure("read", error)
            return
        self._was_read = True
        self._watch.restore(self._written)

    async def write(self) -> None:
        """Store the state if it has changed, but never over a state that was not read yet."""
        state = self._watch.state
        if self._store is None or not self._was_read or state is None or state == self._written:
            return
        try:
            await self._store.aset(self._key, state)
        except Exception as error:
            self._log_failure("stored", error)
            return
        self._written = state
        self._fails = False

    def _log_failure(self, done: str, error: Exception) -> None:
        if not self._fails:
            self._fails = True
            # With more than one store, Airflow gives access to none.
            shared = (
                " Several assets with the same trigger have no state store."
                if isinstance(error, ValueError)
                else ""
            )
            self._log.warning(
                "The trigger's state in the asset's state store could not be %s (%s: %s).%s Until it can, a "
                "crossing around a restart of the triggerer may be missed, or fired twice.",
                done,
                type(error).__name__,
                error,
                shared,
            )
