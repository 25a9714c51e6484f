from __future__ import annotations

import subprocess
import sys

import pytest

from airflow_stability.compat import HAS_EXTERNAL_VIEWS

LOAD = """
import sys
import airflow_stability.plugin
print([name for name in sys.modules if name.startswith("airflow_stability.page")])
"""


@pytest.mark.starts_python
def test_a_process_that_loads_the_plugin_does_not_load_the_page():
    loaded = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True)

    assert loaded.stdout.splitlines()[-1] == "[]"


def test_there_is_a_page_where_airflow_has_a_place_for_it():
    from airflow_stability.plugin import StabilityPlugin

    assert ("fastapi_apps" in vars(StabilityPlugin)) == HAS_EXTERNAL_VIEWS
    assert ("external_views" in vars(StabilityPlugin)) == HAS_EXTERNAL_VIEWS
