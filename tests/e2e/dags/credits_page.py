"""A gate that opens, and tasks that wait, for the Credits page to show."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow_stability.operators.stability import StabilityBalanceOperator
from airflow_stability.sensors.stability import StabilityBalanceSensor

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2.11
    from airflow import DAG
    from airflow.decorators import task

HOSTILE_ORGANIZATION = "<script>alert(1)</script>"
#: No task polls again while the test counts calls.
NEVER = 3600.0
WAITS: dict[str, Any] = {"minimum_credits": 100, "poke_interval": NEVER, "stability_conn_id": "wallet"}

with DAG("credits_opened", schedule=None, start_date=datetime(2026, 1, 1)):
    read = StabilityBalanceOperator(
        task_id="read", organization=HOSTILE_ORGANIZATION, stability_conn_id="wallet"
    )
    read >> StabilityBalanceSensor(task_id="opened", minimum_credits=5, stability_conn_id="wallet")

with DAG("credits_waiting", schedule=None, start_date=datetime(2026, 1, 1)):
    StabilityBalanceSensor(task_id="deferred", expected_credits=20, deferrable=True, **WAITS)
    StabilityBalanceSensor(task_id="unreadable", deferrable=True, **WAITS)
    StabilityBalanceSensor(task_id="aws", deferrable=True, **{**WAITS, "stability_conn_id": "not_ours"})
    StabilityBalanceSensor(task_id="rescheduled", mode="reschedule", **WAITS)
    StabilityBalanceSensor(
        task_id="hostile_organization", organization=HOSTILE_ORGANIZATION, mode="reschedule", **WAITS
    )
    StabilityBalanceSensor(task_id="outage", deferrable=True, **{**WAITS, "stability_conn_id": "outage"})

    @task.stability(credits="75", poke_interval=NEVER, stability_conn_id="wallet")
    def spend(client: Any, prompt: str) -> None:
        raise AssertionError("there is no credit for this")

    spend.expand(prompt=["one", "two"])

with DAG("credits_hidden", schedule=None, start_date=datetime(2026, 1, 1)):
    StabilityBalanceSensor(task_id="of_a_hidden_dag", deferrable=True, **WAITS)
