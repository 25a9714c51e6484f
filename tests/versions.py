"""What is tried on which Airflow."""

from __future__ import annotations

from importlib.metadata import version

from airflow_stability.compat import AIRFLOW_VERSION

try:
    from airflow.sdk.exceptions import TaskDeferred as TaskDeferred
except ImportError:  # before Airflow 3.2
    from airflow.exceptions import TaskDeferred as TaskDeferred

#: The lowest release that pyproject.toml allows, which is there for the libraries that it came with.
IS_LOWEST = version("apache-airflow") == "2.11.0"
#: What takes long, and is the same on all, is tried on those two.
OLDEST_OR_NEWEST = (AIRFLOW_VERSION < (3, 0) and not IS_LOWEST) or AIRFLOW_VERSION >= (3, 3)
