"""What a DAG can make of a function that spends, run by the Airflow that is installed.

The shapes that a function itself can have are in tests/unit/test_shapes.py.
"""

from __future__ import annotations

import os

import pytest

from airflow_stability.compat import runs_async_functions
from airflow_stability.simulator import StabilitySimulator
from tests.shapes import unset_event_loop

#: What each task returns. Each pays for one image.
RETURNED = {
    "overridden": "a boat",
    "run_if": "a boat",
    "not_skip_if": "a boat",
    "several": ["a fox", "a boat"],
    "items": {"small": "a fox", "large": 2},
    "annotated_items": {"small": "a fox", "large": 2},
    "templates": "a friend",
}
#: What the instances of each mapped task return. Each pays for one image.
RETURNED_BY_MAPPED = {
    "expanded": ["a boat", "a fox"],
    "partly_expanded": ["a boat in 4k", "a fox in 4k"],
    "kwargs_expanded": ["a boat in 4k", "a fox in 1k"],
    "expanded_over_a_result": ["a fox", "a boat"],
    "generator_expanded": ["a boat", "a fox"],
    "group.in_a_mapped_group": ["a boat", "a fox"],
    "op_args_expanded": ["a boat", "a fox"],
    "op_kwargs_expanded": ["a boat in 1k", "a fox in 4k"],
}
if runs_async_functions():
    RETURNED_BY_MAPPED["async_expanded"] = ["a boat", "a fox"]
SKIPPED = ("not_run_if", "skip_if")


@pytest.fixture(scope="module")
def finished(run_dag):
    name = "AIRFLOW_CONN_STABILITY_DEFAULT"
    with StabilitySimulator(credits=1000.0) as simulator:
        os.environ[name] = f"{simulator.connection_uri()}?api_version=v1"
        unset_event_loop()
        try:
            yield run_dag("shapes"), simulator
        finally:
            del os.environ[name]


@pytest.mark.parametrize("task_id", RETURNED)
def test_a_task_returns_what_its_function_returns(finished, task_id):
    result, _ = finished

    assert result.states[task_id] == "success"
    assert result.xcom(task_id) == RETURNED[task_id]


@pytest.mark.parametrize("task_id", RETURNED_BY_MAPPED)
def test_so_does_each_instance_of_a_mapped_task(finished, task_id):
    result, _ = finished

    assert result.states[task_id] == "success"
    assert result.xcoms(task_id) == RETURNED_BY_MAPPED[task_id]


@pytest.mark.parametrize("task_id", ["items", "annotated_items"])
def test_each_item_of_a_dict_is_an_xcom_if_that_is_wanted(finished, task_id):
    result, _ = finished

    assert (result.xcom(task_id, "small"), result.xcom(task_id, "large")) == ("a fox", 2)


def test_a_condition_that_is_not_met_skips_the_task(finished):
    result, _ = finished

    assert {result.states[task_id] for task_id in SKIPPED} == {"skipped"}
    assert [result.xcoms(task_id) for task_id in SKIPPED] == [[], []]


def test_each_pays_once(finished):
    result, simulator = finished

    assert set(result.states) == {*RETURNED, *RETURNED_BY_MAPPED, *SKIPPED}
    assert simulator.images_made == len(RETURNED) + sum(map(len, RETURNED_BY_MAPPED.values()))
    assert set(result.tries.values()) == {1}
