"""The steps of docs/first-gate.md as a newcomer takes them: each block as it stands, in an empty home."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from airflow_stability.compat import AIRFLOW_VERSION
from tests.pages import BLOCKS, ROOT, run_by
from tests.real_airflow import TIME_TO_END, free_port, last_lines
from tests.versions import OLDEST_OR_NEWEST

#: Seconds for each step: on a busy machine Airflow takes two minutes to start.
PATIENCE = 240


class Newcomer:
    """A user with three terminals. Free ports replace those of the page, which may be in use here."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ports = {port: str(free_port()) for port in ("8765", "8080")}
        server = "API" if AIRFLOW_VERSION >= (3, 0) else "WEBSERVER"
        quiet = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        self.environment = {
            **quiet,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(home),
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__METRICS__TIMER_UNIT_CONSISTENCY": "True",
            # Up to Airflow 3.0 the default is four, and each of them loads all of Airflow.
            f"AIRFLOW__{server}__WORKERS": "1",
            f"AIRFLOW__{server}__{'PORT' if server == 'API' else 'WEB_SERVER_PORT'}": self.ports["8080"],
            f"AIRFLOW__{server}__BASE_URL": f"http://localhost:{self.ports['8080']}",
        }
        self._servers: list[psutil.Popen] = []

    def start(self, script: str, name: str) -> Path:
        """Start a block that keeps running in its own terminal, and return the file with its output."""
        said = self.home / f"{name}.log"
        with said.open("w") as output:
            self._servers.append(
                psutil.Popen(
                    self._command(script), env=self.environment, stdout=output, stderr=subprocess.STDOUT
                )
            )
        return said

    def run(self, script: str) -> tuple[int, str]:
        """Run a block to its end, and return its status and its output."""
        done = subprocess.run(
            self._command(script), env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )
        return done.returncode, done.stdout + done.stderr

    def _command(self, script: str) -> list[str]:
        for port, free in self.ports.items():
            script = script.replace(port, free)
        return ["bash", "-euo", "pipefail", "-c", script]

    def end(self) -> None:
        """Press Ctrl-C in each terminal, then kill what is left."""
        family = [each for server in self._servers for each in (server, *server.children(recursive=True))]
        for server in self._servers:
            server.send_signal(signal.SIGINT)
        _, left = psutil.wait_procs(family, timeout=2 * TIME_TO_END)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=TIME_TO_END)


@pytest.fixture
def newcomer(tmp_path):
    newcomer = Newcomer(tmp_path)
    yield newcomer
    newcomer.end()


def until(what, look, log):
    give_up = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < give_up, f"{what}: not in time; {last_lines(log)}"
        time.sleep(2)  # to look takes processor time, which Airflow needs to go on


@pytest.mark.timeout(3 * PATIENCE)
@pytest.mark.skipif(not OLDEST_OR_NEWEST, reason="it takes a minute: the oldest and newest Airflow do it")
def test_a_newcomer_gets_a_gate_that_waits_and_opens(newcomer):
    simulator, airflow, trigger, look, top_up = [block.text for block in run_by(__file__)]
    (dag,) = [block for block in BLOCKS if "def first_gate()" in block.text]

    said = newcomer.start(simulator, "simulator")
    until("the simulator", lambda: "listens on" in said.read_text(), said)
    (newcomer.home / "airflow/dags/first_gate.py").write_text(dag.python_for(AIRFLOW_VERSION))
    said = newcomer.start(airflow, "airflow")
    # Right after the start, Airflow may not have read the file yet: the page says to try again.
    until("the run", lambda: newcomer.run(trigger)[0] == 0, said)

    def states(task_id: str) -> str:
        status, table = newcomer.run(look)
        assert status == 0, table
        (row,) = [line for line in table.splitlines() if f"| {task_id} " in line]
        assert "failed" not in row, last_lines(said, 60)
        return row

    until("a gate that waits", lambda: "deferred" in states("gate"), said)
    logs = (newcomer.home / "airflow/logs/dag_id=first_gate").rglob("attempt=1.log")
    waiting = "Waiting: the key's default organization has 25 credits, needs more than 50."
    assert any(waiting in log.read_text() for log in logs)
    assert waiting in " ".join((ROOT / "docs" / "first-gate.md").read_text().split())

    status, answer = newcomer.run(top_up)
    assert status == 0
    assert '{"credits":125.0}' in answer
    until("the task behind the gate", lambda: "success" in states("generate"), said)
