"""Arguments that are nothing, a timeout of 0, and fractions of credits: what they do in every mode."""

from __future__ import annotations

import pytest

from airflow_stability.simulator import StabilitySimulator
from tests.integration.dags.arguments import MODES
from tests.integration.decision_table import FAILURES


@pytest.fixture
def simulator(set_connection):
    with StabilitySimulator(credits=25.5) as simulator:
        set_connection("stability_default", f"{simulator.connection_uri()}?api_version=v1")
        yield simulator


def add_organizations(simulator, **credits):
    names = {f"org-{name}": amount for name, amount in credits.items()}
    for organization, amount in names.items():
        simulator.add_organization(organization, credits=amount)
    simulator.add_account("user-2", "someone@example.org", list(names))
    return f"{simulator.connection_uri(simulator.add_key(account='user-2'))}?api_version=v1"


def test_an_argument_whose_template_gives_nothing_is_a_value_error_in_every_mode(simulator, run_dag):
    result = run_dag("arguments_that_are_nothing")

    assert len(result.states) == 4 * 4 + 2 * 3 + 4
    assert set(result.states.values()) == {"failed"}  # never_fail does not skip it, either
    assert set(result.tries.values()) == {2}
    for task_id in result.states:
        argument = task_id.rpartition("-")[2]
        assert FAILURES[task_id].startswith(f"ValueError: {argument} must be ")
        assert FAILURES[task_id].endswith("got 'None', which is what a template gives that has no value.")
    assert not simulator.requests


def test_a_timeout_of_0_means_to_look_once_in_every_mode(simulator, run_dag, set_connection):
    set_connection("stability_default", add_organizations(simulator, rich=10.5, poor=3.2))

    result = run_dag("gates_that_look_once")

    for mode in MODES:
        assert result.states[f"{mode}-org-rich"] == "success"
        assert result.states[f"{mode}-org-poor"] == "failed"
        said = FAILURES[f"{mode}-org-poor"]
        assert said.startswith("AirflowSensorTimeout: Timed out after 0 s: ")
        assert "organization org-poor has 3.2 credits, needs more than 8" in said
    assert len(simulator.requests) == 2 * len(MODES)


def test_just_enough_credit_is_enough(simulator, run_dag, set_connection):
    uri = add_organizations(simulator, topped_up=100.0, empty=0.0, in_debt=-0.5)
    set_connection("stability_default", uri)
    simulator.top_up(0.3, "org-topped_up")

    result = run_dag("just_enough_credit")

    for mode in ("deferrable", "on_a_worker"):
        assert result.states[f"gate-{mode}"] == "success"
        assert result.xcom(f"gate-{mode}") == 100.3
        assert result.xcom(f"spend-{mode}-org-empty") == "it ran"
        in_debt = f"spend-{mode}-org-in_debt"
        assert result.states[in_debt] == "failed"
        assert "organization org-in_debt has -0.5 credits, needs 0." in FAILURES[in_debt]
