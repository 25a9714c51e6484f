"""The option that CI uses on the Airflows between the oldest and the newest."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_stability.compat import AIRFLOW_VERSION
from tests.versions import STORIES_THAT_DIFFER

OPTION = "--only-what-differs"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, action="store_true", help="leave out the stories that other Airflows cover")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    stories = STORIES_THAT_DIFFER.get(AIRFLOW_VERSION)
    if stories and config.getoption(OPTION) and collection_path.name.startswith("test_"):
        return collection_path.stem not in stories
    return None
