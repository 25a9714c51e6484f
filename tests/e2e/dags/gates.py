"""Gates in every combination, which all have to wait."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow_stability.sensors.stability import StabilityBalanceSensor
from tests.e2e.gates import (
    DEADLINE,
    GRACE,
    MAPPED,
    MAPPED_GATES,
    MINIMUM,
    POKE_INTERVAL,
    SHARED,
    STOPPED,
    TIMEOUT,
    TROUBLES,
    TWO,
)

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2.11
    from airflow import DAG
    from airflow.decorators import task


class ImpatientSensor(StabilityBalanceSensor):
    """Gives a refused key less than ten minutes."""

    def _trigger_arguments(self, *args: Any) -> dict[str, Any]:
        return super()._trigger_arguments(*args) | {"grace": GRACE}


COMMON: dict[str, Any] = {
    "minimum_credits": MINIMUM,
    "deferrable": True,
    "poke_interval": POKE_INTERVAL,
    "timeout": TIMEOUT,
}
ONCE: dict[str, Any] = {"schedule": "@once", "start_date": datetime(2026, 1, 1), "catchup": False}


def gate(name: str, *, connection: str = "", sensor: Any = StabilityBalanceSensor, **arguments: Any) -> Any:
    return sensor(task_id=name, stability_conn_id=connection or name, **{**COMMON, **arguments})


with DAG("gates", params={"minimum": MINIMUM}, **ONCE):
    for name in (*TROUBLES, "rotated"):
        gate(name)
    gate("revoked", sensor=ImpatientSensor)
    gate("never_worked", start_from_trigger=True)
    gate("soft", timeout=10.0, start_from_trigger=True, end_from_trigger=True, soft_fail=True)
    for name in TWO:
        gate(name, connection="two", organization=name)

    for name, arguments in SHARED.items():
        gate(name, connection="shared", **arguments)
    gate(
        "template",
        connection="shared",
        start_from_trigger=True,
        minimum_credits="{{ params.minimum }}",
        organization="{{ 'shared' if ds and run_id == dag_run.run_id else 'nobody' }}",
    )
    gate(
        "missing_name",
        connection="shared",
        start_from_trigger=True,
        end_from_trigger=True,  # a worker would render the template again
        minimum_credits="{{ 5000 if params.bigrun else 1 }}",
        retries=1,
        retry_delay=timedelta(0),
    )
    from_xcom = task(lambda: MINIMUM, task_id="minimum")()
    gate("from_xcom", connection="shared", start_from_trigger=True, minimum_credits=from_xcom)
    for name, arguments in MAPPED_GATES.items():
        StabilityBalanceSensor.partial(
            task_id=name, stability_conn_id="mapped", **{**COMMON, **arguments}
        ).expand(organization=list(MAPPED))

with DAG("late", **ONCE):
    gate("deadline", timeout=DEADLINE)
    gate("deadline_start", timeout=DEADLINE, start_from_trigger=True)

with DAG("stopped", **ONCE):
    for name in STOPPED:
        # Airflow 2.11 fails a cleared task that starts just as its old trigger, which it still names, goes.
        gate(name, retries=1, retry_delay=timedelta(seconds=1))
