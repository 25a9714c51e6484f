"""A rescheduled gate for each kind of trouble."""

from __future__ import annotations

from datetime import datetime

from airflow_stability.sensors.stability import StabilityBalanceSensor
from tests.integration.trouble import POKE_INTERVAL, TIMEOUT, TROUBLES

try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2.11
    from airflow import DAG

with DAG("a_minute_of_trouble", schedule=None, start_date=datetime(2026, 1, 1)):
    for trouble in TROUBLES:
        StabilityBalanceSensor(
            task_id=f"{trouble}-reschedule",
            minimum_credits=8,
            stability_conn_id=f"{trouble}-reschedule",
            mode="reschedule",
            poke_interval=POKE_INTERVAL,
            timeout=TIMEOUT,
        )
