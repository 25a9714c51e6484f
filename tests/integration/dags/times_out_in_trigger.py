"""A gate that waits in the triggerer until its timeout, and is then skipped."""

from __future__ import annotations

from datetime import datetime

from airflow_stability.sensors.stability import StabilityBalanceSensor

try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2.11
    from airflow import DAG

with DAG("times_out_in_trigger", schedule=None, start_date=datetime(2026, 1, 1)):
    StabilityBalanceSensor(
        task_id="gate", minimum_credits=30, deferrable=True, poke_interval=0.2, timeout=2, soft_fail=True
    )
