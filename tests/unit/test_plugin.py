"""The link on the page of each task that waits, as Airflow's web server finds it: from the serialized DAG."""

from __future__ import annotations

from datetime import datetime

import pytest

from airflow_stability.compat import AIRFLOW_VERSION
from airflow_stability.decorators.stability import stability_task
from airflow_stability.operators.spend import StabilitySpendOperator
from airflow_stability.operators.stability import StabilityBalanceOperator
from airflow_stability.sensors.stability import StabilityBalanceSensor

if AIRFLOW_VERSION >= (3, 0):
    from airflow.sdk import DAG
else:
    from airflow import DAG
if AIRFLOW_VERSION >= (3, 2):
    from airflow.serialization.serialized_objects import DagSerialization as Serialization
else:
    from airflow.serialization.serialized_objects import SerializedDAG as Serialization

CREDITS = "https://platform.stability.ai/account/credits"


@pytest.fixture(scope="module")
def dag():
    """A DAG that went to Airflow's database and back."""

    def paint(client):
        """Spends."""

    with DAG("links", schedule=None, start_date=datetime(2026, 1, 1)) as dag:
        StabilityBalanceSensor(task_id="gate", minimum_credits=1)
        StabilityBalanceSensor(
            task_id="started_in_triggerer", minimum_credits=1, deferrable=True, start_from_trigger=True
        )
        StabilityBalanceSensor.partial(task_id="mapped_gate", minimum_credits=1).expand(organization=["a"])
        StabilitySpendOperator(task_id="spend", python_callable=paint, credits=1, wait_timeout=60)
        stability_task(credits=1, wait_timeout=60, task_id="decorated")(paint)()
        StabilityBalanceOperator(task_id="balance")
    return Serialization.from_dict(Serialization.to_dict(dag))


@pytest.mark.parametrize("task_id", ["gate", "started_in_triggerer", "mapped_gate", "spend", "decorated"])
def test_a_task_that_waits_for_credit_links_to_where_it_is_bought(task_id, dag):
    if AIRFLOW_VERSION < (3, 0) and task_id == "mapped_gate":
        pytest.skip("Airflow 2.11 asks no plugin for the links of a mapped task")
    task = dag.get_task(task_id)

    assert task.extra_links == ["Buy credits"]
    assert task.operator_extra_link_dict["Buy credits"].get_link(task, ti_key=None) == CREDITS


def test_a_task_that_does_not_wait_has_no_such_link(dag):
    assert dag.get_task("balance").extra_links == []
