from __future__ import annotations

import json
from datetime import timedelta
from fractions import Fraction

import pytest
import responses
from jinja2 import Undefined

from airflow_stability.compat import (
    AIRFLOW_VERSION,
    RENDERS_IN_TRIGGERER,
    STARTS_IN_TRIGGERER,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferralError,
)
from airflow_stability.operators.stability import StabilityAccountOperator, StabilityBalanceOperator
from airflow_stability.sensors.stability import StabilityBalanceSensor
from airflow_stability.triggers.stability import StabilityBalanceTrigger

try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2.11
    from airflow import DAG


@pytest.mark.parametrize(
    "minimum", [True, False, -1, float("nan"), float("inf"), "many", "-1", "nan", "", None]
)
def test_a_minimum_that_is_none_fails_when_the_task_is_built(minimum):
    with pytest.raises(ValueError, match="minimum_credits must be a finite number"):
        StabilityBalanceSensor(task_id="gate", minimum_credits=minimum)


def test_a_gate_that_would_poll_without_a_pause_for_all_others_fails_when_the_task_is_built():
    with pytest.raises(ValueError, match="poke_interval must be a finite number of seconds, more than 0"):
        StabilityBalanceSensor(task_id="gate", minimum_credits=1, poke_interval=0, deferrable=True)


@pytest.mark.parametrize("argument", ["timeout", "poke_interval", "reservation_seconds", "execution_timeout"])
@pytest.mark.parametrize("mode", [{"deferrable": True}, {"mode": "poke"}, {"mode": "reschedule"}])
def test_a_time_that_no_date_can_hold_fails_when_the_task_is_built(argument, mode):
    seconds = timedelta(seconds=1e12)
    with pytest.raises(
        ValueError, match=f"{argument} must be a finite number of seconds, .* at most 3155760000"
    ):
        StabilityBalanceSensor(task_id="gate", minimum_credits=1, **{argument: seconds, **mode})


@pytest.mark.parametrize(
    "operator", [StabilityBalanceSensor, StabilityBalanceOperator, StabilityAccountOperator]
)
def test_a_connection_that_is_none_fails_when_the_task_is_built(operator):
    arguments = {"minimum_credits": 1} if operator is StabilityBalanceSensor else {}
    with pytest.raises(ValueError, match="stability_conn_id must be the id of a connection"):
        operator(task_id="task", stability_conn_id="", **arguments)


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
def test_poke_by_itself_answers_as_it_does_in_a_task(connection, base_url):
    responses.get(f"{base_url}/v1/user/balance", json={"credits": 8.5})

    assert not StabilityBalanceSensor(task_id="gate", minimum_credits=8.5).poke({})
    assert StabilityBalanceSensor(task_id="gate", minimum_credits=8).poke({}).xcom_value == 8.5


def test_the_arguments_that_are_templates():
    assert StabilityBalanceSensor.template_fields == (
        "minimum_credits",
        "expected_credits",
        "organization",
        "stability_conn_id",
        "budget",
    )
    assert StabilityBalanceOperator.template_fields == ("organization", "stability_conn_id")
    assert StabilityAccountOperator.template_fields == ("stability_conn_id",)


def gate(**arguments):
    return StabilityBalanceSensor(
        **{"task_id": "gate", "minimum_credits": 8, "deferrable": True, **arguments}
    )


@pytest.mark.skipif(not STARTS_IN_TRIGGERER, reason="this Airflow starts every task on a worker")
def test_a_gate_that_starts_in_the_triggerer_has_what_its_trigger_needs():
    sensor = gate(start_from_trigger=True, timeout=300, do_xcom_push=False)

    assert sensor.start_from_trigger
    start = sensor.start_trigger_args
    assert (start.timeout, start.next_method) == (timedelta(seconds=300), "execute_complete")
    trigger = StabilityBalanceTrigger(**start.trigger_kwargs)
    assert trigger.serialize()[0] == start.trigger_cls
    assert (trigger.minimum_credits, trigger.timeout, trigger.do_xcom_push) == (8, 300, False)
    json.dumps(start.trigger_kwargs)  # it is kept in the database


@pytest.mark.parametrize(
    ("arguments", "starts"),
    [
        ({}, STARTS_IN_TRIGGERER),
        ({"timeout": 0}, False),  # there is one poll, and a triggerer would not come to it
        ({"deferrable": False}, False),
        ({"minimum_credits": "{{ params.minimum }}"}, RENDERS_IN_TRIGGERER),
        ({"organization": "{{ params.organization }}"}, RENDERS_IN_TRIGGERER),
        ({"minimum_credits": "{{ dag_run.conf['a'] | float + params.b }}"}, RENDERS_IN_TRIGGERER),
        # In the triggerer these would wait for ever, or fail.
        ({"minimum_credits": "{{ 5000 if params.bigrun else 1 }}"}, RENDERS_IN_TRIGGERER),
        # There, these are missing.
        ({"minimum_credits": "{{ 5000 if dag_run.triggering_user_name else 1 }}"}, False),
        ({"minimum_credits": "{% set run = dag_run %}{{ run.clear_number }}"}, False),
        ({"minimum_credits": "{{ ti.xcom_pull(task_ids='other') }}"}, False),
        ({"minimum_credits": "{{ prev_start_date_success.day }}"}, False),
        ({"minimum_credits": "{{ a_macro_of_the_dag() }}"}, False),
        ({"minimum_credits": "{{ params.minimum | a_filter_of_the_dag }}"}, False),
        ({"minimum_credits": "{% if params.minimum"}, False),
    ],
)
def test_a_gate_starts_in_the_triggerer_where_airflow_can(arguments, starts):
    with DAG("usual", schedule=None):
        assert gate(start_from_trigger=True, **arguments).start_from_trigger == starts
    assert not gate(**arguments).start_from_trigger


