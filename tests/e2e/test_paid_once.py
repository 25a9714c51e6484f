"""Workers of a real Airflow that are killed at each moment around a durable call. Airflow's retries are on.

The outputs are in a local folder, and in object storage on a real S3 server. One story; the tests look at
what it left.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from airflow_stability.simulator import Fault, StabilitySimulator
from tests.conftest import ROOT
from tests.e2e.killing import (
    COST,
    NOTES,
    OUTPUTS,
    S3_CONNECTION,
    SIMULATOR_PORT,
    Killed,
    tasks,
)
from tests.leaks import Search
from tests.real_airflow import RealAirflow
from tests.versions import OLDEST_OR_NEWEST

#: Seconds for the story. pytest's own limit ends this process at once, and would leave Airflow's running.
LIMIT = 300
pytestmark = pytest.mark.timeout(LIMIT + 60)

#: The packages for object storage are installed for the oldest and the newest Airflow.
STORES = ("local", "s3") if OLDEST_OR_NEWEST else ("local",)
TASKS = tasks(STORES)
ENDED = {"success", "failed"}
GIVEN = 100.0


class Story:
    """What happens, and what it leaves.

    :param s3: the server for object storage; None without.
    """

    def __init__(self, airflow: RealAirflow, simulator: StabilitySimulator, folder: Path, s3: Any) -> None:
        self.airflow, self.simulator, self.folder = airflow, simulator, folder
        self.s3 = s3
        self.keys: list[str] = []

    def play(self) -> None:
        airflow = self.airflow
        airflow.run("db", "migrate")
        airflow.connect(self._open_wallets())
        airflow.start()
        airflow.wait_for("all components are healthy", airflow.healthy)
        airflow.wait_for("the DAG is there", lambda: len(airflow.query("SELECT * FROM dag")) == 1)
        airflow.run("dags", "unpause", "paid_once")
        airflow.wait_for("all tasks are there", lambda: len(self.states()) == len(TASKS))
        airflow.wait_for("all have ended", lambda: set(self.states().values()) <= ENDED, seconds=LIMIT)

    def _open_wallets(self) -> dict[str, str]:
        """Give each task an organization and a key, and tell who kills it; return the connections."""
        uris = {}
        for killed in TASKS:
            self.simulator.add_organization(killed.name, credits=GIVEN)
            self.simulator.add_account(killed.name, "someone@example.org", [killed.name])
            key = self.simulator.add_key(account=killed.name)
            self.keys.append(key)
            uris[killed.name] = f"{self.simulator.connection_uri(key)}?api_version=v1"
            if killed.boundary.hangs:
                fault = Fault.hang(after_work=killed.boundary.bills)
                self.simulator.inject(fault, times=1, path="/v2beta", key=key)
            elif killed.store == "s3" and killed.boundary.remote:
                method, ending, when = killed.boundary.remote
                self.s3.kill_at(method, f"{killed.name}{ending}", when)
        return uris

    def states(self) -> dict[str, str | None]:
        return {name: state for (name, _), state in self.airflow.states("paid_once").items()}

    def images_paid(self, killed: Killed) -> float:
        return (GIVEN - self.simulator.credits(killed.name)) / COST

    def tries(self, killed: Killed) -> int:
        ((number,),) = self.airflow.query(
            "SELECT try_number FROM task_instance WHERE task_id = :name", name=killed.name
        )
        return int(number)

    def files(self, killed: Killed) -> dict[str, bytes]:
        """Return the files of a task's call, by their names without that of the call."""
        found = {file.name: file.read_bytes() for file in self.folder.iterdir()}
        if killed.store == "s3":
            found = {name.removeprefix("images/"): content for name, content in self.s3.objects().items()}
        return {
            name.removeprefix(f"{killed.name}."): content
            for name, content in found.items()
            if name.startswith(f"{killed.name}.")
        }


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("airflow")
    for name in ("dags", "outputs", "notes"):
        (folder / name).mkdir()
    dag = Path(__file__).parent / "dags" / "paid_once.py"
    (folder / "dags" / dag.name).write_bytes(dag.read_bytes())
    folders = {"local": str(folder / "outputs")}
    with ExitStack() as stack:
        simulator = stack.enter_context(StabilitySimulator())
        s3, connection = None, {}
        if "s3" in STORES:
            from tests.s3_server import S3Server

            s3 = stack.enter_context(S3Server())
            folders["s3"] = f"s3://{s3.bucket}/images"
            connection = {f"AIRFLOW_CONN_{S3_CONNECTION.upper()}": s3.connection}
        settings = {"core__dags_are_paused_at_creation": True, "core__parallelism": 10}
        airflow = RealAirflow(folder, folder / "dags", settings=settings, seconds=LIMIT)
        airflow.environment |= connection | {
            "PYTHONPATH": str(ROOT),
            OUTPUTS: json.dumps(folders),
            NOTES: str(folder / "notes"),
            SIMULATOR_PORT: str(simulator.port),
        }
        try:
            story = Story(airflow, simulator, folder / "outputs", s3)
            story.play()
            yield story
        finally:
            airflow.end()


@pytest.mark.parametrize("killed", TASKS, ids=lambda killed: killed.name)
class TestKilled:
    def test_it_is_paid_for_once_at_most(self, story, killed):
        assert story.images_paid(killed) == killed.boundary.images_paid

    def test_the_next_try_ends_it(self, story, killed):
        assert story.tries(killed) == 2
        assert story.states()[killed.name] == ("success" if killed.boundary.succeeds else "failed")

    def test_an_output_is_there_or_the_unknown_outcome_is_reported(self, story, killed):
        files = story.files(killed)
        if killed.boundary.succeeds:
            assert files.keys() == {"json", "png"}
            assert files["png"].startswith(b"\x89PNG")
            return
        assert "paying.json" in files
        assert "png" not in files
        log = story.airflow.task_log("paid_once", killed.name)
        assert "may have been paid for already, and its output is not there" in log
        assert f"task {killed.name}, try 1, DAG paid_once" in log
        marker = json.loads(files["paying.json"])
        assert (marker["task_id"], marker["try_number"]) == (killed.name, 1)


def test_object_storage_has_killed_each_worker_that_it_should(story):
    expected = [each for each in TASKS if each.store == "s3" and each.boundary.remote]
    assert len(story.s3.killed if story.s3 else []) == len(expected)


def test_no_key_stands_in_a_marker_or_in_an_output(story):
    search = Search(story.keys)
    for killed in TASKS:
        assert not [name for name, content in story.files(killed).items() if search.find(content)]
