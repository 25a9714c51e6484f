"""Airflow's HttpSensor. Its trigger waits while the status is 404, and looks at nothing else."""

from __future__ import annotations

from airflow.providers.http.sensors.http import HttpSensor
from airflow.sdk import DAG

with DAG("http_sensor", schedule=None, max_active_runs=10_000):
    HttpSensor(
        task_id="gate",
        endpoint="/v1/user/account",
        http_conn_id="balance_http",
        deferrable=True,
        poke_interval=5,
        timeout=4 * 3600,
    )
