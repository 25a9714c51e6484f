"""Every cell of the decision table, from one run for each mode of a DAG that has a gate for each."""

from __future__ import annotations

from itertools import pairwise

import pytest

from airflow_stability.simulator import StabilitySimulator
from tests.integration.decision_table import FAILURES, FLAGS, OUTCOMES, Case, World, cases
from tests.integration.written import PASSWORDS, Written
from tests.real_airflow import RENDERED_FIELDS_TABLE

#: Seconds for a run that takes one minute on an idle machine.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="class")
def finished(request, run_dag, keep_connection):
    mode = request.cls.mode
    with StabilitySimulator() as simulator, World(simulator, keep_connection, mode) as world:
        result = run_dag(f"decision_table_{mode}")
        return result, world, Written(request.config, FAILURES.values())


class Table:
    """The tests of one mode; a class of its own, so that the modes can run side by side."""

    mode: str

    @pytest.mark.parametrize("flag", FLAGS)
    @pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: outcome.name)
    def test_gate_ends_as_the_table_says(self, outcome, flag, finished):
        result, world, _ = finished
        case = Case(outcome, self.mode, flag)
        state, text = case.expected

        assert result.states[case.task_id] == state, [FAILURES.get(case.task_id), *result.errors]
        assert result.tries[case.task_id] == (outcome.tries if state == "failed" else 1)
        if state == "failed":
            assert text in FAILURES[case.task_id]
        calls = world.calls(case)
        if outcome.calls is not None:
            assert len(calls) == outcome.calls
        if state == "success":
            balance = result.xcom(case.task_id)
            assert type(balance) is float
            assert balance == world.credits(case)
        for earlier, later in pairwise(calls):
            assert later - earlier >= outcome.least_interval

    def test_no_key_stands_anywhere_but_in_its_connection(self, finished):
        _, world, written = finished
        places = written.places_of(*world.every_key)
        in_database = [case for case in cases(self.mode) if case.outcome.connection]

        assert [place for place in places if not place.startswith(PASSWORDS)] == []
        assert len([place for place in places if place.endswith(": itself")]) == len(in_database)

    def test_the_search_for_keys_would_find_one(self, finished):
        *_, written = finished
        places = written.places_of(f"locked_out_for_longer_than_the_timeout-{self.mode}-none")

        assert {place.partition(": secret")[0] for place in places} >= {
            "output",
            "elsewhere",
            f"table {RENDERED_FIELDS_TABLE}, column rendered_fields",
            "table task_instance, column task_id",
        }


class TestPoke(Table):
    mode = "poke"


class TestReschedule(Table):
    mode = "reschedule"


class TestDeferrable(Table):
    mode = "deferrable"
