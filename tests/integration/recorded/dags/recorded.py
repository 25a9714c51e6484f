"""A task of each kind that waits in a triggerer: `record.py` records them, `test_upgrade.py` resumes them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow_stability.compat import AIRFLOW_VERSION
from airflow_stability.operators.spend import StabilitySpendOperator
from airflow_stability.sensors.stability import StabilityBalanceSensor

if AIRFLOW_VERSION >= (3, 0):
    from airflow.sdk import DAG, Asset, AssetWatcher, task

    from airflow_stability.triggers.events import StabilityBalanceEventTrigger
else:
    from airflow import DAG
    from airflow.decorators import task

ONCE: dict[str, Any] = {"schedule": "@once", "start_date": datetime(2026, 1, 1), "catchup": False}
GATE: dict[str, Any] = {"minimum_credits": 8.5, "deferrable": True, "poke_interval": 2.0, "timeout": 600.0}
SPEND: dict[str, Any] = {"credits": 3, "poke_interval": 2.0, "wait_timeout": 600.0}


def paint(client):
    files = {"prompt": (None, "a fox")}
    client.request("POST", "/v2beta/stable-image/generate/core", headers={"Accept": "image/*"}, files=files)


with DAG("recorded", **ONCE) as recorded:
    StabilityBalanceSensor(task_id="classic", **GATE)
    StabilityBalanceSensor(task_id="expecting", expected_credits=4, organization="org-default", **GATE)
    StabilityBalanceSensor(task_id="ends_in_triggerer", end_from_trigger=True, **GATE)
    StabilityBalanceSensor(task_id="starts_in_triggerer", start_from_trigger=True, **GATE)
    StabilityBalanceSensor(task_id="refused", stability_conn_id="refused", **GATE)
    StabilityBalanceSensor.partial(task_id="mapped", **GATE).expand(organization=["org-default"])
    task.stability(task_id="decorated", **SPEND)(paint)()
    # Somebody else's credits are looked at, and those of the key's default organization are not enough.
    StabilitySpendOperator(
        task_id="spend_refused",
        python_callable=paint,
        organization="org-other",
        **SPEND | {"poke_interval": 90},
    )

with DAG("late", **ONCE) as late:
    StabilityBalanceSensor(task_id="timed_out", **GATE | {"timeout": 45.0})

if AIRFLOW_VERSION >= (3, 0):
    trigger = StabilityBalanceEventTrigger(threshold=8.5, direction="above", poke_interval=2.0)
    asset = Asset("credit", watchers=[AssetWatcher(name="balance", trigger=trigger)])
    with DAG("watched", schedule=[asset], start_date=datetime(2026, 1, 1), catchup=False):
        task(lambda: None, task_id="nothing")()
