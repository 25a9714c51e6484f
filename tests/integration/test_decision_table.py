"""Every cell of the decision table, from one run of a DAG that has a gate for each."""

from __future__ import annotations

from itertools import pairwise

import pytest

from airflow_stability.simulator import StabilitySimulator
from tests.integration.decision_table import CASES, FAILURES, World


@pytest.fixture(scope="module")
def finished(request, run_dag, set_connection):
    with StabilitySimulator() as simulator, World(simulator, set_connection) as world:
        return run_dag("decision_table"), world


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.task_id)
def test_gate_ends_as_the_table_says(case, finished):
    result, world = finished
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
