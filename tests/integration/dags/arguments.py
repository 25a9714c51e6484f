"""Tasks whose templates give nothing, gates that look once, and tasks with just enough credit."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow_stability.operators.spend import StabilitySpendOperator
from airflow_stability.operators.stability import StabilityAccountOperator, StabilityBalanceOperator
from airflow_stability.sensors.stability import StabilityBalanceSensor
from tests.integration.decision_table import FAILURES

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2.11
    from airflow import DAG
    from airflow.decorators import task

NOTHING = "{{ params.nothing }}"
MODES = {
    "poke": {"mode": "poke"},
    "reschedule": {"mode": "reschedule"},
    "deferrable": {"deferrable": True},
    "start_from_trigger": {"deferrable": True, "start_from_trigger": True},
}
ARGUMENTS = ("minimum_credits", "expected_credits", "organization", "stability_conn_id")


def note_failure(context):
    error = context["exception"]
    FAILURES[context["task"].task_id] = f"{type(error).__name__}: {error}"


def of(dag_id, **default_args):
    return {
        "dag_id": dag_id,
        "schedule": None,
        "start_date": datetime(2026, 1, 1),
        "default_args": {"on_failure_callback": note_failure, **default_args},
    }


with DAG(
    **of("arguments_that_are_nothing", retries=1, retry_delay=timedelta(0)),
    params={"nothing": None},
):
    for name, mode in MODES.items():
        for argument in ARGUMENTS:
            StabilityBalanceSensor(
                task_id=f"gate-{name}-{argument}",
                poke_interval=0.2,
                timeout=5,
                never_fail=True,
                **{"minimum_credits": 1, argument: NOTHING, **mode},
            )
    for deferrable in (True, False):
        for argument in ("credits", "organization", "stability_conn_id"):
            StabilitySpendOperator(
                task_id=f"spend-{'deferrable' if deferrable else 'reschedule'}-{argument}",
                python_callable=print,
                deferrable=deferrable,
                **{"credits": 1, argument: NOTHING},
            )
    task.stability(task_id="decorated-organization", credits=1, organization=NOTHING)(lambda: None)()
    StabilityAccountOperator(task_id="account-stability_conn_id", stability_conn_id=NOTHING)
    StabilityBalanceOperator(task_id="balance-organization", organization=NOTHING)
    StabilityBalanceOperator(task_id="balance-stability_conn_id", stability_conn_id=NOTHING)

with DAG(**of("gates_that_look_once")):
    for name, mode in MODES.items():
        for organization in ("org-rich", "org-poor"):
            StabilityBalanceSensor(
                task_id=f"{name}-{organization}",
                minimum_credits=8,
                organization=organization,
                timeout=0,
                poke_interval=0.2,
                **mode,
            )

with DAG(**of("just_enough_credit")):
    for deferrable in (True, False):
        name = "deferrable" if deferrable else "on_a_worker"
        waits = {"deferrable": deferrable, "poke_interval": 0.2}
        StabilityBalanceSensor(
            task_id=f"gate-{name}",
            minimum_credits=100,
            expected_credits=0.3,
            organization="org-topped_up",
            timeout=30,
            **waits,
        )
        for organization, seconds in {"org-empty": 30, "org-in_debt": 1}.items():
            StabilitySpendOperator(
                task_id=f"spend-{name}-{organization}",
                python_callable=lambda: "it ran",
                credits=0,
                organization=organization,
                wait_timeout=seconds,
                **waits,
            )
