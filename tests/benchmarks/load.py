"""The load test: what thousands of gates on one triggerer cost, and whether they block its event loop."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.contenders import INTERVAL
from tests.benchmarks.environment import (
    GATES_TIMEOUT,
    HERE,
    HIGH_BALANCE,
    LOW_BALANCE,
    Environment,
    Usage,
    machine,
)
from tests.benchmarks.plugins.loop_watch import FILE
from tests.dead_host import DeadHost
from tests.real_airflow import AirflowError

#: One gate in so many defers from a worker. The others start in the triggerer.
CLASSIC_EVERY = 10
#: Seconds from which a round of the event loop counts as blocked.
BLOCKED = 0.1
#: Gates on a connection whose host accepts calls and never answers, each of another organization.
HANGING = 40
PHASES = ("first gate", "loading", "waiting", "hanging", "opening")


class LoadTest(Environment):
    """Gates on one triggerer, with one connection and many organizations.

    Call ``run`` within its ``with`` block.

    :param folder: for Airflow's home and logs.
    :param say: called with each line of progress.
    :param gates: the number of gates, a multiple of the number of organizations.
    :param window: seconds for which waiting gates are measured.
    """

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None],
        *,
        gates: int,
        organizations: int,
        window: float,
        use_postgres: bool | None,
    ) -> None:
        super().__init__(
            folder,
            say,
            dags=HERE / "load_dags",
            count=organizations + 3,
            window=window,
            use_postgres=use_postgres,
            settings={
                "triggerer__capacity": gates + HANGING,
                # Hundreds of workers start at the same time. They must not give up on Airflow's own API.
                "workers__execution_api_timeout": 60,
            },
        )
        self.gates = gates
        self.organizations = organizations
        self._rounds_file = folder / "rounds.jsonl"

    def run(self) -> dict[str, Any]:
        """Measure everything.

        :raises AirflowError: a gate or a process of Airflow failed.
        """
        result: dict[str, Any] = {
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": self._versions(),
            "window": self.window,
            "gates": self.gates,
            "organizations": self.organizations,
            "hanging": HANGING,
        }
        self._wait_until_triggerer_is_idle()
        phases = {"first gate": time.monotonic()}
        self._warm_up()
        self.say(f"the triggerer without gates, {self.window:g} s")
        idle = self._cpu_by_process()
        memory_before = self._usage_by_process()

        self.say(f"starting {self.gates} gates")
        phases["loading"] = time.monotonic()
        runs = self._start_gates(result)
        self.say(f"all gates wait after {time.monotonic() - phases['loading']:.0f} s")
        self._sleep(3 * INTERVAL)

        phases["waiting"] = time.monotonic()
        self.server.clear_requests()
        busy = self._cpu_by_process()
        asked = [record for record in self.server.requests if record.monotonic >= phases["waiting"]]
        memory = self._usage_by_process()
        if self._states(runs) != {"deferred": self.gates}:
            raise AirflowError("not all gates kept waiting")
        result["longest_between_looks"] = {"waiting": self._longest_between_looks()}
        result["requests_per_interval"] = len(asked) / self.window * INTERVAL
        result["idle_cpu_per_minute"] = sum(idle)
        result["cpu_per_minute"] = {
            "database": busy[0] - idle[0],
            "loop": busy[1] - idle[1],
        }
        result["kb_per_gate"] = {
            name: (after.memory - before.memory) * 1000 / self.gates
            for name, before, after in zip(("database", "loop"), memory_before, memory, strict=True)
        }

        with DeadHost() as dead_host:
            self._let_a_connection_hang(dead_host)
            phases["hanging"] = time.monotonic()
            self.server.clear_requests()
            self._sleep(self.window)
            result["longest_between_looks"]["hanging"] = self._longest_between_looks()
            if not dead_host.calls:
                raise AirflowError("no call hangs")
            self._open_gates(runs, phases, result)
        self._sleep(1)  # until the last rounds are in the file
        result["rounds"] = self._rounds(phases)
        result["minutes"] = (datetime.now(UTC) - datetime.fromisoformat(result["began"])).total_seconds() / 60
        return result

    def _let_a_connection_hang(self, dead_host: DeadHost) -> None:
        """Start gates on a connection to a dead host, and return once its calls hang."""
        self.say(f"starting {HANGING} gates on a connection that hangs")
        self.airflow.connect({"hanging": dead_host.connection()})
        for number in range(HANGING):
            self._start_run("hanging", f"hanging-{number}", {"organization": f"org-{number}"})
        self._wait_until("hanging-", lambda states: states.get("deferred", 0) == HANGING)
        self.airflow.wait_for("Calls hang", lambda: dead_host.calls > 0, seconds=GATES_TIMEOUT)

    def _longest_between_looks(self) -> float:
        """Return the longest time between two looks at one organization, in seconds."""
        looks: dict[str | None, list[float]] = {}
        for record in self.server.requests:
            looks.setdefault(record.organization, []).append(record.monotonic)
        return max(
            later - earlier for times in looks.values() for earlier, later in itertools.pairwise(times)
        )

    def _open_gates(self, runs: str, phases: dict[str, float], result: dict[str, Any]) -> None:
        """Top all organizations up, and wait until all gates have ended."""
        phases["opening"] = time.monotonic()
        for organization in range(self.organizations):
            self.server.set_credits(HIGH_BALANCE + 2 * self.gates, f"org-{organization}")
        self._wait_until(runs, lambda states: states.get("deferred", 0) < self.gates)
        result["seconds_to_first_open"] = time.monotonic() - phases["opening"]
        self._wait_until(runs, lambda states: states.get("success", 0) == self.gates)
        result["seconds_to_last_open"] = time.monotonic() - phases["opening"]
        result["seconds_to_last_look"] = self._time_of_last_look(phases["opening"]) - phases["opening"]

    def _start_airflow(self) -> None:
        self._rounds_file.unlink(missing_ok=True)
        self.airflow.environment[FILE] = str(self._rounds_file)
        self.airflow.environment["BENCH_ORGANIZATIONS"] = str(self.organizations)
        for number in range(self.organizations):
            self.server.add_organization(f"org-{number}", credits=LOW_BALANCE, accounts=["user-1"])
        super()._start_airflow()

    def _warm_up(self) -> None:
        """Start to watch the loop, and run a first gate, with which the triggerer loads 200 MB of Airflow."""
        self.server.set_credits(HIGH_BALANCE, "org-0")
        for dag in ("watch_the_loop", "gate_0"):
            self._start_run(dag, run := f"warm-up-{dag}")
            self._wait_until(run, lambda states: states.get("success", 0) == 1)
        self.server.set_credits(LOW_BALANCE, "org-0")
        self._sleep(2 * INTERVAL)

    def _start_gates(self, result: dict[str, Any]) -> str:
        """Start the gates, and return once all of them wait in the triggerer.

        The gates that defer from a worker come first. The number of cores limits how fast these start.

        :returns: the text that the ids of their runs begin with.
        """
        runs = "load-"
        gates = range(self.gates)
        kinds = {
            "classic": [number for number in gates if number // self.organizations % CLASSIC_EVERY == 0],
            "gate": [number for number in gates if number // self.organizations % CLASSIC_EVERY],
        }
        waiting = 0
        result["loaded"] = {}
        for kind, numbers in kinds.items():
            began = time.monotonic()
            for number in numbers:
                organization = number % self.organizations
                if kind == "classic":
                    self._start_run(kind, f"{runs}{number}", {"organization": f"org-{organization}"})
                else:
                    self._start_run(f"gate_{organization}", f"{runs}{number}")
            waiting += len(numbers)
            self._wait_until_in_triggerer(runs, waiting)
            result["loaded"][kind] = {"gates": len(numbers), "seconds": time.monotonic() - began}
        return runs

    def _wait_until_in_triggerer(self, runs: str, gates: int) -> None:
        self._wait_until(runs, lambda states: states.get("deferred", 0) == gates)
        self.airflow.wait_for(
            "The triggerer has all gates", lambda: self._triggers() == gates, seconds=GATES_TIMEOUT
        )

    def _time_of_last_look(self, topped_up: float) -> float:
        """Return when every organization had been looked at since the top-up."""
        first: dict[str | None, float] = {}
        for record in self.server.requests:
            if record.monotonic > topped_up:
                first.setdefault(record.organization, record.monotonic)
        if len(first) < self.organizations:
            raise AirflowError("not every organization was looked at")
        return max(first.values())

    def _usage_by_process(self) -> tuple[Usage, Usage]:
        """Return the usage of the process that queries the database, and of the one with the event loop."""
        first, *others = self._triggerer()
        return Usage.of(first), Usage.of(*others)

    def _cpu_by_process(self) -> tuple[float, float]:
        """Return the CPU seconds a minute of both processes during the next window."""
        before = self._usage_by_process()
        self._sleep(self.window)
        database, loop = (
            now.cpu_per_minute(then) for then, now in zip(before, self._usage_by_process(), strict=True)
        )
        return database, loop

    def _rounds(self, phases: dict[str, float]) -> dict[str, Any]:
        """Return for each phase the number of long rounds, the longest, and the one with most of our code."""
        rounds = [json.loads(line) for line in self._rounds_file.read_text().splitlines()]
        ends = [*list(phases.values())[1:], time.monotonic()]
        found: dict[str, Any] = {}
        for (phase, begins), ends_at in zip(phases.items(), ends, strict=True):
            inside = [each for each in rounds if begins <= each["ended"] < ends_at]
            found[phase] = {
                "blocked": sum(each["seconds"] >= BLOCKED for each in inside),
                "blocked_by_us": sum(each["ours"] >= BLOCKED for each in inside),
                "longest": max(inside, key=lambda each: each["seconds"], default=None),
                "most_ours": max(inside, key=lambda each: each["ours"], default=None),
            }
        return found
