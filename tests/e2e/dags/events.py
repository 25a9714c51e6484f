"""DAGs that start when a balance crosses the gates' minimum, and when a budget reaches its soft limit."""

from __future__ import annotations

from datetime import datetime

from airflow_stability.compat import AIRFLOW_VERSION
from tests.e2e.gates import BUDGET, MINIMUM, POKE_INTERVAL

if AIRFLOW_VERSION >= (3, 0):
    from airflow.sdk import DAG, Asset, AssetWatcher, task

    from airflow_stability.triggers.budget_events import StabilityBudgetEventTrigger
    from airflow_stability.triggers.events import StabilityBalanceEventTrigger

    WATCHED = {"stability_conn_id": "watched", "poke_interval": POKE_INTERVAL}
    TRIGGERS = {
        "restored": StabilityBalanceEventTrigger(threshold=MINIMUM, direction="above", **WATCHED),
        "low": StabilityBalanceEventTrigger(threshold=MINIMUM, direction="below", **WATCHED),
        "soft_limit": StabilityBudgetEventTrigger(budget=BUDGET, **WATCHED),
    }
    for dag_id, trigger in TRIGGERS.items():
        asset = Asset(f"watched_{dag_id}", watchers=[AssetWatcher(name="watcher", trigger=trigger)])
        with DAG(dag_id, schedule=[asset], start_date=datetime(2026, 1, 1), catchup=False):

            @task
            def tell(triggering_asset_events=None):
                ((event,),) = triggering_asset_events.values()
                return event.extra["payload"]

            tell()
