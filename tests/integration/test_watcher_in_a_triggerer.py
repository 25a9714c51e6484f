"""Watchers of assets in a real triggerer, which is killed: what Airflow's store remembers for them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from airflow_stability.compat import AIRFLOW_VERSION
from tests.conftest import HOME

pytestmark = pytest.mark.skipif(AIRFLOW_VERSION < (3, 3), reason="asset state stores came with Airflow 3.3")

MEMORY = "SELECT value FROM asset_state_store"
EVENTS = "SELECT a.name, e.extra FROM asset_event e JOIN asset a ON a.id = e.asset_id ORDER BY e.id"


@pytest.fixture
def watched_assets(airflow_database):
    """Put assets with watchers into Airflow's database, as its dag-processor does when it finds a DAG."""
    from airflow.models.asset import AssetActive, AssetModel
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session

    from airflow_stability.triggers.stability import StabilityBalanceEventTrigger

    with create_session() as session:
        for direction in ("above", "below"):
            trigger = Trigger.from_object(
                StabilityBalanceEventTrigger(threshold=50, direction=direction, poke_interval=1)
            )
            asset = AssetModel(name=direction, uri=direction)
            session.add_all([trigger, asset])
            session.flush()
            session.add(AssetActive.for_asset(asset))
            asset.add_trigger(trigger, "balance")


@pytest.fixture
def start_triggerer(watched_assets, simulator):
    """Return a function that starts a triggerer, and end what it has started."""
    environment = os.environ | {
        "AIRFLOW_CONN_STABILITY_DEFAULT": f"{simulator.connection_uri()}?api_version=v1",
        # So that a triggerer takes over soon what a killed one ran.
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "4",
    }
    command = [sys.executable, "-m", "airflow", "triggerer", "--skip-serve-logs"]
    started = []

    def start():
        with (HOME / "triggerer.log").open("ab") as log:
            started.append(
                subprocess.Popen(
                    command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
            )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            kill(process)


def kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def rows(query):
    from airflow.utils.session import create_session
    from sqlalchemy import text

    with create_session() as session:
        return [tuple(row) for row in session.execute(text(query))]


def until(condition):
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up, (HOME / "triggerer.log").read_text()[-5000:]
        time.sleep(0.2)


def test_a_killed_triggerer_neither_repeats_an_event_nor_misses_a_crossing(simulator, start_triggerer):
    simulator.set_credits(2.0)
    first = start_triggerer()
    until(lambda: len(rows(MEMORY)) == 2)
    simulator.set_credits(60.0)
    # Both have seen it: one fired, the other is armed now.
    until(lambda: sorted(json.loads(value)["armed"] for (value,) in rows(MEMORY)) == [False, True])
    until(lambda: all(json.loads(value)["credits"] == 60.0 for (value,) in rows(MEMORY)))
    assert [name for name, _ in rows(EVENTS)] == ["above"]

    kill(first)
    simulator.set_credits(3.0)
    start_triggerer()
    until(lambda: len(rows(EVENTS)) == 2)
    asked = len(simulator.requests)
    until(lambda: len(simulator.requests) >= asked + 3)

    (_, restored), (name, low) = rows(EVENTS)
    assert json.loads(restored)["payload"]["previous_credits"] == 2.0
    assert name == "below"
    payload = json.loads(low)["payload"]
    assert (payload["previous_credits"], payload["credits"]) == (60.0, 3.0)
