"""A task whose ledger goes away while it pays, and one of another DAG that spends later."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path

from tests.e2e.killing import SIMULATOR_PORT
from tests.e2e.ledger_away import AWAY, COST, LATER, LEDGER

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2.11
    from airflow import DAG
    from airflow.decorators import task

PORT = int(os.environ[SIMULATOR_PORT])
ONCE = {"schedule": "@once", "start_date": datetime(2026, 1, 1), "catchup": False}


def take_away(seen: str, arguments: tuple[object, ...]) -> None:
    """Move the ledger away when this process connects to the API: the call is written down by then."""
    if seen == "socket.connect" and arguments[1][1] == PORT:
        ledger = Path(os.environ[LEDGER])
        if ledger.exists():
            ledger.rename(f"{ledger}-is-away")


def post(client, prompt):
    form = {"prompt": (None, prompt)}
    path = "/v2beta/stable-image/generate/core"
    client.request("POST", path, headers={"Accept": "image/*"}, files=form, timeout=30)


def paint_while_it_goes_away(client, prompt):
    sys.addaudithook(take_away)
    post(client, prompt)


def paint(client):
    post(client, "a boat")


with DAG(AWAY, **ONCE):
    spend = task.stability(credits=COST, task_id="paint", stability_conn_id=AWAY)(paint_while_it_goes_away)
    spend.expand(prompt=["a fox"])

with DAG(LATER, **ONCE):
    task.stability(credits=COST, task_id="paint", stability_conn_id=AWAY)(paint)()
