"""Runs the contenders on a real Airflow against one counting server, and returns what was measured."""

from __future__ import annotations

import os
import platform
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import requests

from airflow_stability.simulator import Fault, RateLimit, StabilitySimulator
from tests.benchmarks import imports, postgres
from tests.benchmarks.contenders import CONTENDERS, INTERVAL, Contender
from tests.real_airflow import AirflowError, RealAirflow

HERE = Path(__file__).resolve().parent
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
TOO_LITTLE, ENOUGH = 1.0, 50.0
#: Seconds between two looks at the database, and so how exact the times of opening and ending are.
LOOK_EVERY = 0.2
#: Seconds that gates may take to defer, or to end: 500 of them are a thousand starts of a worker process.
PATIENCE = 3600

SETTINGS: dict[str, object] = {
    # Most of a worker's second is waiting for others: more at a time than there are cores.
    "core__parallelism": 4 * CORES,
    "core__dags_are_paused_at_creation": False,
    "core__plugins_folder": HERE / "plugins",
    "core__simple_auth_manager_all_admins": True,
    # Each gate is a DAG run: none may wait for its turn.
    "core__max_active_runs_per_dag": 10_000,
    "scheduler__max_dagruns_per_loop_to_schedule": 100,
}


@dataclass
class Usage:
    """What a component and all that it has started have used up to now."""

    at: float
    cpu: float  # seconds, user and system
    memory: float  # MB that nobody else has a share in
    processes: int

    @classmethod
    def of(cls, process: psutil.Process) -> Usage:
        family = [process, *process.children(recursive=True)]
        times = [each.cpu_times() for each in family]
        return cls(
            time.monotonic(),
            sum(each.user + each.system for each in times),
            sum(each.memory_full_info().uss for each in family) / 1e6,
            len(family),
        )


@dataclass
class Measured:
    """One contender with one number of gates."""

    dag: str
    gates: int
    seconds_to_all_waiting: float
    requests_per_minute: float
    triggerer_cpu_per_minute: float  # seconds, above idle
    triggerer_memory: float  # MB, above idle
    seconds_to_last_open: float
    seconds_to_all_ended: float
    worker_starts_per_gate: float


