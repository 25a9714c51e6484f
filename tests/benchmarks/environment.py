"""The environment of both benchmarks: a real Airflow, its database, and a simulator that counts requests."""

from __future__ import annotations

import os
import platform
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Self

import psutil
import requests

from airflow_stability.simulator import RateLimit, StabilitySimulator
from tests.real_airflow import AirflowError, RealAirflow
from tests.servers import PostgreSQL

HERE = Path(__file__).resolve().parent
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
LOW_BALANCE, HIGH_BALANCE = 1.0, 50.0
#: Seconds between two queries of the database. The times of opening and ending are as exact as this.
LOOK_EVERY = 0.2
#: Seconds that gates get to defer, or to end. For 500 gates a thousand worker processes start.
GATES_TIMEOUT = 3600

SETTINGS: dict[str, object] = {
    # A worker mostly waits for other processes, so more of them run than there are cores.
    "core__parallelism": 4 * CORES,
    "core__dags_are_paused_at_creation": False,
    "core__plugins_folder": HERE / "plugins",
    "core__simple_auth_manager_all_admins": True,
    # Each gate is a DAG run. No run may wait for another one.
    "core__max_active_runs_per_dag": 10_000,
    "scheduler__max_dagruns_per_loop_to_schedule": 100,
}


@dataclass
class Usage:
    """The resources that processes have used up to a moment."""

    at: float
    cpu: float  # seconds, user and system
    memory: float  # MB, not shared with other processes (USS)
    processes: int

    @classmethod
    def of(cls, *family: psutil.Process) -> Usage:
        times = [each.cpu_times() for each in family]
        return cls(
            time.monotonic(),
            sum(each.user + each.system for each in times),
            sum(each.memory_full_info().uss for each in family) / 1e6,
            len(family),
        )

    def cpu_per_minute(self, before: Usage) -> float:
        """Return the CPU seconds a minute since an earlier moment."""
        return (self.cpu - before.cpu) / (self.at - before.at) * 60


