"""Functions of all shapes that spend, and a wallet that is not the one that pays."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow_stability.operators.spend import StabilitySpendOperator
from tests.integration.decision_table import FAILURES

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2.11
    from airflow import DAG
    from airflow.decorators import task

IMAGE = "/v2beta/stable-image/generate/core"
SPEND = {"credits": 3, "poke_interval": 0.2, "wait_timeout": 60}


def note_failure(context):
    FAILURES[context["task"].task_id] = str(context["exception"])


def paint(client, prompt, size="1k", params=None):
    client.request("POST", IMAGE, headers={"Accept": "image/*"}, files={"prompt": (None, prompt)})
    return f"{prompt} in {size} for {params['customer']}"


def paint_for_another(client):
    paint(client, "a fox", params={"customer": "nobody"})


with DAG(
    "spending",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    params={"customer": "a friend", "credits": 3},
    default_args={"retries": 1, "retry_delay": timedelta(0)},
):

    @task
    def list_prompts():
        return ["a fox", "a boat", "a lighthouse"]

    @task.stability(**SPEND, multiple_outputs=True)
    def paint_two_sizes(client, *, ti=None):
        return {"small": ti.task_id, "large": 2}

    @task.stability(**SPEND)
    def count_without_client(numbers):
        return sum(numbers)

    StabilitySpendOperator(
        task_id="by_position", python_callable=paint, op_args=["{{ params.customer }}"], **SPEND
    )
    StabilitySpendOperator(
        task_id="by_name",
        python_callable=paint,
        op_kwargs={"prompt": "a fox", "size": "2k"},
        **SPEND | {"credits": "{{ params.credits }}"},
    )
    task.stability(**SPEND)(paint).override(task_id="decorated")("a fox", size="4k")
    task.stability(**SPEND)(paint).override(task_id="mapped").expand(prompt=list_prompts())
    paint_two_sizes()
    count_without_client([1, 2])
    for mode, deferrable in {"deferrable": True, "reschedule": False}.items():
        StabilitySpendOperator(
            task_id=f"another_pays_{mode}",
            python_callable=paint_for_another,
            stability_conn_id=f"another_pays_{mode}",
            organization="org-watched",
            deferrable=deferrable,
            on_failure_callback=note_failure,
            **SPEND | {"wait_timeout": 5},
        )
