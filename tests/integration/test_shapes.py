"""Functions of all shapes, run as tasks that spend by the Airflow that is installed."""

from __future__ import annotations

import os

import pytest

from airflow_stability.compat import runs_async_functions
from airflow_stability.simulator import StabilitySimulator

#: What each task returns that pays for one image.
RETURNED = {
    "client_first": "a boat",
    "client_last": "a boat",
    "client_in_the_middle": "a boat in 4k",
    "client_by_name_only": "a boat",
    "client_by_position_only": "a boat",
    "client_with_default": "a fox",
    "client_behind_many": "a boat and a fox",
    "defaults": "a fox in 1k",
    "rest_of_the_context": "a friend",
    "rest_with_client_last": "a boat for a friend",
    "parts_of_the_context": "parts_of_the_context for a friend",
    "paint_in_size": "a fox in 4k",
    "decorated": "a fox, noted",
    "generator": "a fox",
    "generator_by_name_only": "a boat",
    "number": 5,
    "items": {"small": "a fox", "large": 2},
    "annotated_items": {"small": "a fox", "large": 2},
    "several": ["a fox", "a boat"],
    "overridden": "a boat",
    "run_if": "a boat",
    "not_skip_if": "a boat",
    "lambda": "a fox",
    "partial": "a fox in 2k",
    "partial_of_partial": "a boat in 2k",
    "method": "a fox in 4k",
    "class_method": "a fox by Painter",
    "static_method": "a fox",
    "object": "a fox in 4k",
    "generator_method": "a fox in 4k",
    "partial_generator": "a boat",
    "op_args": "a boat",
    "op_args_for_many": "a boat and a fox",
    "op_kwargs": "a boat in 4k",
    "op_args_and_op_kwargs": "a boat in 4k",
    "templated_op_args": "a friend",
    "templates_dict": "a friend",
    "templated_credits": "a fox",
    "by_reschedule": "a fox",
}
if runs_async_functions():
    RETURNED |= {
        "coroutine": "a fox",
        "async_partial": "a boat",
        "async_object": "a fox",
        "async_group": "a fox",
    }
#: What the instances of each mapped task return. Each pays for one image.
RETURNED_BY_MAPPED = {
    "client_last__1": ["a boat", "a fox"],
    "client_in_the_middle__1": ["a boat in 4k", "a fox in 4k"],
    "kwargs_expanded": ["a boat in 4k", "a fox in 1k"],
    "expanded_over_a_result": ["a fox", "a boat"],
    "generator_expanded": ["a boat", "a fox"],
    "group.in_a_mapped_group": ["a boat", "a fox"],
    "op_args_expanded": ["a boat", "a fox"],
    "op_kwargs_expanded": ["a boat in 1k", "a fox in 4k"],
}
#: Tasks that pay and return nothing, tasks that return something and do not pay, and tasks that do neither.
PAY_ONLY, RETURN_ONLY, SKIPPED = ("nothing", "not_pushed"), {"no_client": "a boat"}, ("not_run_if", "skip_if")


@pytest.fixture(scope="module")
def finished(run_dag):
    name = "AIRFLOW_CONN_STABILITY_DEFAULT"
    with StabilitySimulator(credits=1000.0) as simulator:
        # Airflow's DAG.test() lets a trigger read connections from the environment only.
        os.environ[name] = f"{simulator.connection_uri()}?api_version=v1"
        try:
            yield run_dag("shapes"), simulator
        finally:
            del os.environ[name]


@pytest.mark.parametrize("task_id", [*RETURNED, *RETURN_ONLY])
def test_the_function_returns_what_it_returns(finished, task_id):
    result, _ = finished

    assert result.states[task_id] == "success"
    assert result.xcom(task_id) == (RETURNED | RETURN_ONLY)[task_id]


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
    assert [result.xcoms(task_id) for task_id in (*SKIPPED, *PAY_ONLY)] == [[], [], [], []]


def test_each_pays_once(finished):
    result, simulator = finished
    mapped = sum(len(returned) for returned in RETURNED_BY_MAPPED.values())

    assert simulator.images_made == len(RETURNED) + len(PAY_ONLY) + mapped
    known = {*RETURNED, *RETURNED_BY_MAPPED, *PAY_ONLY, *RETURN_ONLY, *SKIPPED}
    assert set(result.states) == known
    assert set(result.tries.values()) == {1}
