"""Records what this release leaves in Airflow's database, for `test_upgrade.py`.

    python -m tests.integration.recorded.record 0.1.0

runs a real Airflow, the one of that Python, with tasks that wait and a watcher, and writes their rows to
`0.1.0/airflow-3.3.json`. Then the scheduler is killed, so that the events that the triggerer fires stay where
Airflow has put them, for workers that never come. What a release has once left there is never edited.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet

from airflow_stability.simulator import StabilitySimulator
from tests.real_airflow import RealAirflow

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent
AIRFLOW = version("apache-airflow")
POOR, RICH = 2.25, 25.5
#: What is there to watch for the one whose calls another organization pays for.
WATCHED = 120.0
WAITING = {
    "classic",
    "expecting",
    "ends_in_triggerer",
    "starts_in_triggerer",
    "refused",
    "mapped",
    "decorated",
    "spend_refused",
}
#: Those whose events stay: all but the one that ends in the triggerer, and the one that pauses for long.
RESUMING = WAITING - {"ends_in_triggerer", "spend_refused"} | {"timed_out"}
ROWS = (
    "SELECT task_instance.task_id, classpath, kwargs, next_method, next_kwargs FROM task_instance "
    "JOIN trigger ON trigger.id = task_instance.trigger_id WHERE state = 'deferred'"
)
WATCHER = "SELECT classpath, kwargs FROM trigger WHERE classpath LIKE '%EventTrigger'"
EVENTS = "SELECT task_id, next_method, next_kwargs FROM task_instance WHERE next_kwargs LIKE '%verdict%'"


class Recorder:
    """One Airflow, and what is recorded of it."""

    def __init__(self, airflow: RealAirflow, simulator: StabilitySimulator) -> None:
        self.airflow, self.simulator = airflow, simulator
        self.has_events = not AIRFLOW.startswith("2.")
        self.has_memory = tuple(map(int, AIRFLOW.split(".")[:2])) >= (3, 3)

    def record(self) -> dict[str, Any]:
        airflow, simulator = self.airflow, self.simulator
        airflow.run("db", "migrate")
        uri = f"{simulator.connection_uri()}?api_version=v1"
        airflow.connect({"stability_default": uri, "refused": uri})
        airflow.start()
        airflow.wait_for("all components are healthy", airflow.healthy)
        dags = {"recorded", "late"} | ({"watched"} if self.has_events else set())
        airflow.wait_for(
            "all DAGs are there",
            lambda: {name for (name,) in airflow.query("SELECT dag_id FROM dag")} >= dags,
        )
        airflow.unpause(*sorted(dags - {"late"}))
        tasks = self._wait_for_tasks(WAITING)
        recorded: dict[str, Any] = {"airflow": AIRFLOW, "tasks": tasks}
        if self.has_events:
            airflow.wait_for("the watcher is there", lambda: airflow.query(WATCHER))
            ((classpath, kwargs),) = airflow.query(WATCHER)
            recorded["watcher"] = {"classpath": classpath, "kwargs": self._decrypted(kwargs)}
        if self.has_memory:
            memory = "SELECT key, value FROM asset_state_store"
            airflow.wait_for("the watcher remembers", lambda: airflow.query(memory))
            ((key, value),) = airflow.query(memory)
            recorded["watcher"]["memory"] = {"key": key, "value": value}
        airflow.unpause("late")
        tasks |= self._wait_for_tasks({"timed_out"})
        airflow.kill("scheduler")
        airflow.connect({"refused": f"{simulator.connection_uri('sk-unknown')}?api_version=v1"})
        # What is to time out must not open; the others did not either, till now.
        airflow.wait_for("timed_out has timed out", lambda: "timed_out" in self._resumed())
        simulator.set_credits(RICH)
        airflow.wait_for("all have their events", lambda: self._resumed().keys() >= RESUMING)
        for task_id in RESUMING:
            tasks[task_id]["resumes"] = self._resumed()[task_id]
        return recorded

    def _wait_for_tasks(self, names: set[str]) -> dict[str, Any]:
        """Return the rows of tasks once all of them have waited: on a slow machine, not at the same time."""
        seen: dict[str, Any] = {}

        def have_waited() -> bool:
            seen.update({name: row for name, row in self._tasks().items() if name in names - seen.keys()})
            return seen.keys() == names

        self.airflow.wait_for(f"{', '.join(sorted(names))} wait", have_waited, seconds=300)
        return seen

    def _tasks(self) -> dict[str, Any]:
        return {
            task_id: {
                "classpath": classpath,
                "kwargs": self._decrypted(kwargs),
                "next_method": next_method,
                "next_kwargs": next_kwargs,
            }
            for task_id, classpath, kwargs, next_method, next_kwargs in self.airflow.query(ROWS)
        }

    def _resumed(self) -> dict[str, Any]:
        return {
            task_id: {"next_method": next_method, "next_kwargs": next_kwargs}
            for task_id, next_method, next_kwargs in self.airflow.query(EVENTS)
        }

    def _decrypted(self, kwargs: str) -> str:
        if kwargs.startswith("{"):  # Airflow 3 encrypts none that a worker has sent
            return kwargs
        return Fernet(self.airflow.fernet_key).decrypt(kwargs.encode()).decode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("release", help="how the release is called, and the folder")
    folder = HERE / parser.parse_args().release
    minor = ".".join(AIRFLOW.split(".")[:2])
    with tempfile.TemporaryDirectory() as home, StabilitySimulator(credits=POOR) as simulator:
        simulator.set_credits(WATCHED, "org-other")
        settings = {"core__dags_are_paused_at_creation": True}
        airflow = RealAirflow(Path(home), HERE / "dags", settings=settings, seconds=900)
        airflow.environment["PYTHONPATH"] = str(ROOT)
        try:
            recorded = Recorder(airflow, simulator).record()
        finally:
            airflow.end()
    folder.mkdir(exist_ok=True)
    file = folder / f"airflow-{minor}.json"
    file.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{file.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
