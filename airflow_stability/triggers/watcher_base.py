"""The base of the triggers for asset watchers: common arguments, a memory, and a run that never ends.

They need Airflow 3. The dangers for an AssetWatcher's trigger, and what prevents them:

- If a trigger ends or raises, Airflow restarts it every two seconds, for ever. ``run`` does neither.
- An event is lost if the triggerer is killed before Airflow has stored it. So the state is stored a moment
  after the event. If the triggerer is killed in between, the event fires again: it may come twice, but is not
  lost.
- If the state cannot be read or stored, events still fire. Each reading brings another attempt.
- Another release may have stored the arguments. Unknown ones are ignored. If one is unusable, nothing is
  watched until the DAG is parsed again.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import timedelta
from typing import Any, Protocol

from airflow.triggers.base import TriggerEvent

from airflow_stability.compat import EVENT_TRIGGERS_HAVE_QUEUES, BaseEventTrigger, asset_state_store
from airflow_stability.rules.crossing import CrossingDecision
from airflow_stability.validation import check_conn_id, check_seconds, safe_repr

#: Seconds that Airflow gets to store an event. It takes one or two, and does not report the end.
EVENT_STORE_SECONDS = 5.0


class WatcherTrigger(BaseEventTrigger):
    """The base of the triggers for asset watchers.

    A subclass keeps its own arguments as attributes, and then calls :meth:`_take`.

    :param stability_conn_id: a connection of type ``stability``.
    :param poke_interval: seconds, or a timedelta, between two readings of what is watched.
    :param queue: only triggerers of this queue run the trigger; None for triggerers without a queue.
    """

    #: The shortest time between two polls after a permanent failure, in seconds. A gate fails then. A watcher
    #: goes on until somebody fixes the cause, which may take days.
    poll_interval_after_permanent_failure = 300.0

    def __init__(
        self, *, stability_conn_id: str, poke_interval: float | timedelta, queue: str | None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.stability_conn_id = stability_conn_id
        self.poke_interval: float = poke_interval  # type: ignore[assignment]  # checked by _take()
        self.queue = queue  # Airflow reads it when it stores the trigger of a DAG
        self.unknown_arguments: dict[str, Any] = {}
        #: Why nothing can be watched; None if it can.
        self.unusable: str | None = None

    def _take(self, unknown_arguments: dict[str, Any]) -> None:
        """Check all arguments.

        :param unknown_arguments: those that the subclass does not know.
        :raises ValueError: an argument is unusable.
        :raises TypeError: an argument is unknown.
        """
        # Only serialize() adds ``stored``: then Airflow makes this trigger from its database. In that case,
        # arguments of another release are kept and ignored, and an unusable argument raises nothing.
        stored = unknown_arguments.pop("stored", False)
        if unknown_arguments and not stored:
            unknown = ", ".join(sorted(unknown_arguments))
            raise TypeError(f"{type(self).__name__} has no argument {unknown}")
        self.unknown_arguments = unknown_arguments
        try:
            self._check_own()
            self._check()
        except ValueError as error:
            if not stored:
                raise
            self.unusable = str(error)  # a ValueError would end a triggerer that makes the trigger anew

    def _check(self) -> None:
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

    @property
    @abc.abstractmethod
    def _own_arguments(self) -> dict[str, Any]:
        """The subclass's own arguments, as Airflow stores them."""

    @abc.abstractmethod
    def _check_own(self) -> None:
        """Check the subclass's own arguments.

        :raises ValueError: one is unusable.
        """

    @abc.abstractmethod
    def _watch(self) -> Callable[[], AsyncGenerator[TriggerEvent, None]]:
        """Begin a watch; return a function that generates its events. Each call goes on with that watch."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, as Airflow stores them. Equal ones make one trigger."""
        arguments = self._own_arguments | {
            "stability_conn_id": self.stability_conn_id,
            "poke_interval": self.poke_interval,
            "stored": True,
        }
        if self.queue is not None:
            # Airflow stores the queue separately, too. It would not notice if only the queue changed.
            arguments["queue"] = self.queue
        own = type(self)
        return f"{own.__module__}.{own.__qualname__}", arguments | self.unknown_arguments

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
        watch = self._watch()
        while True:
            try:
                async with contextlib.aclosing(watch()) as events:
                    async for event in events:
                        yield event
            except Exception:
                self.log.exception("An unexpected error; the watch goes on.")
            await asyncio.sleep(self.poke_interval)

    async def _log_decision(self, decision: CrossingDecision, *, failed: bool) -> None:
        if decision.should_log:
            log = self.log.warning if failed else self.log.info
            await asyncio.to_thread(log, "%s", decision.text)  # in a thread: see StabilityBalanceTrigger

    async def _let_airflow_store(self) -> None:
        """Give Airflow time to store an event before the state says that the event was fired."""
        await asyncio.sleep(min(EVENT_STORE_SECONDS, self.poke_interval))


class Watch(Protocol):
    """What a watch remembers."""

    @property
    def state(self) -> object:
        """What must be known after a restart, as plain JSON; None if there is nothing yet."""

    def restore(self, state: object) -> None:
        """Take over a state from before a restart. Anything else is ignored."""


class WatchStore:
    """The state of a watch in the asset's state store, if this Airflow has one.

    :param key: identifies the watch among those of one asset.
    """

    def __init__(self, trigger: WatcherTrigger, watch: Watch, key: str) -> None:
        self._watch = watch
        self._log = trigger.log
        self._store = asset_state_store(trigger)
        self._key = key
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
            # If the trigger belongs to several assets, Airflow gives access to none of their stores.
            shared = (
                " Several assets with the same trigger have no state store."
                if isinstance(error, ValueError)
                else ""
            )
            self._log.warning(
                "The trigger's state in the asset's state store could not be %s (%s: %s).%s Until that "
                "works, a crossing around a restart of the triggerer may be missed, or fired twice.",
                done,
                type(error).__name__,
                error,
                shared,
            )
