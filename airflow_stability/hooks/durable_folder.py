"""What generate() needs of Airflow: paths with a connection, and the task that calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_stability.client.durable_folder import Storage
from airflow_stability.compat import ObjectStoragePath, get_current_context


class AirflowStorage(Storage):
    """Opens folders as Airflow's ObjectStoragePath, with an Airflow connection."""

    def open_url(self, url: str, conn_id: str | None) -> Any:
        """Return the ObjectStoragePath of a URL."""
        return ObjectStoragePath(url, conn_id=conn_id)

    def caller(self) -> Mapping[str, Any]:
        """Return the task that calls, in a process that runs one."""
        try:
            task_instance: Any = get_current_context()["ti"]
        except Exception:  # which one Airflow raises outside of a task depends on its version
            return {}
        return facts_of(task_instance)


def facts_of(task_instance: Any) -> dict[str, Any]:
    """Return what tells a try of a task from others; None for what is not known."""
    names = ("dag_id", "run_id", "task_id", "map_index", "try_number")
    return {name: getattr(task_instance, name, None) for name in names}