@pytest.mark.parametrize(
    ("flags", "ending"),
    [
        ({}, AirflowSensorTimeout),
        ({"soft_fail": True}, AirflowSkipException),
        ({"never_fail": True}, AirflowSkipException),
    ],
)
def test_a_deferral_that_airflow_timed_out_is_a_timeout(flags, ending):
    words = "Trigger/execution timeout" if AIRFLOW_VERSION < (3, 0) else "Trigger timeout"
    sensor = gate(timeout=300, execution_timeout=timedelta(minutes=2), **flags)

    with pytest.raises(ending, match=r"timeout of 300 s and execution_timeout of 120 s"):
        sensor.resume_execution("__fail__", {"error": words}, {})


@pytest.mark.parametrize(
    "changes",
    [
        {"render_template_as_native_obj": True},
        {"template_undefined": Undefined},
        {"user_defined_filters": {"upper": str.lower}},
        {"jinja_environment_kwargs": {"trim_blocks": True}},
    ],
)
def test_a_gate_of_a_dag_that_renders_otherwise_does_not_start_in_the_triggerer(changes):
    with DAG("otherwise", schedule=None, **changes):
        assert not gate(start_from_trigger=True, organization="{{ params.o | upper }}").start_from_trigger
        assert gate(start_from_trigger=True, task_id="plain").start_from_trigger == STARTS_IN_TRIGGERER


def test_a_gate_that_gets_its_dag_later_renders_on_a_worker():
    assert not gate(start_from_trigger=True, organization="{{ params.o }}").start_from_trigger


def test_a_gate_starts_on_a_worker_where_triggerers_have_queues(monkeypatch):
    monkeypatch.setenv("AIRFLOW__TRIGGERER__QUEUES_ENABLED", "True")

    assert not gate(start_from_trigger=True).start_from_trigger


@responses.activate
def test_a_gate_with_a_timeout_of_0_does_not_defer(connection, base_url):
    responses.get(f"{base_url}/v1/user/balance", json={"credits": 3.2})

    with pytest.raises(
        AirflowSensorTimeout, match=r"Timed out after 0 s: .* has 3\.2 credits, needs more than 8"
    ):
        gate(timeout=0).execute({})


@pytest.mark.parametrize(
    ("flags", "ending"),
    [
        ({}, TaskDeferralError),
        ({"soft_fail": True}, TaskDeferralError),
        ({"never_fail": True}, AirflowSkipException),
    ],
)
def test_a_trigger_that_broke_is_no_timeout(flags, ending):
    with pytest.raises(ending, match="Trigger failure"):
        gate(**flags).resume_execution("__fail__", {"error": "Trigger failure"}, {})


def test_a_minimum_that_is_no_json_is_kept_as_a_number():
    assert gate(minimum_credits=Fraction(17, 2)).minimum_credits == 8.5
    assert type(gate(minimum_credits=Fraction(17, 2)).minimum_credits) is float


def test_an_argument_that_was_unusable_in_the_triggerer_is_a_value_error():
    event = {"verdict": "unusable", "text": "minimum_credits must be a number."}

    with pytest.raises(ValueError, match="minimum_credits must be a number"):
        gate().resume_execution("execute_complete", {"event": event}, {})


class Maintained(StabilityBalanceSensor):
    """A sensor of a user that has a failure of its own."""

    def poke(self, context):
        raise AirflowFailException("closed for maintenance")


@pytest.mark.parametrize(
    ("flags", "ending"),
    [
        ({}, AirflowFailException),
        ({"soft_fail": True}, AirflowSkipException),
        ({"never_fail": True}, AirflowSkipException),
        ({"silent_fail": True}, AirflowFailException),
    ],
)
def test_a_failure_of_a_subclass_is_treated_as_airflow_treats_it(flags, ending):
    with pytest.raises(ending):
        Maintained(task_id="gate", minimum_credits=8, **flags).execute({})


@responses.activate
@pytest.mark.parametrize(
    ("flags", "ending"),
    [
        ({}, AirflowFailException),
        ({"soft_fail": True}, AirflowFailException),
        ({"never_fail": True}, AirflowSkipException),
    ],
)
def test_a_gate_that_polls_again_for_an_unknown_verdict_keeps_the_reason_of_its_end(
    connection, base_url, flags, ending
):
    responses.get(f"{base_url}/v1/user/balance", status=401)

    with pytest.raises(ending, match="answered 401"):
        gate(**flags).resume_execution("execute_complete", {"event": {"verdict": "shared"}}, {})
