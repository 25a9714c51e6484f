"""What the package promises as a whole: what Airflow finds of it, and what importing it costs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib.metadata import distribution
from importlib.resources import files

import airflow
import jsonschema
import pytest

import airflow_stability
from airflow_stability.provider import get_provider_info


def test_airflow_finds_the_provider_by_its_entry_point():
    entry_points = distribution("airflow-provider-stability").entry_points.select(
        group="apache_airflow_provider"
    )

    assert [entry_point.load() for entry_point in entry_points] == [get_provider_info]


def test_provider_info_is_as_airflow_wants_it():
    schema = json.loads((files(airflow) / "provider_info.schema.json").read_text())

    jsonschema.validate(get_provider_info(), schema)


def test_every_module_and_class_that_provider_info_names_exists():
    info = get_provider_info()

    for kind in ("hooks", "sensors", "operators", "triggers"):
        for entry in info[kind]:
            for module in entry["python-modules"]:
                importlib.import_module(module)
    module, _, name = info["connection-types"][0]["hook-class-name"].rpartition(".")
    hook = getattr(importlib.import_module(module), name)
    assert hook.conn_type == info["connection-types"][0]["connection-type"]
    assert hook.hook_name == info["connection-types"][0]["hook-name"]
    for command_line in info["cli"]:
        module, _, name = command_line.rpartition(".")
        assert getattr(importlib.import_module(module), name)()


def test_the_version_is_the_distributions():
    assert airflow_stability.__version__ == distribution("airflow-provider-stability").version


@pytest.mark.parametrize("module", ["sensors.stability", "operators.stability", "hooks.stability"])
def test_a_dag_file_loads_neither_the_client_nor_what_it_stands_on(module):
    script = (
        "import sys, airflow_stability.compat\n"
        "before = set(sys.modules)\n"
        f"import airflow_stability.{module}\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    ours = [name for name in loaded if name.startswith("airflow_stability")]
    assert not [name for name in loaded if name.split(".")[0] in ("requests", "tenacity", "pydantic")]
    assert not [name for name in ours if ".client" in name or name.endswith("hooks.connection")]
    assert len(ours) < 15


def test_the_client_knows_no_airflow():
    script = (
        "import sys, airflow_stability.client, airflow_stability.rules.gate\n"
        "print(*[name for name in sys.modules if name.split('.')[0] == 'airflow'])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)

    assert loaded.stdout.split() == []
