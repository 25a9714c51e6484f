"""A task for each moment at which a worker is killed. Each kills itself in its first try."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

from tests.e2e.killing import BOUNDARIES, COST, NOTES, OUTPUTS, RETRIES, TIMEOUT, Boundary

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2.11
    from airflow import DAG
    from airflow.decorators import task


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(boundary: Boundary) -> None:
    """Let this process die at a boundary."""

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if boundary.hangs and event == "socket.connect":
            # By then the simulator has the request.
            threading.Thread(target=lambda: (time.sleep(2), die()), daemon=True).start()
        elif event == boundary.event:
            # Of a rename, the second is the file that it makes.
            file = arguments[1] if event == "os.rename" else arguments[0]
            if not boundary.ending or str(file).endswith(boundary.ending):
                die()

    sys.addaudithook(look)


def paint(name, client):
    boundary = next(each for each in BOUNDARIES if each.name == name)
    # Of the tries of this task, only the first is killed.
    note = Path(os.environ[NOTES], name)
    is_first = not note.exists()
    note.touch()
    if is_first:
        die_at(boundary)
    made = client.generate(
        "stable-image/generate/core", to=os.environ[OUTPUTS], name=name, prompt=name, timeout=TIMEOUT
    )
    if is_first:
        die()
    return made


with DAG("paid_once", schedule="@once", start_date=datetime(2026, 1, 1), catchup=False):
    for boundary in BOUNDARIES:
        task.stability(
            credits=COST,
            task_id=boundary.name,
            stability_conn_id=boundary.name,
            retries=RETRIES,
            retry_delay=timedelta(seconds=1),
        )(paint)(boundary.name)
