"""A gate on HttpEventTrigger, as an experienced user would write it today.

It looks at the balance. It starts in the triggerer, which saves a worker process, and loads no other module
when the DAG is parsed. It ends on a worker, because the trigger fires no event that ends a task.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, BaseSensorOperator, Context
from airflow.triggers.base import StartTriggerArgs


class HandWrittenGate(BaseSensorOperator):
    start_from_trigger = True
    start_trigger_args = StartTriggerArgs(
        trigger_cls="airflow.providers.http.triggers.http.HttpEventTrigger",
        trigger_kwargs={
            "http_conn_id": "balance_http",
            "endpoint": "/v1/user/balance",
            "response_check_path": "balance_check.enough",
            "poll_interval": 5,
        },
        next_method="execute_complete",
        timeout=timedelta(hours=4),
    )

    def execute(self, context: Context) -> None:
        raise AssertionError("it starts in the triggerer")

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:
        if event["status"] != "success":
            raise RuntimeError(event)


with DAG("http_event_trigger", schedule=None, max_active_runs=10_000):
    HandWrittenGate(task_id="gate")
