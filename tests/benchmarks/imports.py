"""The cost of importing a sensor into a DAG file, without the cost of Airflow's own base sensor."""

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
    # The hand-written gate names its trigger as a string, and needs nothing else.
    "http_event_trigger": "from airflow.triggers.base import StartTriggerArgs",
}
#: Modules that our sensor must not load into a DAG file. What Airflow itself has loaded does not count.
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
    """Return the median time in seconds, and the modules, for each sensor.

    Each import runs in a process of its own. The sensors take turns, so that other load on the machine
    affects all of them alike.

    :param environment: the environment variables of an Airflow.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SENSORS}
    for _ in range(rounds + 1):
        for name, statement in SENSORS.items():
            command = [sys.executable, "-c", SCRIPT.format(statement=statement)]
            done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=True)
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        name: {
            # Without the first round, which fills the system's file cache.
            "seconds": statistics.median(run["seconds"] for run in each[1:]),
            "modules": len(each[-1]["modules"]),
            "names": each[-1]["modules"],
            "heavy": [module for module in TOO_HEAVY if module in each[-1]["modules"]],
        }
        for name, each in runs.items()
    }
