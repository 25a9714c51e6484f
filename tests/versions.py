"""What is tested on which Airflow."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from airflow_stability.compat import AIRFLOW_VERSION
from tests.order import LONG_RUNS

#: The lowest release that pyproject.toml allows, which is tested for the libraries that came with it.
IS_LOWEST = version("apache-airflow") == "2.11.0"

#: The newest Airflow that is no beta, as in the Makefile.
NEWEST = (3, 3)

#: Tests that take long, and are the same on all, run on these two only.
OLDEST_OR_NEWEST = (AIRFLOW_VERSION < (3, 0) and not IS_LOWEST) or AIRFLOW_VERSION == NEWEST

#: The end-to-end stories that CI runs on an Airflow between the oldest and the newest, or on a beta, because
#: something differs there from both. Those two run all stories; so does ``make test-all`` on every Airflow.
STORIES_THAT_DIFFER = {
    # Its scheduler respects the date of a reschedule for sensors only, by another rule than that of 2.11. It
    # hands the event of a try to the next one. Its triggers read connections by the synchronous call.
    (3, 0): ("test_spend",),
    # The Credits page reads Airflow's private tables, which are others in each of these two.
    (3, 1): ("test_credits_page",),
    (3, 2): ("test_credits_page",),
    # These tables are split there, and triggers of watchers have queues.
    (3, 4): ("test_credits_page", "test_queues"),
}

#: Tests that need no Airflow. CI runs them on the newest and the beta, and on the lowest versions of what the
#: client and the ledger stand on. These have SQLAlchemy 2.0, 2.1 and 1.4, and Python 3.11, 3.13 and 3.11.
TESTS_WITHOUT_AIRFLOW = (
    "test_budget_periods",
    "test_client",
    "test_credits",
    "test_crossing",
    "test_gate",
    "test_ledger_earlier",
    "test_ledger_extremes",
    "test_ledger_machine",
    "test_ledger_report",
    "test_ledger_retention",
    "test_ledger_settle",
    "test_models",
    "test_responses",
    "test_retry",
    "test_simulator_parts",
    "test_validation",
)

#: These need no Airflow either, and take long. CI runs them on the newest and on the lowest versions.
TESTS_OF_SOCKETS = ("test_client_on_the_wire", "test_simulator", "test_simulator_generate")

#: Tests that start many processes, which takes seconds for each. CI runs them on the oldest and the newest.
TESTS_OF_COMMANDS = ("test_cli", "test_cli_ledger", "test_docs", "test_package")

#: The marker of single tests that start a process, in other files. CI runs these on the same two.
STARTS_PYTHON = "starts_python"


def is_covered_elsewhere(test_file: Path) -> bool:
    """Tell whether CI leaves out a file of tests on this Airflow, because other Airflows cover it."""
    name = test_file.stem
    if test_file.parent.name == "e2e":
        stories = STORIES_THAT_DIFFER.get(AIRFLOW_VERSION)
        return stories is not None and name not in stories
    if name in TESTS_OF_COMMANDS:
        return not OLDEST_OR_NEWEST
    if name in LONG_RUNS:  # these are about Airflow, not about the versions of libraries
        return IS_LOWEST
    if name in TESTS_OF_SOCKETS:
        return not (AIRFLOW_VERSION == NEWEST or IS_LOWEST)
    return name in TESTS_WITHOUT_AIRFLOW and not (AIRFLOW_VERSION >= NEWEST or IS_LOWEST)
