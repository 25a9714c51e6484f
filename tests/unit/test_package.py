"""What the package promises as a whole: what Airflow finds of it, and what importing it costs."""

from __future__ import annotations

import ast
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path

import airflow
import jsonschema
import pytest

import airflow_stability
from airflow_stability import rules as rules_package
from airflow_stability.compat import AIRFLOW_VERSION
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


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 0), reason="Airflow 2.11 has no asset watchers")
def test_a_dag_file_with_watchers_loads_neither_the_client_nor_the_ledger():
    script = (
        "import sys, airflow.triggers.base, airflow_stability.compat\n"
        "before = set(sys.modules)\n"
        "import airflow_stability.triggers.budget_events, airflow_stability.triggers.events\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    assert not {"requests", "tenacity", "pydantic", "sqlalchemy"} & {name.split(".")[0] for name in loaded}
    parts = {name.split(".")[1] for name in loaded if name.startswith("airflow_stability.")}
    assert "triggers" in parts
    assert not {"client", "ledger"} & parts


def test_a_task_without_generate_loads_none_of_it():
    script = (
        "import sys\n"
        "from airflow_stability.hooks.stability import StabilityHook\n"
        "import airflow_stability.operators.spend, airflow_stability.triggers.stability\n"
        "StabilityHook().get_conn().close()\n"
        "print(*sys.modules)"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    environment = os.environ | {"AIRFLOW_CONN_STABILITY_DEFAULT": "stability://:sk-KEY@"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    loaded = set(done.stdout.splitlines()[-1].split())

    assert "airflow_stability.client.client" in loaded
    parts = ("client.generate", "client.durable_folder", "hooks.durable_folder", "triggers.jobs", "prices")
    parts += ("ledger", "hooks.ledger", "hooks.spend_recorder", "triggers.ledger")
    assert not loaded & {f"airflow_stability.{part}" for part in parts}


def test_a_class_is_also_found_where_the_others_of_its_kind_are():
    aliases = [("operators.stability", "StabilitySpendOperator")]
    if AIRFLOW_VERSION >= (3, 0):
        aliases.append(("triggers.stability", "StabilityBalanceEventTrigger"))
        aliases.append(("triggers.stability", "StabilityBudgetEventTrigger"))
    for path, name in aliases:
        defined = getattr(importlib.import_module(f"airflow_stability.{path}"), name)
        assert defined.__module__ != f"airflow_stability.{path}"


def modules_after(statement):
    """Return the top-level names of the modules that a fresh process has loaded after a statement."""
    script = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(loaded.stdout.split())


def test_the_client_knows_no_airflow():
    assert "airflow" not in modules_after("import airflow_stability.client")


def test_rules_and_daemon_threads_know_neither_http_nor_airflow():
    rules = [
        f"airflow_stability.rules.{module.name}" for module in pkgutil.iter_modules(rules_package.__path__)
    ]
    assert len(rules) >= 6

    assert not {"airflow", "requests", "urllib3", "tenacity", "pydantic"} & modules_after(
        f"import airflow_stability.daemon_threads, {', '.join(rules)}"
    )


#: The layers of the package: a module imports only from its own layer and from those before it.
LAYERS = (
    ("errors", "validation", "daemon_threads", "prices", "__init__"),
    ("rules",),
    ("compat", "client"),
    ("metrics", "ledger"),
    ("hooks",),
    ("polling", "deferral"),
    ("triggers",),
    ("sensors", "operators"),
    ("decorators", "page", "cli"),
    ("provider", "plugin", "__main__"),
)
HOME = Path(airflow_stability.__file__).parent


def imports_of(file):
    """Return the modules of this package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("airflow_stability"):
            parts = node.module.split(".")[1:] or [alias.name for alias in node.names]
            yield parts[0]


def test_imports_run_one_way():
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    files = [file for file in HOME.rglob("*.py") if "simulator" not in file.relative_to(HOME).parts]
    assert len(files) > 40

    upward = [
        f"{file.relative_to(HOME)} imports {name}"
        for file in files
        for name in imports_of(file)
        if name != "__version__" and level[name] > level[file.relative_to(HOME).parts[0].removesuffix(".py")]
    ]
    assert upward == []


def test_the_simulator_knows_nothing_of_the_rest():
    names = {name for file in (HOME / "simulator").glob("*.py") for name in imports_of(file)}

    assert names == {"simulator"}
