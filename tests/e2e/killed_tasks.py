"""The tasks of the story "paid once" in an Airflow: their wallets, who kills them, and what must hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from airflow_stability.simulator import Fault, StabilitySimulator
from tests.e2e.killing import (
    COST,
    JOB,
    JOB_CREDITS,
    JOB_SECONDS,
    NOTES,
    OUTPUTS,
    S3_CONNECTION,
    SIMULATOR_PORT,
    Killed,
    tasks,
)
from tests.e2e.ledgers import LedgerOfTasks
from tests.leaks import Search
from tests.real_airflow import TASK_INSTANCE, RealAirflow

DAG_FILE = Path(__file__).parent / "dags" / "paid_once.py"
ENDED = {"success", "failed"}
GIVEN = 100.0


class KilledTasks:
    """The tasks of the DAG.

    :param folder: for their files.
    :param s3: a server for object storage; None without.
    """

    def __init__(self, simulator: StabilitySimulator, folder: Path, s3: Any = None) -> None:
        self.simulator, self.s3 = simulator, s3
        self.keys: list[str] = []
        self.all = tasks(("local", "s3") if s3 else ("local",))
        self.ledger = LedgerOfTasks(f"sqlite:///{folder / 'ledger.db'}")
        self._outputs, self._notes = folder / "outputs", folder / "notes"
        for each in (self._outputs, self._notes):
            each.mkdir()

    def environment(self) -> dict[str, str]:
        """Return the environment variables that the DAG and its tasks need."""
        folders = {"local": str(self._outputs)}
        more = {}
        if self.s3:
            folders["s3"] = f"s3://{self.s3.bucket}/images"
            more[f"AIRFLOW_CONN_{S3_CONNECTION.upper()}"] = self.s3.connection
        return more | {
            OUTPUTS: json.dumps(folders),
            NOTES: str(self._notes),
            SIMULATOR_PORT: str(self.simulator.port),
        }

    def play(self, airflow: RealAirflow, *, triggerer: str, seconds: float) -> None:
        """Run the DAG to its end. The triggerer is killed while the task of the job waits in it."""
        airflow.connect(self._open_wallets())
        airflow.unpause("paid_once")
        airflow.wait_for("all tasks are there", lambda: len(self._states(airflow)) == len(self.all) + 1)
        airflow.wait_for("the job's task waits", lambda: self._states(airflow)[JOB] == "deferred")
        airflow.kill(triggerer)
        airflow.start(triggerer)
        airflow.wait_for(
            "all have ended", lambda: set(self._states(airflow).values()) <= ENDED, seconds=seconds
        )

    def check_job(self, airflow: RealAirflow, *, triggerers: int) -> None:
        """Check that the job was paid for once, and that its task has waited for it in a triggerer.

        :param triggerers: how many there are. Airflow takes one whose heartbeat is late for dead, and gives
            its triggers to another one. Until the first one notices that, both ask for the job.
        :raises AssertionError: it is not so.
        """
        assert self._states(airflow)[JOB] == "success"
        assert self._tries(airflow, JOB) == 1
        assert GIVEN - self.simulator.credits(JOB) == JOB_CREDITS
        assert self.ledger.credits("posted", task_id=JOB) == JOB_CREDITS
        assert self.ledger.credits("held", "unknown", task_id=JOB) == 0
        assert {file.name for file in self._outputs.glob(f"{JOB}.*")} == {f"{JOB}.png", f"{JOB}.png.json"}
        asked = [record for record in self.simulator.requests if "/results/" in record.path]
        # The worker has asked at first. Then a triggerer and the worker have found it finished, or also a
        # triggerer from which Airflow has taken the trigger away just then.
        assert [record.status for record in asked if record.status != 202] in ([200] * 2, [200] * 3)
        waited = [record.monotonic for record in asked[:-1]]
        assert len(waited) >= 2
        asked_before = zip(waited, waited[triggerers:], strict=False)
        assert all(later - earlier > 9.9 for earlier, later in asked_before)

    def check(self, airflow: RealAirflow, killed: Killed) -> None:
        """Check what has become of a task.

        :raises AssertionError: it is not what must be.
        """
        boundary, files = killed.boundary, self._files(killed)
        assert (GIVEN - self.simulator.credits(killed.name)) / COST == boundary.images_paid
        self._check_ledger(killed)
        assert self._states(airflow)[killed.name] == ("success" if boundary.succeeds else "failed")
        # Airflow's executor may report the dead worker when the second try has begun: then a third one begins
        # beside it, and both must pay once.
        assert self._tries(airflow, killed.name) in (2, 3)
        if boundary.succeeds:
            assert files.keys() == {"png", "png.json"}
            assert files["png"].startswith(b"\x89PNG")
        else:
            assert "png.paying.json" in files
            assert "png" not in files
            log = airflow.task_log("paid_once", killed.name)
            assert "may have been paid for already, and its output is not there" in log
            assert f"task {killed.name}, try 1, DAG paid_once" in log
            marker = json.loads(files["png.paying.json"])
            assert (marker["task_id"], marker["try_number"]) == (killed.name, 1)
        search = Search(self.keys)
        assert not [name for name, content in files.items() if search.find(content)]

    def _check_ledger(self, killed: Killed) -> None:
        """Check that the ledger counts what was paid for, once, and has posted nothing else."""
        posted = self.ledger.credits("posted", task_id=killed.name)
        # A call that was cut off keeps counting. It is called unknown when its lease ends.
        counted = posted + self.ledger.credits("held", "unknown", task_id=killed.name)
        assert posted <= killed.boundary.images_paid * COST <= counted <= COST
        assert posted == COST or not killed.boundary.succeeds

    def _open_wallets(self) -> dict[str, str]:
        """Give each task an organization and a key, and tell who kills it; return the connections."""
        # Another one of the same name would keep what an import of this one does not name.
        uris = {"ledger_of_killed": self.ledger.connection}
        self.simulator.job_seconds = JOB_SECONDS
        for name in (JOB, *(killed.name for killed in self.all)):
            self.simulator.add_organization(name, credits=GIVEN)
            self.simulator.add_account(name, "someone@example.org", [name])
            self.keys.append(self.simulator.add_key(account=name))
            address = self.simulator.connection_uri(self.keys[-1])
            uris[name] = f"{address}?api_version=v1&ledger_conn_id=ledger_of_killed"
        for killed, key in zip(self.all, self.keys[1:], strict=True):
            if killed.boundary.hangs:
                fault = Fault.hang(after_work=killed.boundary.bills)
                self.simulator.inject(fault, times=1, path="/v2beta", key=key)
            elif killed.store == "s3" and killed.boundary.remote:
                method, ending, when = killed.boundary.remote
                self.s3.kill_at(method, f"{killed.name}{ending}", when)
        return uris

    def _states(self, airflow: RealAirflow) -> dict[str, str | None]:
        return {name: state for (name, _), state in airflow.states("paid_once").items()}

    def _tries(self, airflow: RealAirflow, name: str) -> int:
        ((number,),) = airflow.query(
            f"SELECT try_number FROM {TASK_INSTANCE} WHERE task_id = :name", name=name
        )
        return int(number)

    def _files(self, killed: Killed) -> dict[str, bytes]:
        """Return the files of a task's call, by their names without that of the call."""
        if killed.store == "s3":
            found = {name.removeprefix("images/"): content for name, content in self.s3.objects().items()}
        else:
            found = {file.name: file.read_bytes() for file in self._outputs.iterdir()}
        return {
            name.removeprefix(f"{killed.name}."): content
            for name, content in found.items()
            if name.startswith(f"{killed.name}.")
        }
