"""What importing a sensor costs the DAG file that does it, beyond Airflow's own base sensor."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

SENSORS = {
    "ours": "from airflow_stability.sensors.stability import StabilityBalanceSensor",
    "http_sensor": "from airflow.providers.http.sensors.http import HttpSensor",
    # It names its trigger as a string, and needs nothing else.
    "http_event_trigger": "from airflow.triggers.base import StartTriggerArgs",
}
#: What a DAG file must not load for our sensor. (Airflow itself loads some of it: then it is not for ours.)
TOO_HEAVY = ("requests", "tenacity", "airflow_stability.client.models")

SCRIPT = """
import json, sys, time
from airflow.sdk import DAG, BaseSensorOperator
before, began = set(sys.modules), time.perf_counter()
{statement}
took = time.perf_counter() - began
print(json.dumps({{"seconds": took, "modules": sorted(set(sys.modules) - before)}}))
"""


def measure(environment: Mapping[str, str], *, rounds: int) -> dict[str, dict[str, Any]]:
    """Return seconds (the median), modules and their names for each sensor.

    :param environment: an Airflow's. Each import has a process of its own; they take turns, so that what
        else the machine does hits all alike.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SENSORS}
    for _ in range(rounds + 1):
        for name, statement in SENSORS.items():
            command = [sys.executable, "-c", SCRIPT.format(statement=statement)]
            done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=True)
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        name: {
            # The first round fills the system's file cache.
            "seconds": statistics.median(run["seconds"] for run in each[1:]),
            "modules": len(each[-1]["modules"]),
            "names": each[-1]["modules"],
            "heavy": [module for module in TOO_HEAVY if module in each[-1]["modules"]],
        }
        for name, each in runs.items()
    }
