"""Tasks that spend: many on one wallet, and one for each row of the table in each mode."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tests.e2e.spending import (
    CASES,
    COST,
    IMAGE_PATH,
    IMAGES,
    MANY,
    MAPPED,
    MODES,
    POKE_INTERVAL,
    RESERVATION_SECONDS,
    RETRIES,
    RETRY_DELAY,
    TIMEOUT,
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


with DAG("many", **ONCE):

    @task.stability(stability_conn_id="wallet", **COMMON)
    def paint_one_of_many(prompt, client, ti=None):
        image = post(client, prompt).content
        # There must be none of that name.
        with Path(os.environ[IMAGES], f"{ti.map_index}.png").open("xb") as file:
            file.write(image)

    paint_one_of_many.expand(prompt=[f"boat {number}" for number in range(MANY)])

# They need not wait for a worker till all of the many have begun.
with DAG("outcomes", default_args={"priority_weight": 10}, **ONCE):
    functions = {function.__name__: function for function in (paint, paint_and_fail, paint_two)}
    for case in CASES:
        arguments = {
            **COMMON,
            "task_id": case.task_id,
            "stability_conn_id": case.task_id,
            "deferrable": MODES[case.mode],
            "wait_timeout": case.outcome.wait_timeout,
            "poke_interval": case.outcome.poke_interval,
        }
        task.stability(**arguments)(functions[case.outcome.function])()

    @task.stability(task_id=MAPPED, stability_conn_id=MAPPED, deferrable=False, **COMMON)
    def paint_mapped(prompt, client):
        post(client, prompt)

    paint_mapped.expand(prompt=["one", "two"])
