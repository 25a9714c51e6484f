"""Tasks that spend with a ledger, one for each way in which a run may end."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow_stability.errors import StabilityPaymentRequiredError
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.operators.spend import StabilitySpendOperator
from airflow_stability.sensors.stability import StabilityBalanceSensor
from tests.integration.decision_table import FAILURES

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2.11
    from airflow import DAG
    from airflow.decorators import task

CORE = "stable-image/generate/core"
CONN = {"stability_conn_id": "with_ledger"}
SPEND = {**CONN, "deferrable": False, "poke_interval": 0.2, "wait_timeout": 60}


def note_failure(context):
    FAILURES[context["task"].task_id] = str(context["exception"])


with DAG(
    "ledger",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    params={"folder": ""},
    default_args={"retries": 0, "retry_delay": timedelta(0), "on_failure_callback": note_failure},
):

    @task.stability(**SPEND, credits=5, budget="images")
    def paint(client):
        client.generate(CORE, prompt="a fox")

    @task.stability(**SPEND, credits=6, budget="images")
    def paint_two(client, params=None):
        return [client.generate(CORE, to=params["folder"], prompt=prompt) for prompt in ("a boat", "a sea")]

    @task.stability(**SPEND, credits=6, budget="images")
    def find_two(client, params=None):
        return [client.generate(CORE, to=params["folder"], prompt=prompt) for prompt in ("a boat", "a sea")]

    @task.stability(**SPEND, credits=1.5)
    def spend_elsewhere():
        return "painted by other means"

    @task.stability(**SPEND, credits=2.5)
    def fail_elsewhere():
        raise RuntimeError("who knows what was paid for before")

    @task.stability(**SPEND, credits=3, budget="images")
    def fail_before_paying(client):
        raise RuntimeError("nothing was sent")

    @task.stability(**SPEND | {"wait_timeout": 1}, credits=4)
    def refused_elsewhere():
        raise StabilityPaymentRequiredError("402")

    @task.stability(**SPEND, credits=30, budget="images")
    def never_fits(client):
        raise AssertionError("it must not run")

    @task.stability(**SPEND, credits=3000, budget="images")
    def never_fits_and_is_poor(client):
        raise AssertionError("it must not run")

    @task.stability(**SPEND, credits=1, budget="nowhere")
    def has_no_budget(client):
        raise AssertionError("it must not run")

    @task.stability(**SPEND, credits=1, budget="tight")
    def takes_half_of_a_budget():
        return "painted by other means"

    @task.stability(**SPEND | {"wait_timeout": 1}, credits=2, budget="tight")
    def waits_for_its_budget(client):
        raise AssertionError("it must not run")

    @task.stability(**SPEND | {"wait_timeout": 1}, credits=1, budget="narrow")
    def calls_more_than_it_has_declared(client):
        client.generate(CORE, prompt="a fox")

    @task.stability(**SPEND | {"stability_conn_id": "stability_default"}, credits=1, budget="images")
    def has_no_ledger(client):
        raise AssertionError("it must not run")

    @task.stability(**SPEND | {"stability_conn_id": "ledger_is_away", "wait_timeout": 1}, credits=1)
    def ledger_is_away(client):
        raise AssertionError("it must not run")

    @task
    def paint_in_a_plain_task():
        with StabilityHook("with_ledger").get_conn() as client:
            client.generate("stable-image/generate/sd3", prompt="a fox", model="sd3.5-flash")
            client.request("POST", "/v1/generation/an-engine/text-to-image", json={})

    paint() >> paint_two() >> find_two() >> paint_in_a_plain_task()
    spend_elsewhere(), fail_elsewhere(), fail_before_paying(), refused_elsewhere()
    takes_half_of_a_budget() >> waits_for_its_budget()
    (
        never_fits(),
        never_fits_and_is_poor(),
        has_no_budget(),
        has_no_ledger(),
        calls_more_than_it_has_declared(),
        ledger_is_away(),
    )
    StabilityBalanceSensor(
        task_id="gate_never_fits_and_is_poor",
        minimum_credits=0,
        expected_credits=3000,
        budget="images",
        poke_interval=0.2,
        **CONN,
    )
    StabilitySpendOperator(
        task_id="templated",
        python_callable=lambda client: client.generate(CORE, prompt="a fox"),
        credits="{{ 3 }}",
        budget="{{ 'im' }}ages",
        **SPEND,
    )
