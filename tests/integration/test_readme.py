"""What README and the page about spending show works: each block of Python, each form of the connection."""

from __future__ import annotations

import re

import pytest

from airflow_stability.compat import AIRFLOW_VERSION
from airflow_stability.hooks.connection import ConnectionExtra
from airflow_stability.hooks.stability import StabilityHook
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
SPENDING = (ROOT / "docs" / "spending.md").read_text()


def blocks(language, text):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", blocks("python", README) + blocks("python", SPENDING))
def test_a_block_of_python_runs(block, simulator, monkeypatch):
    if AIRFLOW_VERSION < (3, 0) and "AssetWatcher" in block:
        pytest.skip("Airflow 2.11 has no asset watchers")
    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", simulator.connection_uri())
    if AIRFLOW_VERSION < (3, 0):  # as the block itself says
        block = re.sub("from airflow.sdk import (.*) # .*", r"from airflow.decorators import \1", block)

    exec(compile(block, "README.md", "exec"), {})


def test_there_are_blocks_of_python():
    assert len(blocks("python", README)) >= 3
    assert len(blocks("python", SPENDING)) >= 3


def test_the_connection_as_a_uri_and_as_json_is_one(monkeypatch):
    (uri,) = re.findall(r"AIRFLOW_CONN_STABILITY_DEFAULT='(.*)'", README)

    for form in (uri, *blocks("json", README)):
        monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", form)
        client = StabilityHook().get_conn()
        assert client.organization == "org-123456"
        assert client.secrets[0] == "sk-YOUR-KEY"


def test_the_fields_of_the_extra_are_those_that_the_connection_has():
    assert set(re.findall(r"^\| extra: `(\w+)`", README, flags=re.MULTILINE)) == set(
        ConnectionExtra.model_fields
    )
