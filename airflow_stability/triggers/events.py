"""StabilityBalanceEventTrigger: the driver of the threshold watch in a triggerer. It needs Airflow 3.

It shares the feed with all gates there.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator, Callable
from datetime import timedelta
from typing import Any

from airflow.triggers.base import TriggerEvent

from airflow_stability.errors import StabilityError
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.rules.crossing import CrossingDecision, Direction, ThresholdWatch
from airflow_stability.triggers.feed import Observation, observations
from airflow_stability.triggers.watcher_base import WatcherTrigger, WatchStore
from airflow_stability.validation import check_organization


class StabilityBalanceEventTrigger(WatcherTrigger):
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
        super().__init__(stability_conn_id=stability_conn_id, poke_interval=poke_interval, queue=queue)
        self.threshold = threshold
        self.direction = direction
        self.margin = margin
        self.organization = organization
        self._take(unknown_arguments)

    @property
    def _own_arguments(self) -> dict[str, Any]:
        return {
            "threshold": self.threshold,
            "direction": self.direction,
            "margin": self.margin,
            "organization": self.organization,
        }

    def _check_own(self) -> None:
        watch = ThresholdWatch(self.threshold, self.direction, margin=self.margin)
        self.threshold, self.margin = watch.threshold, watch.margin
        check_organization(self.organization)

    def _watch(self) -> Callable[[], AsyncGenerator[TriggerEvent, None]]:
        watch = ThresholdWatch(self.threshold, self.direction, margin=self.margin)
        # Several triggers can watch one asset, and each threshold has its own state. The interval is not in
        # the key, so that the state survives a change of it.
        key = (
            f"stability_balance {self.direction} {self.threshold} margin {self.margin} "
            f"{self.organization or 'default'} {self.stability_conn_id}"
        )
        return functools.partial(self._events, watch, WatchStore(self, watch, key))

    async def _events(self, watch: ThresholdWatch, store: WatchStore) -> AsyncGenerator[TriggerEvent, None]:
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
                        await self._let_airflow_store()
                    await store.write()
                    if decision.refused != refused:
                        refused = decision.refused
                        break  # and follow at the other interval

    async def _decide(
        self, observation: Observation, watch: ThresholdWatch, store: WatchStore
    ) -> CrossingDecision:
        outcome, at, organization = observation.outcome, observation.at, observation.organization
        if isinstance(outcome, StabilityError):
            decision = watch.observe_failure(outcome, at, organization)
            await self._log_decision(decision, failed=True)
        else:
            await store.read()
            decision = watch.observe_balance(outcome, at, organization, observation.wallet)
            await self._log_decision(decision, failed=False)
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
