"""Every cell of the decision table, from one run of a DAG that has a gate for each."""

from __future__ import annotations

from itertools import pairwise

import pytest

from airflow_stability.simulator import StabilitySimulator
from tests.integration.decision_table import CASES, FAILURES, World
from tests.integration.written import PASSWORDS, Written


@pytest.fixture(scope="module")
def finished(request, run_dag, set_connection):
    with StabilitySimulator() as simulator, World(simulator, set_connection) as world:
        result = run_dag("decision_table")
        return result, world, Written(request.config, FAILURES.values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.task_id)
def test_gate_ends_as_the_table_says(case, finished):
    result, world, _ = finished
    state, text = case.expected

    assert result.states[case.task_id] == state, FAILURES.get(case.task_id)
    assert result.tries[case.task_id] == (case.outcome.tries if state == "failed" else 1)
    if state == "failed":
        assert text in FAILURES[case.task_id]
    calls = world.calls(case)
    if case.outcome.calls is not None:
        assert len(calls) == case.outcome.calls
    if state == "success":
        balance = result.xcom(case.task_id)
        assert type(balance) is float
        assert balance == world.credits(case)
    for earlier, later in pairwise(calls):
        assert later - earlier >= case.outcome.least_interval


def test_no_key_stands_anywhere_but_in_its_connection(finished):
    _, world, written = finished
    places = written.places_of(*world.every_key)
    in_database = [case for case in CASES if case.outcome.connection and case.mode != "deferrable"]

    assert [place for place in places if not place.startswith(PASSWORDS)] == []
    assert len([place for place in places if place.endswith(": itself")]) == len(in_database)


def test_the_search_for_keys_would_find_one(finished):
    *_, written = finished
    places = written.places_of("locked_out_for_longer_than_the_timeout-reschedule-none")

    assert {place.partition(": secret")[0] for place in places} >= {
        "output",
        "elsewhere",
        "table rendered_task_instance_fields, column rendered_fields",
        "table task_instance, column task_id",
    }
