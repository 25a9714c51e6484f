"""StabilityBalanceEventTrigger: drives a watch in a triggerer, on the feed that all gates there share.

It is imported from :mod:`airflow_stability.triggers.stability`, and needs Airflow 3.

What must not happen to the trigger of an asset's watcher, and how it is kept from happening:

- Airflow restarts one that ends or raises every two seconds, for ever: ``run`` does neither.
- The event is lost if the triggerer is killed before Airflow has stored it. So memory is brought up to date a
  moment after the event: killed in between, it fires again. An event may come twice, but is not lost.
- When memory cannot be read or written, events are fired all the same, and it is tried again with each
  balance.
- A triggerer may have an earlier release than the one that stored the arguments: what is not known is
  ignored, and what cannot be used is waited out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from airflow.triggers.base import TriggerEvent

from airflow_stability.compat import BaseEventTrigger, asset_state_store
from airflow_stability.errors import StabilityError
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.rules.crossing import CrossingDecision, Direction, ThresholdWatch
from airflow_stability.triggers.feed import Observation, observations
from airflow_stability.validation import check_conn_id, check_later, check_organization, check_seconds

#: The version of the arguments that StabilityBalanceEventTrigger.serialize() returns, with the rules that the
#: gates' ARGUMENTS_VERSION has. One of its own, since another version is another trigger: Airflow replaces it
#: when it next parses the DAG.
ARGUMENTS_VERSION = 1

#: Seconds that Airflow gets to store an event. It takes one or two, and tells nobody.
EVENT_STORE_SECONDS = 5.0


class StabilityBalanceEventTrigger(BaseEventTrigger):
    """Starts DAGs when a balance crosses a threshold: for the ``AssetWatcher`` of an asset. Airflow 3.

    It fires once per crossing, and for the next one after the balance was back on the other side. The first
    balance that it ever reads fires nothing; beyond the threshold it counts as if it had. On Airflow 3.3 the
    side and the last balance are remembered in the asset's state store, so that a crossing while no triggerer
    ran is noticed afterwards; before 3.3 each restart of the triggerer begins anew.

    The event's payload is a dict of ``credits``, ``previous_credits``, ``threshold``, ``direction``,
    ``organization`` (None for the key's default) and ``time`` (in ISO format).

    It never ends by itself. What goes wrong is in the triggerer's log; a refused key is tried again every
    five minutes at the most.

    :param threshold: credits: a finite number, 0 or more, or a string that is one.
    :param direction: ``above`` fires when the balance rises to more credits than the threshold, ``below``
        when it falls to as many or fewer.
    :param margin: credits by which the balance must have gone back before it fires again: ``above`` to the
        threshold less the margin or fewer, ``below`` to more than the threshold plus the margin.
    :param organization: id such as ``org-123456``; None for the connection's organization, else the key's
        default.
    :param stability_conn_id: a connection of type ``stability``. Never a key: arguments are kept in Airflow's
        database.
    :param poke_interval: seconds between two looks at the balance.
    :raises ValueError: an argument that cannot be what it should.
    """

    #: A request that was refused, for a bad key or the like, is repeated after this many seconds at the
    #: earliest. A gate fails then; a watcher goes on until somebody mends it, and that may be days.
    ask_refused_every = 300.0

    def __init__(
        self,
        *,
        threshold: float | str,
        direction: Direction,
        margin: float | str = 0,
        organization: str | None = None,
        stability_conn_id: str = StabilityHook.default_conn_name,
        poke_interval: float = 60,
        **stored: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        # What no DAG file gives, but what serialize() has returned: of this release, or of a later one.
        self.arguments_version: int = stored.pop("arguments_version", ARGUMENTS_VERSION)
        self.later = stored
        check_later(stored, self.arguments_version, ARGUMENTS_VERSION, of="StabilityBalanceEventTrigger")
        self.threshold = threshold
        self.direction = direction
        self.margin = margin
        self.organization = organization
        self.stability_conn_id = stability_conn_id
        self.poke_interval = poke_interval
        self.unusable: str | None = None
        try:
            self._check()
        except ValueError as error:
            # A triggerer makes the trigger anew from what is stored, and dies of a ValueError: whatever was
            # once accepted here has to be accepted for ever, and what a later release accepts must not raise.
            if self.arguments_version <= ARGUMENTS_VERSION:
                raise
            self.unusable = str(error)

    def _check(self) -> None:
        watch = ThresholdWatch(self.threshold, self.direction, margin=self.margin)
        self.threshold, self.margin = watch.threshold, watch.margin
        check_organization(self.organization)
        check_conn_id(self.stability_conn_id)
        self.poke_interval = check_seconds(self.poke_interval, argument="poke_interval")

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, as Airflow stores them: equal ones are one trigger."""
        return (
            "airflow_stability.triggers.stability.StabilityBalanceEventTrigger",
            {
                "threshold": self.threshold,
                "direction": self.direction,
                "margin": self.margin,
                "organization": self.organization,
                "stability_conn_id": self.stability_conn_id,
                "poke_interval": self.poke_interval,
                "arguments_version": self.arguments_version,
                **self.later,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Fire at each crossing, for ever."""
        if self.arguments_version > ARGUMENTS_VERSION:
            self._tell_of_later_arguments()
        if self.unusable:
            await asyncio.Event().wait()  # until Airflow cancels it: ended, it would be started again at once
        watch = ThresholdWatch(self.threshold, self.direction, margin=self.margin)
        memory = _Memory(self, watch)
        while True:
            try:
                async with contextlib.aclosing(self._events(watch, memory)) as events:
                    async for event in events:
                        yield event
            except Exception:
                self.log.exception("What should not happen has happened; the balance is watched on.")
            await asyncio.sleep(self.poke_interval)

    def _tell_of_later_arguments(self) -> None:
        self.log.warning(
            "A later release of airflow-provider-stability has stored this watcher than the triggerer has "
            "(its arguments are of version %s, the triggerer knows %s). Till the triggerer is upgraded, %s",
            self.arguments_version,
            ARGUMENTS_VERSION,
            f"nothing is watched: {self.unusable}"
            if self.unusable
            else f"the balance is watched regardless of {', '.join(sorted(self.later)) or 'what is new'}.",
        )

    async def _events(self, watch: ThresholdWatch, memory: _Memory) -> AsyncGenerator[TriggerEvent, None]:
        refused = False
        while True:
            interval = max(self.poke_interval, self.ask_refused_every) if refused else self.poke_interval
            feed = observations(self.stability_conn_id, self.organization, interval, is_gate=False)
            async with contextlib.aclosing(feed):
                async for observation in feed:
                    report = await self._report(observation, watch, memory)
                    if report.crossed:
                        yield self._event(observation, report)
                        await asyncio.sleep(min(EVENT_STORE_SECONDS, self.poke_interval))
                    await memory.write()
                    if report.refused != refused:
                        refused = report.refused
                        break  # and follow at the other interval

    async def _report(
        self, observation: Observation, watch: ThresholdWatch, memory: _Memory
    ) -> CrossingDecision:
        if isinstance(observation.outcome, StabilityError):
            report = watch.observe_failure(observation.outcome, observation.at, observation.organization)
            say = self.log.warning
        else:
            await memory.read()
            report = watch.observe_balance(observation.outcome, observation.at, observation.organization)
            say = self.log.info
        if report.should_log:
            await asyncio.to_thread(say, "%s", report.text)  # see StabilityBalanceTrigger
        return report

    def _event(self, observation: Observation, report: CrossingDecision) -> TriggerEvent:
        payload = {
            "credits": observation.outcome,
            "previous_credits": report.previous_credits,
            "threshold": self.threshold,
            "direction": self.direction,
            "organization": observation.organization,
            "time": observation.at.isoformat(),
        }
        return TriggerEvent(payload)  # type: ignore[no-untyped-call]  # Airflow's


class _Memory:
    """Keeps what a watch knows in the state store of the asset, where Airflow has one."""

    def __init__(self, trigger: StabilityBalanceEventTrigger, watch: ThresholdWatch) -> None:
        self._watch = watch
        self._log = trigger.log
        self._store = asset_state_store(trigger)
        # Several triggers can watch one asset, and another threshold has another side. The interval may
        # change without anything being forgotten.
        self._key = (
            f"stability_balance {trigger.direction} {trigger.threshold} margin {trigger.margin} "
            f"{trigger.organization or 'default'} {trigger.stability_conn_id}"
        )
        self._was_read = False
        self._written: object = None
        self._fails = False

    async def read(self) -> None:
        """Let the watch recall what it knew before a restart, if it has not yet."""
        if self._store is None or self._was_read:
            return
        try:
            self._written = await self._store.aget(self._key)
        except Exception as error:  # whatever Airflow's API or a state backend raises
            self._failed("read", error)
            return
        self._was_read = True
        self._watch.restore(self._written)

    async def write(self) -> None:
        """Keep what the watch knows, if it is news; never over something that was not read yet."""
        state = self._watch.state
        if self._store is None or not self._was_read or state is None or state == self._written:
            return
        try:
            await self._store.aset(self._key, state)
        except Exception as error:
            self._failed("written", error)
            return
        self._written = state
        self._fails = False

    def _failed(self, done: str, error: Exception) -> None:
        if not self._fails:
            self._fails = True
            # Airflow gives no way to a store when it gives more than one.
            shared = (
                " Several assets with the same trigger have no memory."
                if isinstance(error, ValueError)
                else ""
            )
            self._log.warning(
                "The trigger's memory in the asset's state store could not be %s (%s: %s).%s Until it can, a "
                "crossing around a restart of the triggerer may be missed, or fired twice.",
                done,
                type(error).__name__,
                error,
                shared,
            )
