"""Workers of a real Airflow that are killed at each moment around a durable call. Airflow's retries are on.

The outputs are in a local folder, and in object storage on a real S3 server. One story; the tests look at
what it left. Beside it, a ledger goes away while a task pays.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from airflow_stability.simulator import StabilitySimulator
from tests.conftest import ROOT
from tests.e2e.killed_tasks import DAG_FILE, KilledTasks
from tests.e2e.killing import tasks
from tests.e2e.ledger_away import DAG_FILE as DAG_FILE_OF_THE_LEDGER
from tests.e2e.ledger_away import LedgerAway
from tests.real_airflow import RealAirflow
from tests.versions import OLDEST_OR_NEWEST

#: Seconds for the story. pytest's own limit ends this process at once, and would leave Airflow's running.
LIMIT = 400
pytestmark = pytest.mark.timeout(LIMIT + 60)

#: The packages for object storage are installed for the oldest and the newest Airflow.
STORES = ("local", "s3") if OLDEST_OR_NEWEST else ("local",)


def start_s3_server(stack: ExitStack) -> Any:
    if "s3" not in STORES:
        return None
    from tests.s3_server import S3Server

    return stack.enter_context(S3Server())


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RealAirflow, KilledTasks, LedgerAway]]:
    folder = tmp_path_factory.mktemp("airflow")
    (folder / "dags").mkdir()
    for file in (DAG_FILE, DAG_FILE_OF_THE_LEDGER):
        shutil.copy(file, folder / "dags")
    with ExitStack() as stack:
        simulator = stack.enter_context(StabilitySimulator())
        killed_tasks = KilledTasks(simulator, folder, start_s3_server(stack))
        ledger_away = LedgerAway(simulator, folder)
        settings = {
            "core__dags_are_paused_at_creation": True,
            "core__parallelism": 10,
            # So that a triggerer that was killed is noticed soon.
            "triggerer__job_heartbeat_sec": 2,
            "triggerer__triggerer_health_check_threshold": 6,
        }
        airflow = RealAirflow(folder, folder / "dags", settings=settings, seconds=LIMIT)
        airflow.environment |= {"PYTHONPATH": str(ROOT), **killed_tasks.environment()}
        airflow.environment |= ledger_away.environment()
        try:
            airflow.run("db", "migrate")
            airflow.start()
            airflow.wait_for("all components are healthy", airflow.healthy)
            airflow.wait_for("all DAGs are there", lambda: len(airflow.query("SELECT * FROM dag")) == 3)
            ledger_away.begin(airflow)
            killed_tasks.play(airflow, triggerer="triggerer", seconds=LIMIT)
            yield airflow, killed_tasks, ledger_away
        finally:
            airflow.end()


@pytest.mark.parametrize("killed", tasks(STORES), ids=lambda killed: killed.name)
def test_a_killed_worker_has_paid_once_at_most_and_none_is_forgotten(story, killed):
    airflow, killed_tasks, _ = story
    killed_tasks.check(airflow, killed)


@pytest.mark.skipif("s3" not in STORES, reason="there is no object storage")
def test_object_storage_has_killed_each_worker_that_it_should(story):
    _, killed_tasks, _ = story
    expected = [each for each in killed_tasks.all if each.store == "s3" and each.boundary.remote]
    assert len(killed_tasks.s3.killed) == len(expected)


def test_a_job_is_paid_once_and_waited_for_in_a_triggerer_that_is_killed(story):
    airflow, killed_tasks, _ = story
    killed_tasks.check_job(airflow, triggerers=1)


def test_what_was_paid_for_while_the_ledger_was_away_is_written_by_a_later_task(story):
    airflow, _, ledger_away = story
    ledger_away.finish(airflow)
