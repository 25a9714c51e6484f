"""Each operator with templates, and mapped gates."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow_stability.operators.stability import StabilityAccountOperator, StabilityBalanceOperator
from airflow_stability.sensors.stability import StabilityBalanceSensor

try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2.11
    from airflow import DAG

with DAG(
    "operators",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    params={"organization": "org-default", "minimum": "0"},
    default_args={"retries": 1, "retry_delay": timedelta(0)},
):
    StabilityAccountOperator(task_id="account")
    StabilityBalanceOperator(task_id="balance", organization="{{ params.organization }}")
    StabilityBalanceSensor(
        task_id="gate",
        minimum_credits="{{ params.minimum }}",
        organization="{{ params.organization }}",
        poke_interval=0.2,
        timeout=5,
    )
    StabilityBalanceSensor.partial(
        task_id="mapped_gate", minimum_credits="{{ params.minimum }}", poke_interval=0.2, timeout=5
    ).expand(organization=["org-default", "org-other"])
