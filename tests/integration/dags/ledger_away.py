"""Tasks whose ledger goes away while they spend, one for each way in which a run may end; and a later one."""

from __future__ import annotations

import os
from datetime import datetime, timedelta

from airflow_stability.errors import StabilityPaymentRequiredError
from airflow_stability.hooks.stability import StabilityHook

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2.11
    from airflow import DAG
    from airflow.decorators import task

CORE = "/v2beta/stable-image/generate/core"
SPEND = {"stability_conn_id": "with_ledger", "credits": 3, "poke_interval": 0.2, "wait_timeout": 60}
FORM = {"headers": {"Accept": "image/*"}, "files": {"prompt": (None, "a fox")}}


def go_away(*_args, **_kwargs):
    """Let the ledger go away: its connection is read each time."""
    os.environ["AIRFLOW_CONN_THE_LEDGER"] = os.environ["AIRFLOW_CONN_NO_LEDGER"]


def come_back(*_args, **_kwargs):
    """Let the ledger come back."""
    os.environ["AIRFLOW_CONN_THE_LEDGER"] = os.environ["AIRFLOW_CONN_STILL_THE_LEDGER"]


def post(client):
    """Make a call. When it was answered, and nothing is written down yet, the ledger goes away."""
    client.request("POST", CORE, hooks={"response": go_away}, **FORM)


ALONE = {"schedule": None, "start_date": datetime(2026, 1, 1)}
COMES_BACK = {"on_success_callback": come_back, "on_failure_callback": come_back, "trigger_rule": "all_done"}

with DAG("ledger_away", **ALONE, default_args={"retries": 0, "retry_delay": timedelta(0)} | COMES_BACK):

    @task.stability(**SPEND)
    def paint(client, number):
        post(client)

    @task.stability(**SPEND)
    def paint_and_fail(client):
        post(client)
        raise RuntimeError("The frame is broken.")

    @task.stability(**SPEND)
    def paint_otherwise():
        go_away()

    @task.stability(**SPEND, max_refusals=1)
    def be_refused():
        go_away()
        raise StabilityPaymentRequiredError("402")

    @task
    def paint_in_a_plain_task():
        with StabilityHook("with_ledger").get_conn() as client:
            post(client)

    (
        paint.expand(number=[7])
        >> paint_and_fail()
        >> paint_otherwise()
        >> be_refused()
        >> paint_in_a_plain_task()
    )

with DAG("ledger_is_back", **ALONE):

    @task.stability(**SPEND)
    def paint_later(client):
        client.request("POST", CORE, **FORM)

    paint_later()
