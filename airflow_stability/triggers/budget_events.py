"""StabilityBudgetEventTrigger: the driver of the soft-limit watch in a triggerer. It needs Airflow 3."""

from __future__ import annotations

import asyncio
import functools
import importlib
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import TriggerEvent

from airflow_stability.errors import StabilityError
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.rules.budget_periods import END
from airflow_stability.rules.credits import from_microcredits
from airflow_stability.rules.soft_limit import SoftLimitWatch
from airflow_stability.triggers.watcher_base import WatcherTrigger, WatchStore
from airflow_stability.validation import check_budget_name, in_utc

if TYPE_CHECKING:
    # This module loads SQLAlchemy. At run time, a thread loads it before the first reading.
    from airflow_stability.ledger.budgets import Budget


class StabilityBudgetEventTrigger(WatcherTrigger):
    """A trigger for an ``AssetWatcher`` that fires when a budget reaches its soft limit. It needs Airflow 3.

    It fires once per period of the budget. If somebody changes the limit or the soft limit, it can fire
    again: at once if the budget has already reached the soft limit, or else when the budget reaches it. It
    does not fire if the soft limit is already reached at the first reading of the budget.

    From Airflow 3.3 on, the asset's state store holds the time at which the soft limit was last reached. So
    the trigger notices a crossing while no triggerer ran, unless the period is over by then. Before Airflow
    3.3, the watch begins anew with each restart of the triggerer.

    The event's payload is a dict of ``budget``, ``used`` and ``limit`` (credits), ``soft_percent``,
    ``reached_at`` and ``renews_at`` (in ISO format, in UTC; ``renews_at`` is None for a budget that does not
    renew). The credits are those at the time when the trigger read the ledger.

    The trigger never ends by itself. Failures are in the triggerer's log. While there is no such budget, or
    no ledger, it looks every five minutes, or every ``poke_interval`` if that is longer.

    :param budget: the name of a budget of the connection's ledger: 1 to 100 characters. It needs a soft
        limit (``airflow stability budget set --soft``).
    :param stability_conn_id: a connection of type ``stability`` whose extra names the ledger.
    :param poke_interval: seconds, or a timedelta, between two readings of the budget; default 60.
    :param queue: only triggerers of this queue run the trigger (``airflow triggerer --queues``); None for
        triggerers without a queue. It needs Airflow 3.4.
    :raises ValueError: an argument is unusable.
    :raises TypeError: an argument is unknown.
    """

    def __init__(
        self,
        *,
        budget: str,
        stability_conn_id: str = StabilityHook.default_conn_name,
        poke_interval: float | timedelta = 60,
        queue: str | None = None,
        **unknown_arguments: Any,
    ) -> None:
        super().__init__(stability_conn_id=stability_conn_id, poke_interval=poke_interval, queue=queue)
        self.budget = budget
        self._take(unknown_arguments)

    @property
    def _own_arguments(self) -> dict[str, Any]:
        return {"budget": self.budget}

    def _check_own(self) -> None:
        check_budget_name(self.budget)

    def _watch(self) -> Callable[[], AsyncGenerator[TriggerEvent, None]]:
        watch = SoftLimitWatch(self.budget)
        key = f"stability_budget {self.budget} {self.stability_conn_id}"
        return functools.partial(self._events, watch, WatchStore(self, watch, key))

    async def _events(self, watch: SoftLimitWatch, store: WatchStore) -> AsyncGenerator[TriggerEvent, None]:
        ledgers = await asyncio.to_thread(importlib.import_module, "airflow_stability.triggers.ledger")
        while True:
            interval = self.poke_interval
            try:
                budget = await ledgers.read_budget(self.stability_conn_id, self.budget)
            except StabilityError as error:
                decision = watch.observe_failure(error, datetime.now(UTC))
                await self._log_decision(decision, failed=True)
                if decision.refused:
                    interval = max(interval, self.poll_interval_after_permanent_failure)
            else:
                await store.read()
                reached_at = budget.soft_reached_at and in_utc(budget.soft_reached_at)
                decision = watch.observe_budget(
                    budget.soft_percent, reached_at, budget.text, datetime.now(UTC)
                )
                await self._log_decision(decision, failed=False)
                if decision.crossed:
                    yield self._event(budget)
                    await self._let_airflow_store()
            await store.write()
            await asyncio.sleep(interval)

    def _event(self, budget: Budget) -> TriggerEvent:
        ends_at = in_utc(budget.period.ends_at)
        assert budget.soft_reached_at is not None
        payload = {
            "budget": budget.name,
            "used": from_microcredits(budget.used),
            "limit": from_microcredits(budget.limit),
            "soft_percent": budget.soft_percent,
            "reached_at": in_utc(budget.soft_reached_at).isoformat(),
            "renews_at": None if ends_at >= END else ends_at.isoformat(),
        }
        return TriggerEvent(payload)  # type: ignore[no-untyped-call]  # Airflow's
