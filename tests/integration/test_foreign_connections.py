"""A connection of another type, named by mistake: nothing is sent to its host, nor to the Stability API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from airflow_stability.__main__ import main
from airflow_stability.compat import AIRFLOW_VERSION, AirflowFailException, AirflowSkipException
from airflow_stability.errors import StabilityConfigurationError
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.operators.spend import StabilitySpendOperator
from airflow_stability.operators.stability import StabilityAccountOperator, StabilityBalanceOperator
from airflow_stability.sensors.stability import StabilityBalanceSensor
from airflow_stability.triggers import jobs
from airflow_stability.triggers.jobs import StabilityJobTrigger
from tests.integration.conftest import let_thread_execute_operators
from tests.triggerer import gate_trigger

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2.11
    from airflow import DAG
    from airflow.decorators import task

SECRET = "the-secret-of-another-service"
CONNECTION = {"stability_conn_id": "foreign"}
TASK_INSTANCE = SimpleNamespace(
    dag_id="dag",
    task_id="task",
    run_id="run",
    map_index=-1,
    try_number=1,
    max_tries=0,
    start_date=None,
    get_first_reschedule_date=lambda context: None,
)

#: An address that only these tests use: a port may be one on which another test still expects its own server.
TRAP_HOST = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"


@pytest.fixture
def trap(monkeypatch):
    """Stand where the connection points, and where the proxy is by which everything else would go."""
    with socket.create_server((TRAP_HOST, 0)) as listener:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://{TRAP_HOST}:{listener.getsockname()[1]}")
        yield listener
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has connected
            listener.accept()


@pytest.fixture(params=["postgres", "aws", "http", "stability_ai", "", None], ids=str)
def problem(request, trap, monkeypatch):
    """Make the connection, and return the text that says what is wrong with it."""
    connection = {"conn_type": request.param, "login": "airflow", "password": SECRET}
    if request.param != "aws":  # whose host is the default one
        connection |= {"host": TRAP_HOST, "port": trap.getsockname()[1]}
    extra = {"api_version": "v1", "request_timeout": 0.2, "retry_deadline": 0}
    monkeypatch.setenv("AIRFLOW_CONN_FOREIGN", json.dumps(connection | {"extra": extra}))
    has = f"is of the type {request.param!r}" if request.param else "has no type"
    return (
        f"Connection 'foreign': it {has}, so its password is sent nowhere: name a connection of the type "
        "'stability', or give this one that type if its password is an API key."
    )


@pytest.mark.parametrize(
    "call", [StabilityHook.get_account, StabilityHook.get_balance, StabilityHook.get_conn]
)
def test_the_hook_refuses_it(call, problem):
    with pytest.raises(StabilityConfigurationError) as refusal:
        call(StabilityHook("foreign", retry_deadline=0))

    assert str(refusal.value) == problem


def test_the_test_button_refuses_it(problem):
    assert StabilityHook("foreign").test_connection() == (False, problem)


@pytest.mark.parametrize("operator", [StabilityAccountOperator, StabilityBalanceOperator])
def test_an_operator_fails_without_retries(operator, problem):
    with pytest.raises(AirflowFailException) as failure:
        operator(task_id="task", **CONNECTION).execute({})

    assert str(failure.value) == problem


@pytest.mark.usefixtures("airflow_database")  # where Airflow 2.11 looks for earlier reschedules
@pytest.mark.parametrize("mode", ["poke", "reschedule", "deferrable"])
@pytest.mark.parametrize(
    ("flag", "end"),
    [
        ("no flag", AirflowFailException),
        ("soft_fail", AirflowFailException),
        ("silent_fail", AirflowFailException),
        ("never_fail", AirflowSkipException),
    ],
)
def test_a_gate_ends_as_with_a_refused_key(mode, flag, end, problem):
    gate = StabilityBalanceSensor(
        task_id="gate",
        minimum_credits=8,
        timeout=60,
        **CONNECTION,
        **({"deferrable": True} if mode == "deferrable" else {"mode": mode}),
        **({} if flag == "no flag" else {flag: True}),
    )
    with pytest.raises(end) as ended:
        gate.execute({"ti": TASK_INSTANCE})

    assert end is AirflowSkipException or str(ended.value) == problem


def test_a_gate_that_waits_in_a_triggerer_fails(problem):
    (payload,) = events_of(gate_trigger(**CONNECTION))

    assert (payload["verdict"], payload["text"]) == ("fail", problem)


def test_a_gate_whose_connection_becomes_another_services_fails_and_sends_nothing(
    trap, simulator, connection, monkeypatch
):
    trigger = gate_trigger()

    async def main():
        waiting = asyncio.ensure_future(anext(aiter(trigger.run())))
        async with asyncio.timeout(20):
            while not simulator.requests:
                await asyncio.sleep(0.01)
            port = trap.getsockname()[1]
            monkeypatch.setenv(
                "AIRFLOW_CONN_STABILITY_DEFAULT", f"postgres://airflow:{SECRET}@127.0.0.1:{port}"
            )
            return (await waiting).payload

    payload = asyncio.run(main())

    assert payload["verdict"] == "fail"
    assert payload["text"].startswith("Connection 'stability_default': it is of the type 'postgres', so ")


def test_a_connection_that_got_its_type_has_changed(monkeypatch):
    described = {"conn_type": "http", "password": "sk-1"}
    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", json.dumps(described))
    hook = StabilityHook()
    with pytest.raises(StabilityConfigurationError):
        hook.get_conn()

    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", json.dumps(described | {"conn_type": "stability"}))

    assert hook.reload()
    assert hook.get_conn().secrets == ("sk-1",)


def never(client):
    raise AssertionError("the function ran")


def decorated():
    with DAG("dag", schedule=None):
        return task.stability(credits=3, **CONNECTION)(never)().operator


@pytest.mark.parametrize(
    "make",
    [
        lambda: StabilitySpendOperator(task_id="spend", python_callable=never, credits=3, **CONNECTION),
        decorated,
    ],
    ids=["operator", "decorator"],
)
def test_a_spending_task_fails_and_its_function_does_not_run(make, problem):
    let_thread_execute_operators()
    with pytest.raises(AirflowFailException) as failure:
        make().execute({"ti": TASK_INSTANCE, "outlet_events": {}})

    assert str(failure.value) == problem


def test_the_wait_for_a_job_ends_and_the_task_reports_it(problem, monkeypatch):
    monkeypatch.setattr(jobs, "JOB_POLL_SECONDS", 0.05)
    trigger = StabilityJobTrigger(
        **CONNECTION,
        job_id="job",
        result_path="/v2beta/results/job",
        timeout=60,
        deadline=(datetime.now(UTC) + timedelta(seconds=60)).isoformat(),
    )

    (payload,) = events_of(trigger)

    assert (payload["verdict"], payload["text"]) == ("job", problem)


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 0), reason="Airflow 2.11 has no asset watchers")
def test_an_event_trigger_fires_nothing_and_says_why(problem, logged):
    from airflow_stability.triggers.events import StabilityBalanceEventTrigger

    trigger = StabilityBalanceEventTrigger(threshold=5, direction="above", poke_interval=0.1, **CONNECTION)

    async def main():
        fired = asyncio.ensure_future(anext(aiter(trigger.run())))
        async with asyncio.timeout(20):
            while "is polled less often" not in logged():
                assert not fired.done()
                await asyncio.sleep(0.02)
        fired.cancel()
        await asyncio.gather(fired, return_exceptions=True)

    asyncio.run(main())

    assert "sent nowhere" in logged()
    assert SECRET not in logged()


@pytest.mark.parametrize("command", ["balance", "account"])
def test_the_command_line_refuses_it(command, problem, capsys, monkeypatch):
    # The command marks its process as one that may read Airflow's database. Undo that afterwards.
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "")
    with pytest.raises(SystemExit) as ended:
        main([command, "--conn-id", "foreign"])

    assert (ended.value.code, capsys.readouterr().err) == (1, problem + "\n")


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 1), reason="the Credits page came with Airflow 3.1")
def test_the_credits_page_refuses_it(problem):
    from airflow_stability.page.app import connect

    with pytest.raises(StabilityConfigurationError) as refusal:
        connect("foreign")

    assert str(refusal.value) == problem


@pytest.mark.parametrize("uri", ["stability://:sk-1@", "Stability://:sk-1@"])
def test_a_uri_says_the_type_with_its_scheme(uri, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", uri)
    with contextlib.closing(StabilityHook()) as hook:
        assert hook.get_conn().secrets == ("sk-1",)


def events_of(trigger):
    """Return the payloads of a trigger's events."""

    async def main():
        async with asyncio.timeout(20):
            return [event.payload async for event in trigger.run()]

    return asyncio.run(main())
