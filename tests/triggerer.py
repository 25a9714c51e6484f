"""The trigger of a gate, and what a triggerer tells a trigger beside its arguments."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from airflow_stability.compat import AIRFLOW_VERSION
from airflow_stability.triggers.stability import StabilityBalanceTrigger


def gate_trigger(**arguments: Any) -> StabilityBalanceTrigger:
    """Return the trigger of a gate that waits for a minute, if no argument says otherwise."""
    defaults = {
        "stability_conn_id": "stability_default",
        "organization": None,
        "minimum_credits": 1000,
        "poke_interval": 0.1,
        "timeout": 60,
    }
    return StabilityBalanceTrigger(**defaults | arguments)


def started_anew(trigger: Any, *, seconds_ago: float, of: float, now: datetime | None = None) -> Any:
    """Return a trigger as a triggerer sets it up that takes it over a while after the deferral.

    :param of: seconds after which Airflow ends the deferral.
    :param now: aware time of Airflow's database, which keeps when that is.
    """
    ends_at = (now or datetime.now(UTC)) + timedelta(seconds=of - seconds_ago)
    trigger.deferral_timeout = of
    if AIRFLOW_VERSION < (3, 0):
        trigger.task_instance = SimpleNamespace(trigger_timeout=ends_at)
    else:
        trigger.timeout_after = ends_at
    return trigger


#: The beginning of a script that notes which thread loads a module, once a Finder is in sys.meta_path.
WHO_LOADS = """
import asyncio, sys, threading

loaded_by = {}

class Finder:
    def find_spec(self, name, path=None, target=None):
        loaded_by[name] = threading.current_thread()

"""


def output_of(script: str) -> str:
    """Run a script in a process of its own, and return what it prints.

    :raises AssertionError: it has failed.
    """
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
