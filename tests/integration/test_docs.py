"""README and the pages are right: blocks run, links have targets, tables match the code."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import runpy
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from airflow_stability.client import StabilityClient
from airflow_stability.compat import AIRFLOW_VERSION
from airflow_stability.errors import StabilityError
from airflow_stability.hooks.connection import ConnectionExtra
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.ledger.schema import metadata
from airflow_stability.operators.stability import (
    StabilityAccountOperator,
    StabilityBalanceOperator,
    StabilitySpendOperator,
)
from airflow_stability.sensors.stability import StabilityBalanceSensor
from tests.conftest import HOME
from tests.ledgers import LedgerForTests
from tests.pages import BLOCKS, PAGES, README, ROOT, SHELL, Block
from tests.versions import OLDEST_OR_NEWEST

#: All other languages that a block may have. A block with an unknown language would not be tested.
OTHERS = ("python", "json", "sql", "console", "text", "promql", "yaml", "ini", "")
#: The port of the simulator on the pages. A test uses a free port instead: two test runs may share a machine.
PORT = "8765"


def blocks(*languages: str, elsewhere: bool = False) -> list[object]:
    """Return the blocks that this module runs, or those that others run, as parameters of a test."""
    chosen = [block for block in BLOCKS if block.language in languages and bool(block.runs) == elsewhere]
    return [pytest.param(block, id=block.where) for block in chosen]


def code_of(block: Block, simulator) -> str:
    """Return a Python block for this Airflow version and for this test's port."""
    return block.python_for(AIRFLOW_VERSION).replace(PORT, str(simulator.port))


