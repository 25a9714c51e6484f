from __future__ import annotations

import json

import pytest
import responses

from airflow_stability.operators.stability import StabilityAccountOperator, StabilityBalanceOperator
from airflow_stability.sensors.stability import StabilityBalanceSensor


@pytest.mark.parametrize(
    "minimum", [True, False, -1, float("nan"), float("inf"), "many", "-1", "nan", "", None]
)
def test_a_minimum_that_is_none_fails_when_the_task_is_built(minimum):
    with pytest.raises(ValueError, match="minimum_credits must be a finite number"):
        StabilityBalanceSensor(task_id="gate", minimum_credits=minimum)


@pytest.mark.parametrize("organization", ["", " ", "org 1", "org\n1", "örg", 5, "x" * 257])
@pytest.mark.parametrize("operator", [StabilityBalanceSensor, StabilityBalanceOperator])
def test_an_organization_that_is_none_fails_when_the_task_is_built(operator, organization):
    arguments = {"minimum_credits": 1} if operator is StabilityBalanceSensor else {}
    with pytest.raises(ValueError, match="organization must be an id"):
        operator(task_id="task", organization=organization, **arguments)


@pytest.mark.parametrize("minimum", [0, 0.5, "8", " 8.5 ", "{{ params.minimum }}", "{% if a %}1{% endif %}"])
def test_numbers_and_templates_are_taken_when_the_task_is_built(minimum):
    sensor = StabilityBalanceSensor(
        task_id="gate", minimum_credits=minimum, organization="{{ params.organization }}"
    )

    assert sensor.minimum_credits == minimum


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"minimum_credits": "{{ x }}"}, "minimum_credits must be a finite number"),
        ({"minimum_credits": 1, "organization": "{{ x }}"}, "organization must be an id"),
    ],
)
def test_what_a_template_became_is_checked_before_the_first_call(arguments, text):
    sensor = StabilityBalanceSensor(task_id="gate", silent_fail=True, **arguments)

    with pytest.raises(ValueError, match=text):
        sensor.execute({})  # as if nothing had been rendered; no network is there to be called


def test_an_organization_that_a_template_became_is_checked_before_the_first_call():
    operator = StabilityBalanceOperator(task_id="balance", organization="{{ x }}")

    with pytest.raises(ValueError, match="organization must be an id"):
        operator.execute({})


@responses.activate
def test_poke_by_itself_answers_as_it_does_in_a_task(monkeypatch, base_url):
    responses.get(f"{base_url}/v1/user/balance", json={"credits": 8.5})
    connection = {
        "conn_type": "stability",
        "password": "sk-1",
        "host": base_url,
        "extra": {"api_version": "v1"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", json.dumps(connection))

    assert not StabilityBalanceSensor(task_id="gate", minimum_credits=8.5).poke({})
    assert StabilityBalanceSensor(task_id="gate", minimum_credits=8).poke({}).xcom_value == 8.5


def test_the_arguments_that_are_templates():
    assert StabilityBalanceSensor.template_fields == ("minimum_credits", "organization", "stability_conn_id")
    assert StabilityBalanceOperator.template_fields == ("organization", "stability_conn_id")
    assert StabilityAccountOperator.template_fields == ("stability_conn_id",)
