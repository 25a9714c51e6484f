"""Everything that Airflow's REST API returns about connections and runs to an administrator.

The tests search it for secrets. Airflow 2.11 has no such API here, since its web server does not run.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import requests

from tests.leaks import Search

#: Paths that need no id and have one page.
SINGLE = (
    "config",
    "dagWarnings",
    "dags/~/dagRuns",
    "importErrors",
    "jobs",
    "plugins",
    "providers",
    "variables",
)
#: The largest page that Airflow returns.
PAGE = 100


class RestApi:
    """A client that keeps every response.

    :param url: of the API server.
    :param token: of an administrator.
    """

    def __init__(self, url: str, token: str) -> None:
        self._url = f"{url}/api/v2"
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {token}"
        #: The responses by path.
        self.responses: dict[str, requests.Response] = {}

    def request_all(self) -> None:
        """Request everything."""
        for path in SINGLE:
            self._get(path)
        self._list("eventLogs", "event_logs")
        self._list("assets/events", "asset_events")
        for asset in self._list("assets", "assets"):
            self._get(f"assets/{asset['id']}/state-store")
        for connection in self._list("connections", "connections"):
            self._get(f"connections/{quote(connection['connection_id'], safe='')}")
        for dag in self._list("dags", "dags"):
            self._get(f"dags/{quote(dag['dag_id'], safe='')}/details")
        for task in self._list("dags/~/dagRuns/~/taskInstances", "task_instances"):
            self._request_task(task)

    def find(self, search: Search) -> list[str]:
        """Return what was found in which response."""
        return [
            f"{path}: {what}"
            for path, response in self.responses.items()
            for what in search.find(f"{response.headers}\n".encode() + response.content)
        ]

    def _request_task(self, task: dict[str, Any]) -> None:
        dag_id, run_id, task_id = (quote(task[name], safe="") for name in ("dag_id", "dag_run_id", "task_id"))
        path, index = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}", task["map_index"]
        # Includes the rendered fields and the trigger's arguments.
        self._get(f"{path}/{index}")
        self._get(f"{path}/state-store?map_index={index}")
        for number in range(1, task["try_number"] + 1):
            self._get(f"{path}/logs/{number}?map_index={index}&full_content=true")
        for entry in self._list(f"{path}/xcomEntries?map_index={index}", "xcom_entries"):
            self._get(f"{path}/xcomEntries/{quote(entry['key'], safe='')}?map_index={index}")

    def _list(self, path: str, name: str) -> list[dict[str, Any]]:
        """Request all pages of a list, and return its entries."""
        found: list[dict[str, Any]] = []
        while True:
            mark = "&" if "?" in path else "?"
            page = self._get(f"{path}{mark}limit={PAGE}&offset={len(found)}").json()
            found += page[name]
            if len(found) >= page["total_entries"] or not page[name]:
                return found

    def _get(self, path: str) -> requests.Response:
        response = self._session.get(f"{self._url}/{path}", timeout=60)
        self.responses[path] = response
        return response
