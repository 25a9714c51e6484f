"""What every test stands on: an Airflow home of its own, and the Airflow that was asked for."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.order import LONG_RUNS, LONGEST

ROOT = Path(__file__).resolve().parent.parent

# Before anything imports Airflow, which reads its environment once: no test may see this machine's settings,
# nor leave anything in its home.
for name in [name for name in os.environ if name.startswith("AIRFLOW")]:
    del os.environ[name]
HOME = Path(tempfile.mkdtemp(prefix="airflow-stability-tests-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ.update(
    AIRFLOW_HOME=str(HOME),
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    AIRFLOW__CORE__DAGS_FOLDER=str(HOME / "dags"),
    AIRFLOW__LOGGING__LOGGING_LEVEL="INFO",
    # Left out, Airflow 2.11 warns at every import.
    AIRFLOW__METRICS__TIMER_UNIT_CONSISTENCY="True",
)

# Half a million objects of Airflow stay to the end. Looking for garbage among them, again and again, took a
# fifth of the unit tests' processor time.
gc.disable()

# A proxy of this machine has no part in what goes to loopback.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"


#: The option that CI uses.
ONLY_WHAT_DIFFERS = "--only-what-differs"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(ONLY_WHAT_DIFFERS, action="store_true", help="leave out what other Airflows cover")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    from tests.versions import is_covered_elsewhere

    if config.getoption(ONLY_WHAT_DIFFERS) and collection_path.name.startswith("test_"):
        return is_covered_elsewhere(collection_path) or None
    return None


def pytest_report_header() -> str:
    import platform

    from airflow import __version__

    return f"Airflow {__version__} on Python {platform.python_version()}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from tests.versions import OLDEST_OR_NEWEST, STARTS_PYTHON

    if config.getoption(ONLY_WHAT_DIFFERS) and not OLDEST_OR_NEWEST:
        left_out = [item for item in items if item.get_closest_marker(STARTS_PYTHON)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> tuple[int, bool]:
    """Return when a test has its turn. Unit tests, which wait for nothing, fill up the end."""
    name = item.path.stem
    return LONGEST.index(name) if name in LONGEST else len(LONGEST), item.path.parent.name == "unit"


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    # What exists by now is never searched for garbage.
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _no_api_version_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    # A server may get a port that another test's server had.
    from airflow_stability.client import api_versions

    monkeypatch.setattr(api_versions, "first_versions", {})


def pytest_runtest_setup(item: pytest.Item) -> None:
    # On a busy machine, other files let a long run go first, or it would end long after them. Each process of
    # pytest-xdist begins with a long run, if it has one.
    if "PYTEST_XDIST_WORKER" in os.environ and item.path.stem not in LONG_RUNS and not os.nice(0):
        os.nice(5)


def pytest_configure(config: pytest.Config) -> None:
    import platform

    from airflow import __version__

    # Later versions of pytest-xdist would start with the files of most tests.
    config.option.loadscopereorder = False

    for name, this in (("Airflow", __version__), ("Python", platform.python_version())):
        expected = os.environ.get(f"EXPECTED_{name.upper()}")
        if expected and not this.startswith(f"{expected}."):
            pytest.exit(f"These tests were to run on {name} {expected}, but this is {this}.", returncode=2)
