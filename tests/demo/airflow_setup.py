"""The demo's Airflow: how it is set up, how the demo waits for it, and how it is stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from tests.demo.errors import DemoError
from tests.demo.folders import DEMO, LEDGER, LOGS, PASSWORD_FILE, ROOT, TIME_ZONES, display_path
from tests.demo.rest_api import RestApi
from tests.demo.scenario import ACCOUNT_DAG, BUDGET, PIPELINE_DAG
from tests.demo.signals import StopSignals
from tests.demo.task_log import TaskLog
from tests.demo.terminal import Terminal
from tests.demo.time_zone import search_path
from tests.real_airflow import COMPONENTS, READY_FOR_WORKERS, STABILITY, RealAirflow, descendants

USER = "admin"
SETTINGS = {
    # The demo unpauses the two DAGs that it runs.
    "core__dags_are_paused_at_creation": True,
    "core__auth_manager": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
    "core__simple_auth_manager_users": f"{USER}:admin",
    "core__simple_auth_manager_passwords_file": PASSWORD_FILE,
    "core__test_connection": "Enabled",
    # Airflow's default is five minutes. The demo shows a retry.
    "core__default_task_retry_delay": 1,
}
CONNECTION, LEDGER_CONNECTION = "stability_default", "stability_ledger"
#: Seconds after which the demo gives up. It takes about a minute and a half on two cores.
TIME_LIMIT = 600
#: Seconds between two looks at what the demo waits for.
LOOK_EVERY = 0.5

T = TypeVar("T")


class DemoAirflow:
    """A real Airflow with the example DAGs, on SQLite, in the demo's folder.

    :param started: when the demo began, as `time.monotonic()`.
    """

    def __init__(self, terminal: Terminal, signals: StopSignals, password: str, started: float) -> None:
        self._terminal = terminal
        self._signals = signals
        self._give_up = started + TIME_LIMIT
        self.real = RealAirflow(DEMO, ROOT / "example_dags", settings=SETTINGS)
        self.real.environment["PYTHONTZPATH"] = search_path(TIME_ZONES)
        self.api = RestApi(self.real.url, USER, password)

    # Waiting

    def wait_for(self, what: str, look: Callable[[], T | None]) -> T:
        """Call a function every half second until it returns something true, and return that.

        :param what: what the demo waits for, as a person should read it.
        :raises DemoError: the demo's time is over.
        :raises AirflowError: a process of Airflow has ended.
        :raises StopRequested: a signal has come.
        """
        since = time.monotonic()
        while not (found := look()):
            if time.monotonic() > self._give_up:
                raise DemoError(f"not done after {TIME_LIMIT} s: {what}; logs: {display_path(LOGS)}")
            self._terminal.show_progress(what, since)
            self.pause()
        return found

    def pause(self) -> None:
        """Wait half a second.

        :raises AirflowError: a process of Airflow has ended.
        :raises StopRequested: a signal has come.
        """
        self.real.check()
        self._signals.check()
        time.sleep(LOOK_EVERY)
        self._signals.check()

    # Setting up

    def start(self) -> None:
        """Create the database, start all processes, and return when they are healthy and the DAGs loaded."""
        self._say(f"Airflow {version('apache-airflow')} in {display_path(DEMO)}: creating its database")
        migrate = self.real.command("db-migrate", "db", "migrate")
        self.wait_for("Creating Airflow's database", lambda: self.real.finished("db-migrate", migrate))
        self._say(f"database created; starting {', '.join(COMPONENTS)}")
        self.real.start()
        self.wait_for("Starting the api-server", lambda: self.api.get(READY_FOR_WORKERS))
        self._say(f"api-server is ready at {self.api.url}")
        self.api.log_in()
        healthy: set[str] = set()
        self.wait_for("Starting the other processes", lambda: self._all_healthy(healthy))
        self.wait_for("Loading the DAGs", self._dags_loaded)
        self._say(f"DAGs {PIPELINE_DAG} and {ACCOUNT_DAG} are loaded")

    def _all_healthy(self, healthy: set[str]) -> bool:
        health = self.api.get("/api/v2/monitor/health") or {}
        for name in COMPONENTS[:-1]:
            status = (health.get(name.replace("-", "_")) or {}).get("status")
            if status == "healthy" and name not in healthy:
                healthy.add(name)
                self._say(f"{name} is healthy")
        return len(healthy) == len(COMPONENTS) - 1

    def _dags_loaded(self) -> bool:
        for error in (self.api.get("/api/v2/importErrors") or {}).get("import_errors", []):
            if Path(error["filename"]).stem in (PIPELINE_DAG, ACCOUNT_DAG):
                raise DemoError(f"{error['filename']} could not be loaded:\n{error['stack_trace']}")
        return all(self.api.get(f"/api/v2/dags/{dag}") for dag in (PIPELINE_DAG, ACCOUNT_DAG))

    def create_connections(self, url: str, api_key: str) -> None:
        """Create the connections to the simulator and to the ledger's database over the REST API.

        So the API key is on no command line, in no file and in no environment variable.
        """
        ledger = {"connection_id": LEDGER_CONNECTION, "conn_type": "sqlite", "host": str(LEDGER)}
        self.api.call("POST", "/api/v2/connections", ledger)
        host, port = url.removeprefix("http://").rsplit(":", 1)
        extra = {"ledger_conn_id": LEDGER_CONNECTION, "budget": BUDGET}
        connection = {
            "connection_id": CONNECTION,
            "conn_type": "stability",
            "host": host,
            "port": int(port),
            "schema": "http",
            "password": api_key,
            "extra": json.dumps(extra),
        }
        self.api.call("POST", "/api/v2/connections", connection)
        self._say(f"connection {CONNECTION} created; it holds the API key, encrypted")
        self._say(f"its extra names a ledger, {display_path(LEDGER)}, and the budget {BUDGET!r}")

    # Commands of the provider

    def run_stability(self, *arguments: str) -> None:
        """Run a command of the provider as a user would, and print it and its output.

        :raises AirflowError: the command failed.
        """
        name, python = "-".join(arguments[:2]), [] if STABILITY[0] == "airflow" else ["python", "-m"]
        line = " ".join([*python, *STABILITY, *arguments])
        self._terminal.say("ledger", f"$ {line}")
        command = self.real.stability(name, *arguments)
        self.wait_for(line, lambda: self.real.finished(name, command))
        assert command.stdout is not None
        with command.stdout as output:
            for text in output.read().decode().splitlines():
                if text.strip():
                    self._terminal.say("", text.rstrip())

    # Runs of DAGs

    def run_succeeded(self, dag: str) -> bool:
        """Return whether the demo's run of a DAG has succeeded.

        :raises DemoError: it has failed.
        """
        state = self.api.run_state(dag)
        if state == "failed":
            raise DemoError(f"the run of {dag} failed; {self._failure(dag)}")
        return state == "success"

    def _failure(self, dag: str) -> str:
        for (task, index), state in self.api.task_states(dag).items():
            if state == "failed":
                log = TaskLog(dag, task, index)
                errors = [f"\n    {text}" for text in log.new_messages(level="error")]
                return f"its task {task} logged these errors in {display_path(log.path)}:{''.join(errors)}"
        return f"logs: {display_path(LOGS)}"

    def return_value(self, dag: str, task: str, map_index: int = -1) -> Any:
        """Return what a task that has succeeded has returned, from its XCom."""
        return self.wait_for(
            f"Reading the XCom of {task}", lambda: self.api.return_value(dag, task, map_index)
        )

    # Stopping

    def stop(self) -> None:
        """Stop all processes that the demo has started. Does nothing if there are none.

        :raises DemoError: a process could not be stopped.
        """
        if not descendants():
            return
        since = time.monotonic()
        self.real.end()
        if left := descendants():
            raise DemoError(f"these processes could not be stopped: {', '.join(map(str, left))}")
        self._say(f"all processes have been stopped ({time.monotonic() - since:.0f} s)")

    def _say(self, text: str) -> None:
        self._terminal.say("airflow", text)
