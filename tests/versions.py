"""What is tested on which Airflow."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from airflow_stability.compat import AIRFLOW_VERSION

#: The lowest release that pyproject.toml allows, which is tested for the libraries that came with it.
IS_LOWEST = version("apache-airflow") == "2.11.0"

#: Tests that take long, and are the same on all, run on these two only.
OLDEST_OR_NEWEST = (AIRFLOW_VERSION < (3, 0) and not IS_LOWEST) or AIRFLOW_VERSION >= (3, 3)

# What CI leaves out with --only-what-differs, on Airflows between the oldest and the newest. Other commands
# leave nothing out.

#: Tests in which nothing is Airflow's. 3.1 runs them too, since it has the newest Python.
SAME_ON_EVERY_AIRFLOW = {
    (3, 0): ("test_client_on_the_wire", "test_simulator", "test_simulator_generate"),
    (3, 2): ("test_client_on_the_wire", "test_simulator", "test_simulator_generate"),
}

#: The end-to-end stories that run, because something differs there from both the oldest and the newest.
STORIES_THAT_DIFFER = {
    # Its scheduler respects the date of a reschedule for sensors only, by another rule than that of 2.11. It
    # hands the event of a try to the next one. Its triggers read connections by the synchronous call.
    (3, 0): ("test_spend",),
    # The Credits page reads Airflow's private tables, which are others in each of these two.
    (3, 1): ("test_credits_page",),
    (3, 2): ("test_credits_page",),
}


def is_left_to_other_airflows(file: Path) -> bool:
    """Return whether CI leaves out a file of tests on this Airflow."""
    if file.parent.name == "e2e" and file.name.startswith("test_"):
        return file.stem not in STORIES_THAT_DIFFER.get(AIRFLOW_VERSION, (file.stem,))
    return file.stem in SAME_ON_EVERY_AIRFLOW.get(AIRFLOW_VERSION, ())
