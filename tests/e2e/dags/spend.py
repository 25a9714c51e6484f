"""Tasks that spend: many on one wallet, and one for each row of the table in each mode."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from airflow_stability.compat import runs_async_functions
from airflow_stability.operators.spend import StabilitySpendOperator
from tests.e2e.spending import (
    CASES,
    COST,
    IMAGE_PATH,
    IMAGES,
    LONG_POKE_INTERVAL,
    MANY,
    MAPPED,
    MODES,
    POKE_INTERVAL,
    POOLED,
    POOLED_TASKS,
    RESERVATION_SECONDS,
    RETRIES,
    RETRY_DELAY,
    TIMEOUT,
    fail_afterwards,
)

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2.11
    from airflow import DAG
    from airflow.decorators import task

ONCE: dict[str, Any] = {"schedule": "@once", "start_date": datetime(2026, 1, 1), "catchup": False}
COMMON: dict[str, Any] = {
    "credits": COST,
    "poke_interval": POKE_INTERVAL,
    "wait_timeout": TIMEOUT,
    "reservation_seconds": RESERVATION_SECONDS,
    "retries": RETRIES,
    "retry_delay": timedelta(seconds=RETRY_DELAY),
}


def post(client, prompt):
    form = {"prompt": (None, prompt)}
    return client.request("POST", IMAGE_PATH, headers={"Accept": "image/*"}, files=form, timeout=30)


def paint(client):
    post(client, "a lighthouse at dawn")


def paint_and_fail(client):
    post(client, "a frame")
    raise RuntimeError("The frame is broken.")


def paint_two(client):
    post(client, "one")
    post(client, "two")


def paint_five(client):
    for number in range(5):
        post(client, str(number))


async def paint_in_a_group(client):
    post(client, "one")
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(post, client, "two"))


def paint_in_a_group_of_its_own(client):
    asyncio.run(paint_in_a_group(client))


def return_bytes(client):
    return post(client, "one").content


def return_response(client):
    return post(client, "one")


def return_path(client):
    post(client, "one")
    return "images/one.png"


def paint_and_yield(client):
    post(client, "one")
    yield "which Airflow ignores"
    return "images/one.png"


class ArchivingOperator(StabilitySpendOperator):
    """An operator of a user that does something after the function."""

    def post_execute(self, context, result=None):
        fail_afterwards(context)


FUNCTIONS = {
    "paint": paint,
    "paint_and_fail": paint_and_fail,
    "paint_two": paint_two,
    "paint_five": paint_five,
    "paint_in_a_group": paint_in_a_group if runs_async_functions() else paint_in_a_group_of_its_own,
    "return_bytes": return_bytes,
    "return_Response": return_response,
    "return_path": return_path,
    "paint_and_yield": paint_and_yield,
}


with DAG("many", **ONCE):

    @task.stability(stability_conn_id="wallet", **COMMON)
    def paint_one_of_many(prompt, client, ti=None):
        image = post(client, prompt).content
        # There must be none of that name.
        with Path(os.environ[IMAGES], f"{ti.map_index}.png").open("xb") as file:
            file.write(image)

    paint_one_of_many.expand(prompt=[f"boat {number}" for number in range(MANY)])

# A slot of the pool stands for a credit.
with DAG("pooled", **ONCE):

    @task.stability(stability_conn_id="pooled", pool="stability", pool_slots=COST, **COMMON)
    def paint_in_a_pool(number, client):
        began = time.time()
        post(client, f"fish {number}")
        time.sleep(2)
        Path(os.environ[POOLED], str(number)).write_text(f"{began} {time.time()}")

    paint_in_a_pool.expand(number=list(range(POOLED_TASKS)))

# They need not wait for a worker till all of the many have begun.
with DAG("outcomes", default_args={"priority_weight": 10}, **ONCE):
    for case in CASES:
        arguments = {
            **COMMON,
            "task_id": case.task_id,
            "stability_conn_id": case.task_id,
            "deferrable": MODES[case.mode],
            "wait_timeout": case.outcome.wait_timeout,
            "poke_interval": case.outcome.poke_interval,
            # The time for a worker to come counts as waiting.
            "priority_weight": 10 if case.outcome.wait_timeout == TIMEOUT else 20,
            **case.outcome.arguments,
        }
        function = FUNCTIONS[case.outcome.function]
        if case.outcome.name == "post_execute_method":
            ArchivingOperator(python_callable=function, **arguments)
        else:
            task.stability(**arguments)(function)()

    rarely = COMMON | {"poke_interval": LONG_POKE_INTERVAL}

    @task.stability(task_id=MAPPED, stability_conn_id=MAPPED, deferrable=False, **rarely)
    def paint_mapped(prompt, client):
        post(client, prompt)

    paint_mapped.expand(prompt=["one", "two"])