class Environment:
    """Airflow, its database and the server, from the start to the end of a ``with`` block.

    :param folder: for Airflow's home and logs.
    :param say: called with each line of progress.
    :param dags: the folder of the DAGs.
    :param count: the number of DAGs.
    :param window: seconds for which waiting gates are measured.
    :param settings: Airflow's settings, in addition to those of all benchmarks.
    """

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None],
        *,
        dags: Path,
        count: int,
        window: float,
        use_postgres: bool | None,
        settings: Mapping[str, object] = {},
    ) -> None:
        self.folder = folder
        self.say = say
        self.window = window
        self._dags, self._count = dags, count
        self._settings = {**SETTINGS, **settings}
        programs = None if use_postgres is False else PostgreSQL.installed()
        if use_postgres and programs is None:
            raise OSError("PostgreSQL is not installed, or only root could run it.")
        self.postgres = programs
        self._stack = ExitStack()
        self._session = requests.Session()
        self._session.trust_env = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # No rate limit. The real one, 150 requests in 10 seconds, would lock out the other contenders
            # from 75 gates on.
            self.server = stack.enter_context(
                StabilitySimulator(credits=LOW_BALANCE, rate_limit=RateLimit(requests=10**9))
            )
            server = stack.enter_context(PostgreSQL(self.postgres)) if self.postgres else None
            database = server.url if server else None
            self.airflow = RealAirflow(self.folder, self._dags, database=database, settings=self._settings)
            stack.callback(self.airflow.end)
            stack.callback(_ignore_signals)  # a second Ctrl-C must not interrupt the clean-up
            self._start_airflow()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    # Airflow

    def _start_airflow(self) -> None:
        self.say(f"creating Airflow's database ({'PostgreSQL' if self.postgres else 'SQLite'})")
        self.airflow.run("db", "migrate")
        key, url = self.server.api_key, self.server.url
        self.airflow.connect(
            {
                "stability_default": f"{self.server.connection_uri()}?api_version=v1",
                "balance_http": f"{url}/?Authorization=Bearer%20{key}",
            }
        )
        self.say("starting Airflow")
        self.airflow.start()
        self.airflow.wait_for("Airflow is healthy", self.airflow.healthy)
        # Everybody is an administrator of this Airflow, which listens on loopback only.
        self._session.headers["Authorization"] = f"Bearer {self.airflow.token()}"
        self.airflow.wait_for("The DAGs are loaded", self._dags_loaded)

    def _dags_loaded(self) -> bool:
        errors = self.airflow.query("SELECT filename, stacktrace FROM import_error")
        if errors:
            raise AirflowError(f"{errors[0][0]} cannot be loaded: {errors[0][1]}")
        return self.airflow.query("SELECT count(*) FROM dag")[0][0] == self._count

    def _wait_until_triggerer_is_idle(self) -> None:
        # The triggerer reports that it is healthy before its child process has loaded most of its modules.
        quiet, give_up = 0, time.monotonic() + 120
        while quiet < 3:
            before = self._usage()
            self._sleep(1)
            after = self._usage()
            quiet = quiet + 1 if after.processes > 1 and after.cpu - before.cpu < 0.2 else 0
            if time.monotonic() > give_up:
                raise AirflowError("the triggerer does not become idle")

    def _triggerer(self) -> list[psutil.Process]:
        """Return the triggerer's processes. The one that queries the database comes first."""
        process = self.airflow.process("triggerer")
        return [process, *process.children(recursive=True)]

    def _usage(self) -> Usage:
        return Usage.of(*self._triggerer())

    def _watch(self) -> float:
        """Return the triggerer's CPU seconds a minute during the next window."""
        before = self._usage()
        self._sleep(self.window)
        return self._usage().cpu_per_minute(before)

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 1))
            self.airflow.check()

    # Gates

    def _start_run(self, dag: str, run: str, conf: Mapping[str, str] = {}) -> None:
        response = self._session.post(
            f"{self.airflow.url}/api/v2/dags/{dag}/dagRuns",
            json={"dag_run_id": run, "logical_date": None, "conf": dict(conf)},
            timeout=60,
        )
        response.raise_for_status()

    def _states(self, runs: str) -> dict[str, int]:
        """Return the number of tasks in each state, of the runs whose ids begin with this text."""
        rows = self.airflow.query(
            "SELECT state, count(*) FROM task_instance WHERE run_id LIKE :runs GROUP BY state",
            runs=f"{runs}%",
        )
        return {state or "none": number for state, number in rows}

    def _wait_until(self, runs: str, reached: Callable[[dict[str, int]], bool]) -> None:
        give_up = time.monotonic() + GATES_TIMEOUT
        while not reached(states := self._states(runs)):
            self.airflow.check()
            wrong = set(states) & {"failed", "skipped", "up_for_retry", "upstream_failed"}
            if wrong or time.monotonic() > give_up:
                raise AirflowError(f"{runs}: {states}; logs: {self.airflow.logs}")
            time.sleep(LOOK_EVERY)

    def _triggers(self) -> int:
        [(count,)] = self.airflow.query("SELECT count(*) FROM trigger WHERE triggerer_id IS NOT NULL")
        return int(count)

    # For the pages

    def _versions(self, *others: str) -> dict[str, str]:
        names = ("apache-airflow", *others, "airflow-provider-stability")
        return {
            **{name: version(name) for name in names},
            "Python": platform.python_version(),
            **(
                {"PostgreSQL": PostgreSQL.version(self.postgres)}
                if self.postgres
                else {"SQLite": sqlite3.sqlite_version}
            ),
        }


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def machine() -> str:
    """Describe this machine."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    memory = psutil.virtual_memory().total / 2**30
    return f"{model}, {CORES} cores, {memory:.0f} GB, {platform.system()} {platform.release()}"
