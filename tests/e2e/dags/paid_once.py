"""A task for each moment at which a worker is killed. Each kills itself in its first try."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

from tests.e2e.killing import (
    COST,
    JOB,
    JOB_CREDITS,
    NOTES,
    OUTPUTS,
    RETRIES,
    S3_CONNECTION,
    SIMULATOR_PORT,
    TIMEOUT,
    Killed,
    tasks,
)

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2.11
    from airflow import DAG
    from airflow.decorators import task


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(killed: Killed) -> None:
    """Let this process die at a boundary, unless object storage or nobody kills it before the end."""
    boundary = killed.boundary
    event, ending = boundary.local or ("", "")

    def look(seen: str, arguments: tuple[object, ...]) -> None:
        if boundary.hangs and seen == "socket.connect" and arguments[1][1] == PORT:
            # By then the simulator has the request.
            threading.Thread(target=lambda: (time.sleep(2), die()), daemon=True).start()
        elif killed.store == "local" and seen == event:
            # Of a rename, the second is the file that it makes.
            file = arguments[1] if event == "os.rename" else arguments[0]
            if not ending or str(file).endswith(ending):
                die()

    sys.addaudithook(look)


def paint(name, client):
    killed = TASKS[name]
    # Of the tries of this task, only the first is killed.
    note = Path(os.environ[NOTES], name)
    is_first = not note.exists()
    note.touch()
    if is_first:
        die_at(killed)
    made = client.generate(
        "stable-image/generate/core",
        to=FOLDERS[killed.store],
        conn_id=S3_CONNECTION if killed.store == "s3" else None,
        name=name,
        prompt=name,
        timeout=TIMEOUT,
    )
    if is_first:
        die()
    return made


def upscale(client):
    made = client.generate(
        "stable-image/upscale/creative", to=FOLDERS["local"], name=JOB, image=b"picture", prompt="sharp"
    )
    return made.path


FOLDERS = json.loads(os.environ[OUTPUTS])
#: The simulator's.
PORT = int(os.environ[SIMULATOR_PORT])
TASKS = {killed.name: killed for killed in tasks(FOLDERS)}

with DAG("paid_once", schedule="@once", start_date=datetime(2026, 1, 1), catchup=False):
    for name in TASKS:
        task.stability(
            credits=COST,
            task_id=name,
            stability_conn_id=name,
            retries=RETRIES,
            retry_delay=timedelta(seconds=1),
        )(paint)(name)
    task.stability(credits=JOB_CREDITS, task_id=JOB, stability_conn_id=JOB, retries=RETRIES)(upscale)()