@contextlib.contextmanager
def dag_file(code: str) -> Iterator[Path]:
    """Put code into Airflow's DAG folder for a while: Airflow runs no DAG from elsewhere.

    Each file gets a unique name. Under the same name, Python would reuse the module that it compiled before
    if the new file has the same length and was written in the same second.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".py", prefix="page_", dir=HOME / "dags") as file:
        file.write(code)
        file.flush()
        yield Path(file.name)


def test_each_kind_of_block_is_known():
    assert {block.language for block in BLOCKS} <= {*SHELL, *OTHERS}
    assert len(blocks("python")) >= 10
    assert len(blocks(*SHELL)) >= 5


@pytest.mark.parametrize("block", blocks("python"))
def test_a_block_of_python_runs(block, simulator, run_dag, monkeypatch):
    if AIRFLOW_VERSION < (3, 0) and "AssetWatcher" in block.text:
        pytest.skip("Airflow 2.11 has no asset watchers")
    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", simulator.connection_uri())

    with dag_file(code_of(block, simulator)) as file:
        names = runpy.run_path(str(file))
        for name in names:
            if name.startswith("test_"):
                names[name]()


DAGS = [each for each in blocks("python") if re.match(r"(README|docs/(gate|first-gate))\.md:", each.id)]


def test_the_dags_that_run_to_their_end_are_those_of_all_three_pages():
    pages = [block.id.partition(":")[0] for block in DAGS]

    assert pages == ["README.md", "README.md", "docs/first-gate.md", "docs/gate.md"]


@pytest.mark.parametrize("block", DAGS)
def test_a_dag_on_a_page_runs_to_its_end(block, simulator, run_dag, monkeypatch, tmp_path):
    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", simulator.connection_uri())
    simulator.set_credits(1000)
    folder = tmp_path / "images"  # which the DAG creates
    (dag_id,) = re.findall(r"^@dag.*\n(?:.*\n)*?def (\w+)\(\):", block.text, flags=re.MULTILINE)
    with dag_file(code_of(block, simulator).replace("/srv/images", str(folder))):
        result = run_dag(dag_id)

    assert result.state == "success"
    assert (dag_id == "images") == folder.exists()
    if dag_id == "images":
        images = sorted((folder / result.run_id).glob("*.png"))
        assert all(image.read_bytes().startswith(b"\x89PNG") for image in images)
        assert sorted(result.xcoms("generate")) == [str(image) for image in images]
        assert simulator.images_made == len(images) == 2


@pytest.fixture
def shell(airflow_database, simulator, tmp_path):
    """Return the environment of somebody who has installed this package and has a key, but nothing else."""
    home = tmp_path / "home"
    airflow_home = home / "airflow"
    (airflow_home / "dags").mkdir(parents=True)
    # Copying the file is not enough: the last writes may still be in a second file beside it.
    with (
        contextlib.closing(sqlite3.connect(HOME / "airflow.db")) as ours,
        contextlib.closing(sqlite3.connect(airflow_home / "airflow.db")) as theirs,
    ):
        ours.backup(theirs)
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "AIRFLOW_HOME": str(airflow_home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__METRICS__TIMER_UNIT_CONSISTENCY": "True",
        "no_proxy": os.environ["no_proxy"],
        "NO_PROXY": os.environ["NO_PROXY"],
        "STABILITY_API_KEY": simulator.api_key,
        "AIRFLOW_CONN_STABILITY_DEFAULT": simulator.connection_uri(),
    }


def ledger_for(block: Block, simulator, folder: Path) -> dict[str, str]:
    """Return the environment of a ledger, in which the spend that a block settles is unknown."""
    from tests.ledgers import LedgerForTests

    file = folder / "ledger.db"
    ledger = LedgerForTests(f"sqlite:///{file}")
    for key in re.findall(r"ledger settle (\w+)", block.text):
        ledger.spend(key, state="unknown")
    ledger.database.engine.dispose()
    return {
        "AIRFLOW_CONN_STABILITY_DEFAULT": f"{simulator.connection_uri()}?ledger_conn_id=stability_ledger",
        "AIRFLOW_CONN_STABILITY_LEDGER": f"sqlite:///{file}",
    }


@pytest.mark.parametrize("block", blocks(*SHELL))
@pytest.mark.skipif(not OLDEST_OR_NEWEST, reason="commands take seconds: the oldest and newest Airflow do")
def test_a_block_of_shell_runs(block, simulator, shell, tmp_path):
    if AIRFLOW_VERSION < (3, 2) and re.search(r"\bairflow stability\b", block.text):
        pytest.skip("Airflow reads a provider's commands from 3.2 on")
    if re.search(r"\bstability (ledger|budget|spend)\b", block.text):
        shell |= ledger_for(block, simulator, tmp_path)
    said = tmp_path / "said"
    script = block.text.replace(PORT, str(simulator.port))
    if block.serves:
        simulator.stop()  # the block needs its port
    with (
        said.open("w") as output,
        subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            env=shell,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as started,
    ):
        give_up = time.monotonic() + 120
        while started.poll() is None and time.monotonic() < give_up:
            if block.serves and block.serves in said.read_text():
                os.killpg(started.pid, signal.SIGTERM)
                return
            time.sleep(0.05)
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)

    assert started.returncode == 0, said.read_text()
    assert not block.serves


@pytest.mark.parametrize("block", blocks(*SHELL, elsewhere=True))
def test_a_block_that_is_run_elsewhere_is_run_there(block):
    """A block that installs something or starts a server has comments in front of it.

    They name the test that runs the block as it stands, or, for each of its commands, a file and the text of
    that command there.
    """
    if all(": " in each for each in block.runs):
        assert len(block.runs) == len(block.commands)
        for each in block.runs:
            place, text = each.split(": ", 1)
            assert text in (ROOT / place).read_text()
    else:
        (place,) = block.runs
        assert "run_by(__file__)" in (ROOT / place).read_text()


CONNECTIONS = [block for block in BLOCKS if block.language == "json" and '"conn_type"' in block.text]


@pytest.mark.parametrize("block", blocks("json"))
def test_a_block_of_json_is_json(block):
    json.loads(block.text)


@pytest.mark.parametrize("block", [pytest.param(each, id=each.where) for each in CONNECTIONS])
def test_a_connection_as_json_is_one(block, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", block.text)
    client = StabilityHook().get_conn()
    extra = json.loads(block.text).get("extra", {})

    assert client.secrets[0] == "sk-YOUR-KEY"
    assert client.organization == extra.get("organization")
    assert client.base_url == json.loads(block.text).get("host", "https://api.stability.ai")


def test_the_connection_as_a_uri_and_as_json_is_one(monkeypatch):
    page = (ROOT / "docs" / "connection.md").read_text()
    (uri,) = re.findall(r"AIRFLOW_CONN_STABILITY_DEFAULT='(stability:.*)'", page)
    first = CONNECTIONS[0]
    assert first.where.startswith("docs/connection.md")

    for form in (uri, first.text):
        monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", form)
        client = StabilityHook().get_conn()
        assert client.organization == "org-123456"
        assert client.api_version == "v1"
        assert client.secrets[0] == "sk-YOUR-KEY"


def rows_of(section: str) -> dict[str, str]:
    """Return the rows of the tables below the first such heading: each argument with its default."""
    for page in PAGES:
        parts = re.split(r"^(#+ .*)$", page.read_text(), flags=re.MULTILINE)
        for heading, text in zip(parts[1::2], parts[2::2], strict=True):
            if section in heading:
                rows = re.findall(r"^\| (?:extra: )?`(\w+)` \|.*\| (.*?) ?\|$", text, flags=re.MULTILINE)
                return {name: default.strip(" `") for name, default in rows}
    raise AssertionError(f"no page has a section {section}")


def shown(default: object) -> str:
    """Return a default as a table shows it."""
    if default is None:
        return ""
    return f"{default:g}" if isinstance(default, float) else str(default).lower()


def test_the_fields_of_the_extra_are_those_that_the_connection_has():
    rows = rows_of("Fields")

    assert set(rows) == set(ConnectionExtra.model_fields)
    del rows["organization"]  # in words
    for name, written in rows.items():
        assert written == shown(ConnectionExtra.model_fields[name].default)


ARGUMENTS_OF = {
    "The gate: `StabilityBalanceSensor`": StabilityBalanceSensor.__init__,
    "Arguments": StabilitySpendOperator.__init__,
    "`StabilityAccountOperator`": StabilityAccountOperator.__init__,
    "`StabilityBalanceOperator`": StabilityBalanceOperator.__init__,
    "What `generate` takes": StabilityClient.generate,
}
if AIRFLOW_VERSION >= (3, 0):
    from airflow_stability.triggers.stability import StabilityBalanceEventTrigger, StabilityBudgetEventTrigger

    ARGUMENTS_OF["`StabilityBalanceEventTrigger`"] = StabilityBalanceEventTrigger.__init__
    ARGUMENTS_OF["`StabilityBudgetEventTrigger`"] = StabilityBudgetEventTrigger.__init__


@pytest.mark.parametrize("section", ARGUMENTS_OF)
def test_a_table_of_arguments_has_those_of_the_code_with_their_defaults(section):
    rows = rows_of(section)
    arguments = {
        name: argument.default
        for name, argument in inspect.signature(ARGUMENTS_OF[section]).parameters.items()
        if argument.kind is argument.KEYWORD_ONLY and name != "python_callable"
    }

    assert arguments.keys() <= rows.keys()
    for name, default in arguments.items():
        if default is inspect.Parameter.empty:
            assert rows[name] == "required"
        elif default is not None and "Airflow's" not in rows[name]:
            assert rows[name].lower() == shown(default)


def test_the_tables_of_the_ledger_are_described():
    page = (ROOT / "docs/ledger.md").read_text().partition("## The tables")[2]
    parts = dict(re.findall(r"### (.*)\n((?:(?!### ).*\n?)*)", page))
    for table in ("stability_spends", "stability_budgets"):
        rows = [row.partition("|")[0] for row in re.findall(r"^\| (`.*)", parts[f"`{table}`"], re.MULTILINE)]
        assert re.findall(r"`(\w+)`", " ".join(rows)) == list(metadata.tables[table].columns.keys())
    others = dict(re.findall(r"^\| `(\w+)` \|(.*)", parts["Other tables"], re.MULTILINE))
    assert {*others, "stability_spends", "stability_budgets"} == {*metadata.tables}
    for table, columns in others.items():
        assert set(re.findall(r"`(\w+)`", columns)) == {*metadata.tables[table].columns.keys()}


@pytest.mark.parametrize("block", blocks("sql"))
def test_a_block_of_sql_runs(block):
    ledger = LedgerForTests(time=datetime(2026, 11, 25))
    ledger.spend("a", 3, dag_id="images")
    ledger.spend("b", 2, "void", dag_id="images")

    with ledger.database.engine.connect() as connection:
        found = connection.exec_driver_sql(block.text).all()
    ledger.database.engine.dispose()
    assert [tuple(row) for row in found] == [("images", 3.0)]


def test_the_table_of_errors_has_every_class_that_is_raised():
    page = (ROOT / "docs" / "errors.md").read_text()

    def leaves(kind: type) -> list[str]:
        below = [name for each in kind.__subclasses__() for name in leaves(each)]
        return below or [kind.__name__]

    assert set(re.findall(r"^\| `(\w+)`", page, flags=re.MULTILINE)) >= set(leaves(StabilityError))


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub derives from a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors_of(file), f"{page.name} links to {target}"


def test_every_page_is_linked_from_readme():
    readme = README.read_text()

    assert [page.name for page in PAGES[1:] if f"](docs/{page.name}" not in readme] == []


def test_the_tests_that_the_page_about_security_names_are_there():
    named = re.findall(r"`(tests/\S+?\.py)(?:::(\w+))?`", (ROOT / "docs" / "security.md").read_text())

    assert len(named) > 10
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text() if test else (ROOT / file).exists()


def test_the_figures_of_the_benchmark_are_those_of_its_page():
    """Each figure that README quotes is that of 500 gates on the page that `make bench` writes."""
    page = (ROOT / "docs" / "benchmark.md").read_text()
    paragraphs = README.read_text().split("\n\n")
    (quoted,) = [each for each in paragraphs if "](docs/benchmark.md), 500 waiting gates" in each]
    figures = re.findall(r"\d+(?:\.\d+)?", quoted)
    (interval,) = re.findall(r"Every gate polls every (\d+) s", page)
    rows = re.findall(r"^\| 500 +\| ([^|]+?) +\|(.*)\|$", page, flags=re.MULTILINE)
    measured = {name: [float(number) for number in cells.split("|")] for name, cells in rows}

    def shown(contender: str, column: int, digits: int) -> str:
        return f"{measured[contender][column]:.{digits}f}"

    assert figures == [
        "500",
        interval,
        shown("ours, classic", 0, 0),
        shown("ours, classic", 2, 1),
        "500",
        shown("HttpSensor", 0, 0),
        shown("HttpSensor", 2, 1),
        shown("ours, classic", 4, 1),
        shown("ours, start and end_from_trigger", 4, 1),
        shown("HttpSensor", 4, 1),
    ]
    # Of the questions: worker starts per gate.
    assert measured["HttpSensor"][1] == 2
    assert measured["ours, start and end_from_trigger"][1] == 0


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 130
