"""Triggers in a queue, for a triggerer that takes only those of the queue, in a real Airflow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_stability.compat import EVENT_TRIGGERS_HAVE_QUEUES
from airflow_stability.simulator import StabilitySimulator
from tests.conftest import ROOT
from tests.real_airflow import COMPONENTS, RealAirflow

#: Seconds for the story; it takes less than one minute on two cores.
LIMIT = 360
pytestmark = [
    pytest.mark.timeout(LIMIT + 60),
    pytest.mark.skipif(not EVENT_TRIGGERS_HAVE_QUEUES, reason="Airflow has queues for watchers from 3.4 on"),
]

DAGS = """
from datetime import datetime

from airflow.sdk import DAG, Asset, AssetWatcher
from airflow_stability.sensors.stability import StabilityBalanceSensor
from airflow_stability.triggers.events import StabilityBalanceEventTrigger

ALL = {"start_date": datetime(2026, 1, 1), "catchup": False}

trigger = StabilityBalanceEventTrigger(threshold=50, direction="above", poke_interval=1, queue="credits")
asset = Asset("watched", watchers=[AssetWatcher(name="balance", trigger=trigger)])
watched = DAG("watched", schedule=[asset], **ALL)

with DAG("waiting", schedule="@once", **ALL):
    gate = {"minimum_credits": 100, "deferrable": True, "poke_interval": 1, "queue": "credits"}
    StabilityBalanceSensor(task_id="gate", **gate)
    # Airflow gives a task that starts in the triggerer no queue: no triggerer would take it.
    StabilityBalanceSensor(task_id="asks_for_the_triggerer", start_from_trigger=True, **gate)
"""


@pytest.fixture
def airflow(tmp_path: Path) -> Iterator[RealAirflow]:
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "queues.py").write_text(DAGS)
    settings = {
        # Tasks that start before the API server answers fail.
        "core__dags_are_paused_at_creation": True,
        "triggerer__queues_enabled": True,
        "dag_processor__min_file_process_interval": 2,
    }
    airflow = RealAirflow(tmp_path / "airflow", dags, settings=settings, seconds=LIMIT)
    airflow.environment["PYTHONPATH"] = str(ROOT)
    try:
        yield airflow
    finally:
        airflow.end()


def test_a_triggerer_of_the_queue_runs_watchers_and_gates(airflow):
    with StabilitySimulator(credits=40.0) as simulator:
        airflow.run("db", "migrate")
        airflow.connect({"stability_default": f"{simulator.connection_uri()}?api_version=v1"})
        airflow.start(*(name for name in COMPONENTS if name != "triggerer"))
        airflow.start("triggerer", options=["--queues", "credits"])
        airflow.wait_for("all components are healthy", airflow.healthy)
        airflow.wait_for("both DAGs are there", lambda: len(airflow.query("SELECT * FROM dag")) == 2)
        airflow.unpause("waiting", "watched")
        airflow.wait_for(
            "all triggers run",
            lambda: (
                len(airflow.query("SELECT id FROM trigger WHERE queue = 'credits' AND triggerer_id > 0")) == 3
            ),
        )
        before = len(simulator.requests)
        airflow.wait_for("all have read the balance", lambda: len(simulator.requests) > before + 2)
        simulator.set_credits(200.0)
        airflow.wait_for(
            "the gates open and the event starts its DAG",
            lambda: (
                set(airflow.states("waiting").values()) == {"success"}
                and airflow.query("SELECT 1 FROM dag_run WHERE dag_id = 'watched'")
            ),
        )
