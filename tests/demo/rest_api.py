"""The requests that the demo sends to Airflow's REST API."""

from __future__ import annotations

from typing import Any

import requests

from tests.demo.errors import DemoError
from tests.demo.folders import LOGS
from tests.demo.scenario import RUN_ID
from tests.real_airflow import last_lines

#: States of task instances by task id and map index.
TaskStates = dict[tuple[str, int], str | None]


class RestApi:
    """A client of Airflow's REST API."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self._login = {"username": user, "password": password}
        self._session = requests.Session()
        # The API server is on this machine: use neither a proxy nor a .netrc.
        self._session.trust_env = False

    def log_in(self) -> None:
        """Get the token that all later requests need."""
        response = self.call("POST", "/auth/token", self._login)
        self._session.headers["Authorization"] = f"Bearer {response['access_token']}"

    def get(self, path: str) -> Any:
        """Return the JSON at a path; None if there is nothing, or if the server does not respond just now."""
        try:
            response = self._session.get(f"{self.url}{path}", timeout=10)
        except requests.RequestException:
            return None
        return response.json() if response.ok else None

    def call(self, method: str, path: str, body: object) -> Any:
        """Send a request that changes something.

        :raises DemoError: the request failed. The text does not repeat the body, which may hold an API key.
        """
        try:
            response = self._session.request(method, f"{self.url}{path}", json=body, timeout=60)
        except requests.RequestException as error:
            raise DemoError(f"Airflow did not respond to {method} {path}: {type(error).__name__}") from None
        if not response.ok:
            log = last_lines(LOGS / "api-server.log")
            raise DemoError(f"Airflow refused {method} {path} with status {response.status_code}; {log}")
        return response.json() if response.content else None

    def start_run(self, dag: str, conf: dict[str, object], run_id: str = RUN_ID) -> None:
        """Start a run of a DAG."""
        self.call("PATCH", f"/api/v2/dags/{dag}", {"is_paused": False})
        run = {"dag_run_id": run_id, "logical_date": None, "conf": conf}
        self.call("POST", f"/api/v2/dags/{dag}/dagRuns", run)

    def run_state(self, dag: str, run_id: str = RUN_ID) -> str | None:
        """Return the state of a run of a DAG; None if it is not known just now."""
        run = self.get(f"/api/v2/dags/{dag}/dagRuns/{run_id}")
        return str(run["state"]) if run else None

    def task_states(self, dag: str, run_id: str = RUN_ID) -> TaskStates:
        """Return the state of each task instance of a run of a DAG."""
        found = self.get(f"/api/v2/dags/{dag}/dagRuns/{run_id}/taskInstances") or {"task_instances": []}
        return {(task["task_id"], task["map_index"]): task["state"] for task in found["task_instances"]}

    def return_value(self, dag: str, task: str, map_index: int = -1) -> Any:
        """Return what a task of the first run has returned, from its XCom; None if there is no such XCom."""
        path = f"/api/v2/dags/{dag}/dagRuns/{RUN_ID}/taskInstances/{task}/xcomEntries/return_value"
        entry = self.get(f"{path}?map_index={map_index}")
        return entry and entry["value"]
