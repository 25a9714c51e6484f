"""A gate whose call takes longer than the task may run."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow_stability.sensors.stability import StabilityBalanceSensor

try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2.11
    from airflow import DAG

with DAG("execution_timeout", schedule=None, start_date=datetime(2026, 1, 1)):
    StabilityBalanceSensor(
        task_id="gate", minimum_credits=8, soft_fail=True, execution_timeout=timedelta(seconds=3)
    )
