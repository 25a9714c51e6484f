"""What is tried on which Airflow."""

from __future__ import annotations

from airflow_stability.compat import AIRFLOW_VERSION

#: What takes long, and is the same on all, is tried on those two.
OLDEST_OR_NEWEST = AIRFLOW_VERSION < (3, 0) or AIRFLOW_VERSION >= (3, 3)
