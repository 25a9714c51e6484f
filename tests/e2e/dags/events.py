"""DAGs that start when a balance crosses the gates' minimum."""

from __future__ import annotations

from datetime import datetime

from airflow_stability.compat import AIRFLOW_VERSION
from tests.e2e.gates import MINIMUM, POKE_INTERVAL

if AIRFLOW_VERSION >= (3, 0):
    from airflow.sdk import DAG, Asset, AssetWatcher, task

    from airflow_stability.triggers.events import StabilityBalanceEventTrigger

    for dag_id, direction in (("restored", "above"), ("low", "below")):
        trigger = StabilityBalanceEventTrigger(
            threshold=MINIMUM,
            direction=direction,
            stability_conn_id="watched",
            poke_interval=POKE_INTERVAL,
        )
        asset = Asset(f"credit_{dag_id}", watchers=[AssetWatcher(name="balance", trigger=trigger)])
        with DAG(dag_id, schedule=[asset], start_date=datetime(2026, 1, 1), catchup=False):

            @task
            def tell(triggering_asset_events=None):
                ((event,),) = triggering_asset_events.values()
                return event.extra["payload"]

            tell()
