"""A gate for each cell of the decision table."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow_stability.sensors.stability import StabilityBalanceSensor
from tests.integration.decision_table import FAILURES, MINIMUM, MODES, POKE_INTERVAL, cases

try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2.11
    from airflow import DAG


def note_failure(context):
    FAILURES[context["task"].task_id] = str(context["exception"])


for mode in MODES:
    with DAG(f"decision_table_{mode}", schedule=None, start_date=datetime(2026, 1, 1)):
        for case in cases(mode):
            StabilityBalanceSensor(
                task_id=case.task_id,
                minimum_credits=MINIMUM,
                organization=case.task_id,
                stability_conn_id=case.task_id,
                mode="poke" if mode == "deferrable" else mode,
                deferrable=mode == "deferrable",
                poke_interval=POKE_INTERVAL,
                timeout=case.outcome.timeout,
                # A timeout or a failure that will not pass must not use this retry.
                retries=1,
                retry_delay=timedelta(0),
                on_failure_callback=note_failure,
                **({} if case.flag == "none" else {case.flag: True}),
            )
