"""Workers of a real Airflow that are killed at each moment around a durable call. Airflow's retries are on.

One story; the tests look at what it left.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_stability.simulator import Fault, StabilitySimulator
from tests.conftest import ROOT
from tests.e2e.killing import BOUNDARIES, COST, NOTES, OUTPUTS
from tests.leaks import Search
from tests.real_airflow import RealAirflow

#: Seconds for the story. pytest's own limit ends this process at once, and would leave Airflow's running.
LIMIT = 300
pytestmark = pytest.mark.timeout(LIMIT + 60)

ENDED = {"success", "failed"}
GIVEN = 100.0


class Story:
    """What happens, and what it leaves."""

    def __init__(self, airflow: RealAirflow, simulator: StabilitySimulator) -> None:
        self.airflow, self.simulator = airflow, simulator
        self.outputs = Path(airflow.environment[OUTPUTS])
        self.keys: list[str] = []

    def play(self) -> None:
        airflow = self.airflow
        airflow.run("db", "migrate")
        airflow.connect(self._open_wallets())
        airflow.start()
        airflow.wait_for("all components are healthy", airflow.healthy)
        airflow.wait_for("the DAG is there", lambda: len(airflow.query("SELECT * FROM dag")) == 1)
        airflow.run("dags", "unpause", "paid_once")
        airflow.wait_for("all tasks are there", lambda: len(self.states()) == len(BOUNDARIES))
        airflow.wait_for("all have ended", lambda: set(self.states().values()) <= ENDED, seconds=LIMIT)

    def _open_wallets(self) -> dict[str, str]:
        """Give each task an organization and a key; return the connections."""
        uris = {}
        for boundary in BOUNDARIES:
            self.simulator.add_organization(boundary.name, credits=GIVEN)
            self.simulator.add_account(boundary.name, "someone@example.org", [boundary.name])
            key = self.simulator.add_key(account=boundary.name)
            self.keys.append(key)
            uris[boundary.name] = f"{self.simulator.connection_uri(key)}?api_version=v1"
            if boundary.hangs:
                fault = Fault.hang(after_work=boundary.bills)
                self.simulator.inject(fault, times=1, path="/v2beta", key=key)
        return uris

    def states(self) -> dict[str, str | None]:
        return {name: state for (name, _), state in self.airflow.states("paid_once").items()}

    def images_paid(self, name: str) -> float:
        return (GIVEN - self.simulator.credits(name)) / COST

    def tries(self, name: str) -> int:
        ((number,),) = self.airflow.query(
            "SELECT try_number FROM task_instance WHERE task_id = :name", name=name
        )
        return int(number)

    def files(self, name: str) -> list[str]:
        return sorted(file.name.removeprefix(f"{name}.") for file in self.outputs.glob(f"{name}.*"))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("airflow")
    for name in ("dags", "outputs", "notes"):
        (folder / name).mkdir()
    dag = Path(__file__).parent / "dags" / "paid_once.py"
    (folder / "dags" / dag.name).write_bytes(dag.read_bytes())
    with StabilitySimulator() as simulator:
        settings = {"core__dags_are_paused_at_creation": True, "core__parallelism": len(BOUNDARIES)}
        airflow = RealAirflow(folder, folder / "dags", settings=settings, seconds=LIMIT)
        airflow.environment |= {
            "PYTHONPATH": str(ROOT),
            OUTPUTS: str(folder / "outputs"),
            NOTES: str(folder / "notes"),
        }
        try:
            story = Story(airflow, simulator)
            story.play()
            yield story
        finally:
            airflow.end()


@pytest.mark.parametrize("boundary", BOUNDARIES, ids=lambda boundary: boundary.name)
class TestBoundary:
    def test_it_is_paid_for_once_at_most(self, story, boundary):
        assert story.images_paid(boundary.name) == boundary.images_paid

    def test_the_next_try_ends_it(self, story, boundary):
        assert story.tries(boundary.name) == 2
        assert story.states()[boundary.name] == ("success" if boundary.succeeds else "failed")

    def test_an_output_is_there_or_the_unknown_outcome_is_reported(self, story, boundary):
        log = story.airflow.task_log("paid_once", boundary.name)
        if boundary.succeeds:
            assert story.files(boundary.name) == ["json", "png"]
            assert story.outputs.joinpath(f"{boundary.name}.png").read_bytes().startswith(b"\x89PNG")
            return
        assert "paying.json" in story.files(boundary.name)
        assert "png" not in story.files(boundary.name)
        assert "may have been paid for already, and its output is not there" in log
        assert f"task {boundary.name}, try 1, DAG paid_once" in log
        marker = json.loads(story.outputs.joinpath(f"{boundary.name}.paying.json").read_text())
        assert (marker["task_id"], marker["try_number"]) == (boundary.name, 1)


def test_no_key_stands_in_a_marker_or_in_a_log(story):
    found, files = Search(story.keys).find_in_files(story.outputs)
    assert found == []
    assert files > len(BOUNDARIES)
    found, files, _ = story.airflow.places_of(*story.keys)
    assert not [place for place in found if "outputs" in place]
