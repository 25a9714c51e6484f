"""Gates in every mode, and tasks that spend: all have to wait."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, task

from airflow_stability.sensors.stability import StabilityBalanceSensor
from tests.cluster.plan import (
    ALL_GATES,
    BUDGETS,
    IMAGES,
    INTERVALS,
    RESERVATION_SECONDS,
    RETRIES,
    RETRY_DELAY,
    SPENDING,
    SPENDING_INTERVAL,
    TIMEOUT,
)
from tests.e2e.spending import COST, IMAGE_PATH

ONCE: dict[str, Any] = {"schedule": "@once", "start_date": datetime(2026, 1, 1), "catchup": False}
TRIES: dict[str, Any] = {"retries": RETRIES, "retry_delay": timedelta(seconds=RETRY_DELAY)}

with DAG("gates", default_args=TRIES, **ONCE):
    for gate in ALL_GATES:
        deferrable = gate.mode == "deferrable"
        StabilityBalanceSensor(
            task_id=gate.task_id,
            minimum_credits=gate.minimum,
            stability_conn_id=f"gates_{gate.mode}",
            mode="poke" if deferrable else gate.mode,
            deferrable=deferrable,
            start_from_trigger=gate.starts_in_the_triggerer,
            end_from_trigger=gate.ends_in_the_triggerer,
            poke_interval=INTERVALS[gate.mode],
            timeout=TIMEOUT,
        )


def paint(client: Any, number: int, name: str) -> None:
    image = Path(os.environ[IMAGES]) / f"{name}_{number:02}.png"
    # As docs/spending.md advises: what is there is not paid for again.
    if not image.exists():
        form = {"prompt": (None, f"boat {number}")}
        answer = client.request("POST", IMAGE_PATH, headers={"Accept": "image/*"}, files=form, timeout=30)
        unfinished = image.with_suffix(".part")
        unfinished.write_bytes(answer.content)
        unfinished.rename(image)


with DAG("spending", default_args=TRIES, **ONCE):
    for mode, count in SPENDING.items():
        for number in range(count):
            task.stability(
                task_id=f"{mode}_{number:02}",
                credits=COST,
                stability_conn_id=f"spending_{mode}",
                budget=BUDGETS[number % len(BUDGETS)],
                deferrable=mode == "deferrable",
                poke_interval=SPENDING_INTERVAL,
                wait_timeout=TIMEOUT,
                reservation_seconds=RESERVATION_SECONDS,
            )(paint)(number=number, name=mode)
