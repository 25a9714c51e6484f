"""What is tested on which Airflow."""

from __future__ import annotations

from importlib.metadata import version

from airflow_stability.compat import AIRFLOW_VERSION

#: The lowest release that pyproject.toml allows, which is tested for the libraries that came with it.
IS_LOWEST = version("apache-airflow") == "2.11.0"

#: Tests that take long, and are the same on all, run on these two only.
OLDEST_OR_NEWEST = (AIRFLOW_VERSION < (3, 0) and not IS_LOWEST) or AIRFLOW_VERSION >= (3, 3)

#: The end-to-end stories that CI runs on an Airflow between the oldest and the newest, because something
#: differs there from both. Those two run all stories; so does ``make test-all`` on every Airflow.
STORIES_THAT_DIFFER = {
    # Its triggerer matches responses to requests by their order, so that a request from a wrong thread ends
    # the whole triggerer. It has no asynchronous read of a connection. It hands the event of a try to the
    # next one.
    (3, 0): ("test_gates",),
    # They ignore start_from_trigger, as the integration tests show. The Credits page reads Airflow's private
    # tables, which differ from those of the newest.
    (3, 1): ("test_credits_page",),
    (3, 2): ("test_credits_page",),
}
