"""The comparison of the contenders, on a real Airflow against one server that counts requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_stability.simulator import Fault
from tests.benchmarks import imports
from tests.benchmarks.contenders import CONTENDERS, INTERVAL, Contender
from tests.benchmarks.environment import (
    GATES_TIMEOUT,
    HERE,
    HIGH_BALANCE,
    LOW_BALANCE,
    SETTINGS,
    Environment,
    machine,
)
from tests.real_airflow import AirflowError


@dataclass
class Measured:
    """The figures of one contender with one number of gates."""

    dag: str
    gates: int
    seconds_to_all_waiting: float
    requests_per_minute: float
    triggerer_cpu_per_minute: float  # seconds, above idle
    triggerer_memory: float  # MB, above idle
    seconds_to_last_open: float
    seconds_to_all_ended: float
    worker_starts_per_gate: float


class Comparison(Environment):
    """A comparison of the contenders. Call ``run`` within its ``with`` block.

    :param folder: for Airflow's home and logs.
    :param say: called with each line of progress.
    :param window: seconds for which waiting gates are measured.
    """

    def __init__(
        self, folder: Path, say: Callable[[str], None], *, window: float, use_postgres: bool | None
    ) -> None:
        dags = HERE / "dags"
        super().__init__(
            folder, say, dags=dags, count=len(CONTENDERS), window=window, use_postgres=use_postgres
        )

    def run(
        self,
        contenders: Sequence[Contender],
        gates: Sequence[int],
        save: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any]:
        """Measure everything.

        :param save: called with the result so far after each measurement, since all of them take an hour.
        :raises AirflowError: a gate or a process of Airflow failed.
        """
        result: dict[str, Any] = {
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": self._versions("apache-airflow-providers-http"),
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
                save(result)
        result["minutes"] = (datetime.now(UTC) - datetime.fromisoformat(result["began"])).total_seconds() / 60
        return result

    def _new_triggerer(self, contender: Contender) -> None:
        """Restart the triggerer, so that nothing of the contender before is left in it.

        Run one gate at once, because the triggerer loads 200 MB of Airflow with its first trigger.
        """
        sql = "SELECT max(id) FROM job WHERE job_type = 'TriggererJob'"
        before = self.airflow.query(sql)[0][0]
        self.airflow.kill("triggerer")
        self.airflow.start("triggerer")
        self.airflow.wait_for("A new triggerer", lambda: self.airflow.query(sql)[0][0] != before)
        self._wait_until_triggerer_is_idle()
        runs = self._start_gates(contender, 1)
        self._top_up()
        self._wait_until(runs, lambda states: states.get("success", 0) == 1)
        self._sleep(INTERVAL)

    # One measurement

    def _measure(self, contender: Contender, count: int, idle: float) -> Measured:
        began = time.monotonic()
        self._new_triggerer(contender)
        memory_before = self._usage().memory
        started = time.monotonic()
        runs = self._start_gates(contender, count)
        to_all_waiting = time.monotonic() - started
        self._sleep(2 * INTERVAL)

        self.server.clear_requests()
        watched_from = time.monotonic()
        cpu = self._watch() - idle
        asked = self._count_requests(contender, watched_from, time.monotonic())
        memory = self._usage().memory - memory_before
        if self._states(runs) != {"deferred": count}:
            raise AirflowError(f"{contender.name}: not all gates kept waiting")

        topped_up = self._top_up()
        self._wait_until(runs, lambda states: "deferred" not in states)
        to_last_open = time.monotonic() - topped_up
        self._wait_until(runs, lambda states: states.get("success", 0) == count)
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
            worker_starts_per_gate=self._worker_starts(runs) / count,
        )
        self._wait_until_runs_have_ended(contender)
        self.say(
            f"{contender.name}, {count} gates, {time.monotonic() - began:.0f} s: "
            f"{measured.requests_per_minute:.0f} requests a minute, {cpu:.2f} s CPU a minute, "
            f"{memory:.1f} MB, last open after {to_last_open:.1f} s, all ended after {to_all_ended:.1f} s, "
            f"{measured.worker_starts_per_gate:g} worker starts a gate"
        )
        return measured

    def _start_gates(self, contender: Contender, count: int) -> str:
        """Start gates, and return once all of them wait in the triggerer.

        :returns: the text that the ids of their runs begin with.
        """
        self.server.set_credits(LOW_BALANCE)
        self.server.clear_faults()
        self.server.inject(Fault.status(404), path="/v1/user/account")
        runs = f"{contender.dag}-{count}-gates-{time.time():.0f}-"
        for number in range(count):
            self._start_run(contender.dag, f"{runs}{number}")
        self._wait_until(runs, lambda states: states.get("deferred", 0) == count)
        self.airflow.wait_for("The triggerer has all gates", lambda: self._triggers() == count)
        return runs

    def _top_up(self) -> float:
        """Top up right after a poll. At this worst moment the result does not depend on luck."""
        seen = len(self.server.requests)
        self.airflow.wait_for("A poll", lambda: any(record.status for record in self.server.requests[seen:]))
        self.server.set_credits(HIGH_BALANCE)
        self.server.clear_faults()
        return time.monotonic()

    def _count_requests(self, contender: Contender, after: float, before: float) -> int:
        return sum(
            record.path == contender.path and after < record.monotonic < before
            for record in self.server.requests
        )

    def _worker_starts(self, runs: str) -> int:
        """Count the worker processes. Each reports `running` at first, which Airflow writes into a table."""
        [(count,)] = self.airflow.query(
            "SELECT count(*) FROM log WHERE event = 'running' AND run_id LIKE :runs", runs=f"{runs}%"
        )
        return int(count)

    def _wait_until_runs_have_ended(self, contender: Contender) -> None:
        self.airflow.wait_for(
            "The runs have ended",
            lambda: (
                not self.airflow.query(
                    "SELECT 1 FROM dag_run WHERE dag_id = :dag AND state IN ('running', 'queued')",
                    dag=contender.dag,
                )
            ),
            seconds=GATES_TIMEOUT,
        )
