"""Our gate, in each of the ways in which it can wait in a triggerer."""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_stability.sensors.stability import StabilityBalanceSensor

for dag_id, in_trigger in {
    "ours_classic": {},
    "ours_end": {"end_from_trigger": True},
    "ours_start_end": {"start_from_trigger": True, "end_from_trigger": True},
    "ours_no_xcom": {"start_from_trigger": True, "end_from_trigger": True, "do_xcom_push": False},
}.items():
    with DAG(dag_id, schedule=None, max_active_runs=10_000):
        StabilityBalanceSensor(
            task_id="gate",
            minimum_credits=10,
            deferrable=True,
            poke_interval=5,
            timeout=4 * 3600,
            **in_trigger,
        )
