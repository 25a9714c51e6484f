"""Which test files start first. `conftest.py` needs it before it may import Airflow: import nothing here."""

from __future__ import annotations

#: Files whose tests wait for one run that takes a minute or more, most of it waiting.
LONG_RUNS = ("test_a_minute_of_trouble", "test_decision_table")
#: The files that take longest start first, so that no process is left with one at the end.
LONGEST = (
    *LONG_RUNS,
    "test_feed",
    "test_docs",
    "test_dag_runs",
    "test_dead_host",
    "test_jobs",
    "test_pacing",
    "test_event_trigger",
    "test_spend",
    "test_gates",
)
