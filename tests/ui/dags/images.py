"""Tasks that wait for credits in each way that Airflow shows differently, and tasks that read the balance."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import DAG, task

from airflow_stability.operators.stability import StabilityBalanceOperator
from airflow_stability.sensors.stability import StabilityBalanceSensor
from tests.ui.waiting import (
    BALANCES_DAG_ID,
    COST,
    DAG_ID,
    GATE,
    GATE_WITH_BUDGET,
    GATE_WITHOUT_WORKER,
    HISTORY,
    MINIMUM,
    OTHER_DAG_ID,
    PAINT,
    POKE_INTERVAL,
    PROMPTS,
    WITH_LEDGER,
)

COMMON: dict[str, Any] = {"minimum_credits": MINIMUM, "poke_interval": POKE_INTERVAL, "deferrable": True}
ONCE: dict[str, Any] = {"schedule": "@once", "start_date": datetime(2026, 1, 1), "catchup": False}

with DAG(DAG_ID, **ONCE):
    StabilityBalanceSensor(task_id=GATE, **COMMON)
    StabilityBalanceSensor(task_id=GATE_WITHOUT_WORKER, start_from_trigger=True, **COMMON)

    @task.stability(task_id=PAINT, credits=COST, poke_interval=POKE_INTERVAL)
    def paint(prompt, client):
        raise AssertionError("There was no credit for this.")

    paint.expand(prompt=PROMPTS)

with DAG(OTHER_DAG_ID, **ONCE):
    StabilityBalanceSensor(task_id=GATE, **COMMON)
    StabilityBalanceSensor(
        task_id=GATE_WITH_BUDGET,
        stability_conn_id=WITH_LEDGER,
        expected_credits=COST,
        budget="marketing",
        **COMMON,
    )

with DAG(BALANCES_DAG_ID, **ONCE):
    StabilityBalanceOperator.partial(task_id="balance").expand(
        stability_conn_id=["stability_default"] * len(HISTORY)
    )