class Bench:
    """The benchmark. Enter it, ``run`` it; what it has started is gone when it is left.

    :param folder: for Airflow's home and logs.
    :param say: is told of progress.
    :param window: seconds for which waiting gates are watched.
    """

    def __init__(
        self, folder: Path, say: Callable[[str], None], *, window: float, use_postgres: bool | None
    ) -> None:
        self.folder = folder
        self.say = say
        self.window = window
        programs = None if use_postgres is False else postgres.installed()
        if use_postgres and programs is None:
            raise OSError("There is no PostgreSQL here, or nobody but root to run it.")
        self.postgres = programs
        self._stack = ExitStack()
        self._session = requests.Session()
        self._session.trust_env = False

    def __enter__(self) -> Bench:
        with ExitStack() as stack:
            # No limit: the real API's, 150 requests in 10 seconds, would lock the rivals out from 75 gates.
            self.server = stack.enter_context(
                StabilitySimulator(credits=TOO_LITTLE, rate_limit=RateLimit(requests=10**9))
            )
            database = stack.enter_context(postgres.cluster(self.postgres)) if self.postgres else None
            self.airflow = RealAirflow(self.folder, HERE / "dags", database=database, settings=SETTINGS)
            stack.callback(self.airflow.end)
            stack.callback(_ignore_signals)  # tidying up is not interrupted by a second Ctrl-C
            self._start_airflow()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def run(
        self,
        contenders: Sequence[Contender],
        gates: Sequence[int],
        keep: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any]:
        """Measure all of it.

        :param keep: is handed what there is after each measurement, since all of them take an hour.
        :raises AirflowError: something did not go as it should.
        """
        result: dict[str, Any] = {
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": self._versions(),
            "window": self.window,
            "parallelism": SETTINGS["core__parallelism"],
        }
        self.say("importing the sensors")
        quick = self.window < 60
        result["imports"] = imports.measure(self.airflow.environment, rounds=3 if quick else 9)
        self.say(f"the triggerer without gates, {self.window:g} s")
        self._new_triggerer(contenders[0])
        idle = self._watch()
        result["idle_cpu_per_minute"] = idle
        result["measured"] = []
        for count in gates:
            for contender in contenders:
                measured = self._measure(contender, count, idle)
                result["measured"].append(asdict(measured))
                keep(result)
        result["minutes"] = (datetime.now(UTC) - datetime.fromisoformat(result["began"])).total_seconds() / 60
        return result

    # Airflow

    def _start_airflow(self) -> None:
        self.say(f"making Airflow's database ({'PostgreSQL' if self.postgres else 'SQLite'})")
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
        self.airflow.wait_for("Airflow is well", self.airflow.healthy)
        # For as long as this Airflow lives, on loopback, everyone is its administrator.
        token = self._session.get(f"{self.airflow.url}/auth/token", timeout=30).json()["access_token"]
        self._session.headers["Authorization"] = f"Bearer {token}"
        self.airflow.wait_for("The DAGs are there", self._dags_there)

    def _dags_there(self) -> bool:
        errors = self.airflow.query("SELECT filename, stacktrace FROM import_error")
        if errors:
            raise AirflowError(f"{errors[0][0]} cannot be loaded: {errors[0][1]}")
        return self.airflow.query("SELECT count(*) FROM dag")[0][0] == len(CONTENDERS)

    def _new_triggerer(self, contender: Contender) -> None:
        """Start the triggerer anew, so that it has nothing left of the contender before.

        Let it have one gate at once: with its first trigger it loads 200 MB of Airflow.
        """
        sql = "SELECT max(id) FROM job WHERE job_type = 'TriggererJob'"
        before = self.airflow.query(sql)[0][0]
        self.airflow.kill("triggerer")
        self.airflow.start("triggerer")
        self.airflow.wait_for("A new triggerer", lambda: self.airflow.query(sql)[0][0] != before)
        # It loads most of itself in a process of its own, after it has said that it is there.
        quiet, give_up = 0, time.monotonic() + 120
        while quiet < 3:
            before_it = self._usage()
            self._sleep(1)
            after = self._usage()
            quiet = quiet + 1 if after.processes > 1 and after.cpu - before_it.cpu < 0.2 else 0
            if time.monotonic() > give_up:
                raise AirflowError("the triggerer does not come to rest")
        prefix = self._begin(contender, 1)
        self._top_up()
        self._wait_until(contender, prefix, lambda states: states.get("success", 0) == 1)
        self._sleep(INTERVAL)

    def _usage(self) -> Usage:
        return Usage.of(self.airflow.process("triggerer"))

    def _watch(self) -> float:
        """Return the triggerer's CPU seconds a minute during the next window."""
        before = self._usage()
        self._sleep(self.window)
        after = self._usage()
        return (after.cpu - before.cpu) / (after.at - before.at) * 60

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 1))
            self.airflow.check()

    # One measurement

    def _measure(self, contender: Contender, count: int, idle: float) -> Measured:
        began = time.monotonic()
        self._new_triggerer(contender)
        memory_before = self._usage().memory
        started = time.monotonic()
        prefix = self._begin(contender, count)
        to_all_waiting = time.monotonic() - started
        self._sleep(2 * INTERVAL)

        self.server.clear_requests()
        watched_from = time.monotonic()
        cpu = self._watch() - idle
        asked = self._asked(contender, watched_from, time.monotonic())
        memory = self._usage().memory - memory_before
        if self._states(contender, prefix) != {"deferred": count}:
            raise AirflowError(f"{contender.name}: not all gates went on waiting")

        topped_up = self._top_up()
        self._wait_until(contender, prefix, lambda states: "deferred" not in states)
        to_last_open = time.monotonic() - topped_up
        self._wait_until(contender, prefix, lambda states: states.get("success", 0) == count)
        to_all_ended = time.monotonic() - topped_up
        measured = Measured(
            contender.dag,
            count,
            seconds_to_all_waiting=to_all_waiting,
            requests_per_minute=asked * 60 / self.window,
            triggerer_cpu_per_minute=cpu,
            triggerer_memory=memory,
            seconds_to_last_open=to_last_open,
            seconds_to_all_ended=to_all_ended,
            worker_starts_per_gate=self._worker_starts(contender, prefix) / count,
        )
        self._wait_until_scheduler_is_done(contender)
        self.say(
            f"{contender.name}, {count} gates, {time.monotonic() - began:.0f} s: "
            f"{measured.requests_per_minute:.0f} requests a minute, {cpu:.2f} s CPU a minute, "
            f"{memory:.1f} MB, last open after {to_last_open:.1f} s, all ended after {to_all_ended:.1f} s, "
            f"{measured.worker_starts_per_gate:g} worker starts a gate"
        )
        return measured

    def _begin(self, contender: Contender, count: int) -> str:
        """Start gates, and return what their runs' ids begin with, once all of them wait in the triggerer."""
        self.server.set_credits(TOO_LITTLE)
        self.server.clear_faults()
        self.server.inject(Fault.status(404), path="/v1/user/account")
        prefix = f"{count}-gates-{time.time():.0f}-"
        for number in range(count):
            answer = self._session.post(
                f"{self.airflow.url}/api/v2/dags/{contender.dag}/dagRuns",
                json={"dag_run_id": f"{prefix}{number}", "logical_date": None},
                timeout=60,
            )
            answer.raise_for_status()
        self._wait_until(contender, prefix, lambda states: states.get("deferred", 0) == count)
        self.airflow.wait_for("The triggerer has all gates", lambda: self._triggers() == count)
        return prefix

    def _top_up(self) -> float:
        """Top up just after a poll, the worst moment: luck shall have no part in how soon it is seen."""
        seen = len(self.server.requests)
        self.airflow.wait_for("A poll", lambda: any(record.status for record in self.server.requests[seen:]))
        self.server.set_credits(ENOUGH)
        self.server.clear_faults()
        return time.monotonic()

    def _states(self, contender: Contender, prefix: str) -> dict[str, int]:
        rows = self.airflow.query(
            "SELECT state, count(*) FROM task_instance "
            "WHERE dag_id = :dag AND run_id LIKE :runs GROUP BY state",
            dag=contender.dag,
            runs=f"{prefix}%",
        )
        return {state or "none": number for state, number in rows}

    def _wait_until(self, contender: Contender, prefix: str, there: Callable[[dict[str, int]], bool]) -> None:
        give_up = time.monotonic() + PATIENCE
        while not there(states := self._states(contender, prefix)):
            self.airflow.check()
            wrong = set(states) & {"failed", "skipped", "up_for_retry", "upstream_failed"}
            if wrong or time.monotonic() > give_up:
                raise AirflowError(f"{contender.name}: {states}; logs: {self.airflow.logs}")
            time.sleep(LOOK_EVERY)

    def _triggers(self) -> int:
        [(count,)] = self.airflow.query("SELECT count(*) FROM trigger WHERE triggerer_id IS NOT NULL")
        return int(count)

    def _asked(self, contender: Contender, after: float, before: float) -> int:
        return sum(
            record.path == contender.path and after < record.monotonic < before
            for record in self.server.requests
        )

    def _worker_starts(self, contender: Contender, prefix: str) -> int:
        """Count the starts: each process of a task says `running` to Airflow first, which writes it down."""
        [(count,)] = self.airflow.query(
            "SELECT count(*) FROM log WHERE event = 'running' AND dag_id = :dag AND run_id LIKE :runs",
            dag=contender.dag,
            runs=f"{prefix}%",
        )
        return int(count)

    def _wait_until_scheduler_is_done(self, contender: Contender) -> None:
        self.airflow.wait_for(
            "The runs have ended",
            lambda: (
                not self.airflow.query(
                    "SELECT 1 FROM dag_run WHERE dag_id = :dag AND state IN ('running', 'queued')",
                    dag=contender.dag,
                )
            ),
            seconds=PATIENCE,
        )

    # For the page

    def _versions(self) -> dict[str, str]:
        names = ("apache-airflow", "apache-airflow-providers-http", "airflow-provider-stability")
        return {
            **{name: version(name) for name in names},
            "Python": platform.python_version(),
            **(
                {"PostgreSQL": postgres.version(self.postgres)}
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
