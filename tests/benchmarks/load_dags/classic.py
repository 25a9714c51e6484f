"""The gate of the load test that looks at the balance on a worker first.

It has a file of its own, because each worker parses the whole file.
"""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_stability.sensors.stability import StabilityBalanceSensor

with DAG("classic", schedule=None, max_active_runs=10_000):
    StabilityBalanceSensor(
        task_id="gate",
        organization="{{ dag_run.conf['organization'] }}",
        minimum_credits=10,
        deferrable=True,
        end_from_trigger=True,
        poke_interval=5,
        timeout=4 * 3600,
    )
