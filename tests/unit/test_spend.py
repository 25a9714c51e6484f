from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import ClassVar

import pytest
import requests
import responses

from airflow_stability.client import generate
from airflow_stability.compat import (
    AIRFLOW_VERSION,
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSkipException,
    AirflowTaskTerminated,
    AirflowTaskTimeout,
    BaseXCom,
    PythonOperator,
    TaskDeferred,
)
from airflow_stability.deferral import MIN_DEFERRAL_SECONDS
from airflow_stability.errors import (
    StabilityError,
    StabilityModeratedError,
    StabilityNotFoundError,
    StabilityOutcomeUnknownError,
    StabilityPaymentRequiredError,
    StabilityRateLimitError,
    StabilityRequestError,
    StabilityUnavailableError,
)
from airflow_stability.hooks.ledger import open_ledger
from airflow_stability.ledger.ledger import Hold, Spender
from airflow_stability.operators.client_argument import without_client
from airflow_stability.operators.spend import StabilitySpendOperator
from airflow_stability.rules.spending import what_counts
from airflow_stability.sensors.stability import StabilityBalanceSensor
from airflow_stability.triggers.jobs import StabilityJobTrigger
from airflow_stability.triggers.stability import StabilityBalanceTrigger

try:
    from airflow.sdk import DAG, task
    from airflow.sdk.execution_time import xcom
except ImportError:
    from airflow import DAG
    from airflow.decorators import task
    from airflow.models import xcom


def never(client):
    raise AssertionError("the function ran")


def spend(**arguments):
    return StabilitySpendOperator(**{"task_id": "spend", "python_callable": never, "credits": 3, **arguments})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"credits": True}, "credits must be a finite number"),
        ({"credits": -1}, "credits must be a finite number"),
        ({"credits": "many"}, "credits must be a finite number"),
        ({"credits": None}, "credits must be a finite number"),
        (
            {"wait_timeout": 0},
            "wait_timeout must be a finite number of seconds, more than 0 and at most 3155760000; got 0",
        ),
        ({"wait_timeout": "60"}, "wait_timeout must be"),
        ({"poke_interval": 0}, "poke_interval must be"),
        ({"reservation_seconds": -1}, "reservation_seconds must be"),
        ({"max_refusals": 0}, "max_refusals must be a whole number, 1 or more; got 0"),
        ({"max_refusals": True}, "max_refusals must be"),
        ({"max_refusals": 2.5}, "max_refusals must be"),
        ({"organization": ""}, "organization must be an id"),
        ({"op_kwargs": {"client": 1}}, "op_kwargs must not name a client"),
        ({"stability_conn_id": ""}, "stability_conn_id must be the id of a connection"),
        ({"wait_timeout": 1e12}, "wait_timeout must be .* at most 3155760000"),
        ({"poke_interval": 1e12}, "poke_interval must be .* at most 3155760000"),
        ({"reservation_seconds": 1e12}, "reservation_seconds must be .* at most 3155760000"),
        ({"execution_timeout": timedelta(seconds=1e12)}, "execution_timeout must be .* at most 3155760000"),
    ],
)
def test_an_argument_that_cannot_work_fails_when_the_task_is_built(arguments, text):
    with pytest.raises(ValueError, match=text):
        spend(**arguments)


def test_templates_are_left_until_the_task_runs():
    operator = spend(credits="{{ params.credits }}", organization="{{ params.organization }}")

    with pytest.raises(ValueError, match="credits must be a finite number"):
        operator.execute({})  # as if nothing had been rendered; no network is there to be called


def test_the_arguments_that_are_templates():
    added = {"credits", "organization", "stability_conn_id", "budget"}
    assert set(StabilitySpendOperator.template_fields) == added | set(PythonOperator.template_fields)


def test_it_waits_a_week_as_sensors_do_unless_told_otherwise():
    assert spend().wait_timeout == 7 * 24 * 60 * 60
    assert spend(wait_timeout=90).wait_timeout == 90


@pytest.mark.parametrize("argument", ["wait_timeout", "poke_interval", "reservation_seconds"])
def test_a_duration_may_be_a_timedelta(argument):
    assert getattr(spend(**{argument: timedelta(minutes=2)}), argument) == 120.0


@pytest.fixture
def api(connection, base_url):
    """Return a function that sets the balance, or what the API answers instead."""
    with responses.RequestsMock() as mock:
        yield lambda path="/v1/user/balance", method="GET", **answer: mock.add(
            method, f"{base_url}{path}", **answer
        )


def deferred(operator):
    with pytest.raises(TaskDeferred) as raised:
        operator.execute({})
    return raised.value


def test_too_little_credit_waits_without_troubling_the_function(api):
    api(json={"credits": 2.5})
    deferral = deferred(spend(wait_timeout=3600, poke_interval=30, reservation_seconds=45))

    assert deferral.method_name == "execute_complete"
    assert deferral.timeout == timedelta(seconds=3900)
    name, kwargs = deferral.trigger.serialize()
    trigger = StabilityBalanceTrigger(**json.loads(json.dumps(kwargs)))
    assert trigger.serialize() == (name, kwargs)
    assert (trigger.minimum_credits, trigger.expected_credits, trigger.last_credits) == (0, 3, 2.5)
    assert (trigger.poke_interval, trigger.reservation_seconds, trigger.pause) == (30, 45, 0)
    assert (trigger.timeout, trigger.waited, trigger.deferral_timeout) == (3600, 0, 3900)


def test_an_outage_waits_too(api):
    api(status=503)

    assert "answered 503" in deferred(spend()).trigger.last_failure


def test_a_worker_that_gets_no_answer_waits_a_while_longer_each_time(api):
    api(status=503)
    api(status=503)
    first = deferred(spend(poke_interval=50)).trigger
    assert first.pause == 50

    opened = {"verdict": "open", "text": "", "credits": 9.0, "failure": None, "memory": first.memory}
    with pytest.raises(TaskDeferred) as raised:
        spend(poke_interval=50).resume_execution("execute_complete", {"event": opened}, {})
    second = raised.value.trigger
    assert second.pause == 100
    assert second.last_credits == 9.0


def test_a_key_that_let_the_task_go_is_not_refused_for_good_at_once(api):
    api(status=401)
    opened = event("open", credits=9.0)

    with pytest.raises(TaskDeferred) as raised:
        spend().resume_execution("execute_complete", {"event": opened}, {})
    assert "answered 401" in raised.value.trigger.last_failure


@pytest.mark.skipif(
    not (3, 0) <= AIRFLOW_VERSION < (3, 1), reason="this Airflow starts a try without what another one left"
)
@pytest.mark.parametrize(("try_number", "left_over"), [(1, False), (2, True)])
def test_a_new_try_does_not_go_by_what_was_left_of_another(api, try_number, left_over):
    memory = {"seconds_waited": 5.0, "try_number": 1}
    failed = {"verdict": "unusable", "text": "so it was.", "credits": None, "memory": memory, "hold": "old"}
    context = {"ti": SimpleNamespace(try_number=try_number, start_date=None)}
    gate = StabilityBalanceSensor(task_id="gate", minimum_credits=8, deferrable=True)
    for task_, sends in ((spend(), None), (gate, {"try_number": 1})):
        event_ = failed | ({"memory": sends} if sends else {})
        if left_over:
            api(json={"credits": 2.0})
            with pytest.raises(TaskDeferred) as raised:
                task_.resume_execution("execute_complete", {"event": event_}, context)
            assert raised.value.trigger.hold != "old"  # that try may have paid
        else:
            with pytest.raises(ValueError, match="so it was"):
                task_.resume_execution("execute_complete", {"event": event_}, context)


def test_a_key_that_is_refused_fails_without_retries(api):
    api(status=401)

    with pytest.raises(AirflowFailException, match="answered 401"):
        spend().execute({})


STILL_REFUSED = (
    "the call is still refused: is another organization billed? Image generation bills the key's default "
    "organization, whichever is watched. Or does a run cost more than the 3 credits that this task "
    "expects? The last refusal: answered 402."
)


def event(verdict, refusals=0, **fields):
    memory = {"refusals": refusals, "last_refusal": "answered 402."}
    return {"verdict": verdict, "text": "so it is.", "credits": 5.0, "memory": memory, **fields}


@pytest.mark.parametrize(
    ("event", "failure", "text"),
    [
        (event("timeout"), AirflowFailException, "so it is. The last refusal: answered 402."),
        (
            event("timeout", refusals=2),
            AirflowFailException,
            f"so it is. The balance was enough, {STILL_REFUSED}",
        ),
        # It was refused once although there was enough, and then there was not.
        (
            event("timeout", refusals=1, credits=1.0),
            AirflowFailException,
            "so it is. The last refusal: answered 402.",
        ),
        (event("fail", failure="unauthorized"), AirflowFailException, "so it is."),
        (event("unusable"), ValueError, "so it is."),
    ],
)
def test_what_the_trigger_made_of_it_fails_the_task(event, failure, text):
    with pytest.raises(failure) as raised:
        spend().resume_execution("execute_complete", {"event": event}, {})

    assert str(raised.value) == text


def test_the_time_that_it_has_waited_is_over_when_it_cannot_go_on(api):
    api(json={"credits": 2.5})

    waited = event("open", seconds=60.0)

    with pytest.raises(AirflowFailException, match=r"Timed out after 60 s: .* has 2.5 credits, needs 3\."):
        spend(wait_timeout=60).resume_execution("execute_complete", {"event": waited}, {})


def test_a_deferral_that_airflow_timed_out_says_so():
    words = "Trigger/execution timeout" if AIRFLOW_VERSION < (3, 0) else "Trigger timeout"

    with pytest.raises(AirflowFailException, match="wait_timeout of 60 s"):
        spend(wait_timeout=60).resume_execution("__fail__", {"error": words}, {})


# The function's argument `client`


def first(client, prompt):
    return client, prompt


def last(prompt, client):
    return client, prompt


def named(prompt, *, client):
    return client, prompt


def behind_many(*prompts, client):
    return client, *prompts


def with_rest(client, **rest):
    return client, rest["prompt"]


@pytest.mark.parametrize("function", [first, last, named, behind_many])
def test_the_client_is_passed_wherever_the_function_wants_it(function):
    hidden = without_client(function)

    assert "client" not in inspect.signature(hidden).parameters
    assert hidden.__name__ == function.__name__
    assert hidden("a fox", client="the client") == ("the client", "a fox")


@pytest.mark.parametrize("function", [first, last, named, with_rest])
def test_the_rest_may_be_passed_by_name(function):
    assert without_client(function)(prompt="a fox", client="the client") == ("the client", "a fox")


def test_defaults_are_kept():
    def generate(client, prompt, *, size="1k"):
        return client, prompt, size

    assert without_client(generate)("a fox", client=1) == (1, "a fox", "1k")


def test_a_coroutine_function_stays_one():
    async def generate(client, prompt):
        return client, prompt

    hidden = without_client(generate)

    assert inspect.iscoroutinefunction(hidden)
    assert asyncio.run(hidden("a fox", client=1)) == (1, "a fox")


def test_a_function_without_a_client_is_left_alone():
    def generate(prompt):
        return prompt

    assert without_client(generate) is generate
    hidden = without_client(first)
    assert without_client(hidden) is hidden


def test_a_dag_calls_the_decorated_function_without_a_client():
    with DAG("dag", schedule=None):
        one = task.stability(credits=3)(first)("a fox")
        many = task.stability(credits="{{ params.credits }}", wait_timeout=60)(last).expand(prompt=["a"])
        with pytest.raises(TypeError, match="missing a required argument: 'prompt'"):
            task.stability(credits=3)(first)()

    assert isinstance(one.operator, StabilitySpendOperator)
    assert (one.operator.task_id, one.operator.operator_name) == ("first", "@task.stability")
    assert many.operator.partial_kwargs["credits"] == "{{ params.credits }}"
    assert set(StabilitySpendOperator.template_fields) <= set(one.operator.template_fields)


@pytest.mark.skipif(AIRFLOW_VERSION >= (3, 1), reason="this scheduler minds the date of every task")
def test_the_scheduler_minds_when_a_task_wants_to_be_started_again():
    from airflow.serialization.serialized_objects import SerializedDAG

    with DAG("dag", schedule=None, start_date=datetime(2026, 1, 1)) as dag:
        spend(task_id="one", deferrable=False)
        task.stability(credits=3, deferrable=False)(last).expand(prompt=["a"])
        arguments = {"python_callable": first, "credits": 3, "deferrable": False}
        StabilitySpendOperator.partial(task_id="many", **arguments).expand(op_args=[["a"]])

    tasks = SerializedDAG.from_dict(SerializedDAG.to_dict(dag)).task_dict
    for each in tasks.values():
        assert "ReadyToRescheduleDep" in {type(dependency).__name__ for dependency in each.deps}
    assert tasks["one"].reschedule


# What the function raises


@pytest.fixture
def run(api):
    """Return a function that runs a task whose function makes these calls, each answered as told.

    An answer is a status, an exception for one that was lost, or what `responses` takes. Then the function
    ends as told. It returns how the task has ended.
    """

    def run(*answers, balances=(5.0,), catches=(), wait=None, durably=0, ends=lambda: "done", **arguments):
        for balance in balances:
            api(json={"credits": balance})
        for answer in answers:
            if not isinstance(answer, dict):
                answer = {"body" if isinstance(answer, Exception) else "status": answer}
            api("/image", "POST", **answer)

        def function(client):
            for _ in answers:
                with contextlib.suppress(*catches):
                    client.request("POST", "/image", durable=client.maybe_paid < durably)
            return ends()

        task_ = spend(python_callable=function, **arguments)
        context = {"outlet_events": {}, "ti": TASK_INSTANCE}
        try:
            if wait is None:
                return task_.execute(context)
            opened = event("open", credits=balances[0])
            opened["memory"] |= wait
            return task_.resume_execution("execute_complete", {"event": opened}, context)
        except BaseException as ended:  # some end a process
            return ended

    return run


TASK_INSTANCE = SimpleNamespace(
    try_number=0,
    start_date=None,
    dag_id="dag",
    task_id="spend",
    run_id="run",
    map_index=-1,
    max_tries=0,
    get_first_reschedule_date=lambda context: None,
)
#: What the API itself answers, by status.
FAILED, MODERATED, TOO_LARGE = (
    {"status": status, "json": {"id": "e", "name": name, "errors": ["no"]}}
    for status, name in ((500, "internal_error"), (403, "content_moderation"), (413, "payload_too_large"))
)
LOST = ConnectionResetError("reset")


def test_the_function_runs_when_there_is_credit(run):
    assert run(200) == "done"


@pytest.mark.parametrize(
    ("answers", "catches", "ending", "accepted"),
    [
        ([429], (), TaskDeferred, TaskDeferred),
        ([503], (), TaskDeferred, TaskDeferred),
        ([FAILED], (), StabilityUnavailableError, StabilityUnavailableError),
        ([400], (), StabilityRequestError, StabilityRequestError),
        ([200, 402], (), TaskDeferred, TaskDeferred),
        ([200, 429], (), AirflowFailException, StabilityRateLimitError),
        ([200, 503], (), AirflowFailException, StabilityUnavailableError),
        ([200, FAILED], (), AirflowFailException, StabilityUnavailableError),
        ([200, 404], (), AirflowFailException, StabilityNotFoundError),
        ([LOST], (), AirflowFailException, StabilityOutcomeUnknownError),
        ([500], (), AirflowFailException, StabilityOutcomeUnknownError),
        # The function has caught the doubt, and the doubt stays.
        ([LOST, 429], (StabilityOutcomeUnknownError,), AirflowFailException, StabilityRateLimitError),
        ([LOST, 503], (StabilityOutcomeUnknownError,), AirflowFailException, StabilityUnavailableError),
        # The same request would be refused each time.
        ([MODERATED], (), AirflowFailException, AirflowFailException),
        ([TOO_LARGE], (), AirflowFailException, AirflowFailException),
    ],
)
def test_it_runs_again_by_itself_only_if_nothing_may_have_been_paid_for(
    run, answers, catches, ending, accepted
):
    assert type(run(*answers, catches=catches)) is ending
    # For a new run, the answers come again.
    assert type(run(*answers, catches=catches, retry_after_paying=True)) is accepted


def raises(error):
    def end():
        raise error

    return end


@pytest.mark.parametrize(
    "error",
    [
        ValueError("The frame is broken."),
        KeyboardInterrupt(),
        SystemExit(3),
        AirflowTaskTimeout("Timeout, PID: 1"),
        ExceptionGroup("in a task group", [ExceptionGroup("in another", [OSError("no space left")])]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_fails_after_a_payment_fails_for_good(run, error):
    ended = run(200, 200, ends=raises(error))

    assert type(ended) is AirflowFailException
    assert ended.__cause__ is error
    cause = what_counts(error)
    assert str(ended).startswith(f"{type(cause).__name__}{': ' if str(cause) else ''}{cause}")
    assert "2 calls of this run may have been paid for. Airflow's retries are not used." in str(ended)
    assert run(200, ends=raises(error), retry_after_paying=True) is error
    assert run(200, ends=raises(error), durably=1) is error
    assert run(200, 200, ends=raises(error), durably=1).__cause__ is error


def test_what_fails_before_a_payment_is_left_to_airflow(run):
    error = ValueError("The frame is broken.")

    assert run(ends=raises(error)) is error


@pytest.mark.parametrize(
    "error",
    [
        AirflowFailException("It is over."),
        AirflowRescheduleException(datetime.now(UTC)),
        AirflowSkipException("Not today."),
        TaskDeferred(trigger=None, method_name="later"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_function_tells_airflow_is_left_to_airflow(run, error):
    assert run(200, ends=raises(error)) is error


@pytest.mark.skipif(AIRFLOW_VERSION >= (3, 0), reason="this Airflow takes no exit for a success")
@pytest.mark.parametrize("code", [0, None])
def test_an_exit_that_airflow_takes_for_a_success_is_one(run, code):
    assert type(run(200, ends=raises(SystemExit(code)))) is SystemExit


@pytest.mark.skipif(AIRFLOW_VERSION >= (3, 0), reason="this Airflow interrupts no task")
@pytest.mark.parametrize(("state", "kind"), [("running", AirflowFailException), ("success", None)])
def test_a_task_whose_state_somebody_has_changed_is_left_alone(run, monkeypatch, state, kind):
    monkeypatch.setattr(TASK_INSTANCE, "state", state, raising=False)
    monkeypatch.setattr(TASK_INSTANCE, "refresh_from_db", lambda: None, raising=False)

    assert type(run(200, ends=raises(AirflowTaskTerminated("SIGTERM")))) is (kind or AirflowTaskTerminated)


class Killed(StabilitySpendOperator):
    """An operator of a user that cleans up when Airflow ends the task."""

    killed = 0

    def on_kill(self):
        type(self).killed += 1


def test_an_execution_that_takes_too_long_is_still_cleaned_up(api):
    def paint(client):
        client.request("POST", "/image")
        raise AirflowTaskTimeout("Timeout, PID: 1")

    api(json={"credits": 5.0})
    api("/image", "POST")
    operator = Killed(task_id="spend", credits=3, python_callable=paint)

    with pytest.raises(AirflowFailException, match="1 call of this run may have been paid for"):
        operator.execute({"outlet_events": {}, "ti": TASK_INSTANCE})
    assert Killed.killed == 1


def in_groups(*errors):
    return raises(ExceptionGroup("outer", [ExceptionGroup("inner", list(errors)), ValueError("own")]))


def test_a_refusal_in_a_group_is_one(run):
    refused = StabilityPaymentRequiredError("answered 402.", status=402)

    assert type(run(balances=(5.0, 5.0), ends=in_groups(refused))) is TaskDeferred


def test_a_verdict_in_a_group_is_one(run):
    ended = run(ends=in_groups(StabilityModeratedError("Not with this prompt.")))

    assert type(ended) is AirflowFailException
    assert str(ended) == "Not with this prompt. Airflow's retries are not used."


def test_an_unknown_outcome_in_a_group_comes_before_a_refusal(run):
    refused = StabilityPaymentRequiredError("answered 402.", status=402)
    ended = run(
        LOST, catches=(StabilityError,), ends=in_groups(refused, StabilityOutcomeUnknownError("Lost."))
    )

    assert type(ended) is AirflowFailException
    assert str(ended).startswith("Lost. 1 call of this run may have been paid for.")


reads_no_database = pytest.mark.skipif(
    AIRFLOW_VERSION < (3, 0), reason="Airflow 2.11 reads the first reschedule from its database"
)


@reads_no_database
def test_by_reschedule_a_refusal_after_a_payment_fails_at_once(run):
    ended = run(200, 200, 402, deferrable=False)

    assert type(ended) is AirflowFailException
    assert "2 calls of this run may have been paid for. Airflow's retries are not used. Nor does" in str(
        ended
    )
    assert "with deferrable=False it does not remember what it has paid for" in str(ended)
    assert run(200, 402, deferrable=False, retry_after_paying=True).status == 402


@reads_no_database
def test_by_reschedule_a_refusal_after_durable_payments_waits(run):
    ended = run(200, 200, 402, durably=2, balances=(5.0, 0.5), deferrable=False)

    assert type(ended) is AirflowRescheduleException


def test_a_run_that_was_paid_for_in_part_goes_on_with_less_than_a_whole_run_costs(run):
    deferral = run(200, 200, 402, durably=2, balances=(15.0, 1.5), credits=15)

    trigger = deferral.trigger
    assert (trigger.minimum_credits, trigger.expected_credits) == (1.5, 0.0)
    assert refusals(deferral) == 0
    memory = json.loads(json.dumps(trigger.memory))
    assert run(200, balances=(9.0,), wait=memory, credits=15) == "done"


class Archiving(StabilitySpendOperator):
    """An operator of a user that goes on after the function."""

    def post_execute(self, context, result=None):
        yield
        raise RuntimeError("The archive is full.")


@pytest.mark.parametrize("durably", [0, 1])
def test_what_follows_the_execution_stays_a_generator_and_fails_for_good(api, durably):
    def paint(client):
        client.request("POST", "/image", durable=bool(durably))

    api(json={"credits": 5.0})
    api("/image", "POST")
    operator = Archiving(task_id="spend", credits=3, python_callable=paint)
    context = {"outlet_events": {}, "ti": TASK_INSTANCE}
    operator.execute(context)

    assert inspect.isgeneratorfunction(operator.post_execute)
    with pytest.raises(RuntimeError if durably else AirflowFailException, match="The archive is full"):
        list(operator.post_execute(context=context))


# What the function returns


class Picture:
    def __repr__(self):
        return "PNG"


@pytest.mark.parametrize(
    ("result", "arguments", "text"),
    [
        (b"\x89PNG", {}, "XCom cannot hold the result: the function has returned an object of type bytes."),
        (Picture(), {}, "an object of type Picture. Save the picture, and return its path."),
        ({"image": b"\x89PNG"}, {}, "an object of type dict."),
        ({"image": b"\x89PNG"}, {"multiple_outputs": True}, "an object of type dict."),
        (requests.Response(), {}, "an object of type Response."),
        ((each for each in "PNG"), {}, "an object of type generator."),
        (["PNG"], {"multiple_outputs": True}, "multiple_outputs needs a dict,"),
        ({1: "PNG"}, {"multiple_outputs": True}, "multiple_outputs needs a dict,"),
    ],
)
def test_a_result_that_xcom_cannot_hold_fails_once_and_is_not_shown(
    run, caplog, capfd, result, arguments, text
):
    with caplog.at_level("DEBUG"):
        ended = run(200, 200, ends=lambda: result, **arguments)
        unpaid = run(ends=lambda: result, **arguments)
        logged = caplog.text + "".join(capfd.readouterr())
        run(ends=lambda: "a path")
        all_logged = caplog.text + "".join(capfd.readouterr())

    assert type(ended) is type(unpaid) is AirflowFailException
    assert text in str(ended)
    assert str(ended).endswith("2 calls of this run may have been paid for. Airflow's retries are not used.")
    assert str(unpaid) == str(ended).replace(" 2 calls of this run may have been paid for.", "")
    assert "PNG" not in logged + str(ended)
    assert "Returned value was: a path" in all_logged  # so a log would have been seen
    assert ended.__context__ is None


@pytest.mark.parametrize("result", [None, "images/1.png", {"path": "1.png"}, [1, 2.5], ("a", 1), {1: "a"}])
def test_any_other_result_is_returned(run, result):
    assert run(200, ends=lambda: result) == result


def test_what_is_not_pushed_may_be_anything(run):
    picture = Picture()

    assert run(200, ends=lambda: picture, do_xcom_push=False) is picture


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 0), reason="this Airflow stores what Python calls JSON")
@pytest.mark.parametrize("result", [float("nan"), {"score": float("inf")}, "\ud800"])
def test_what_cannot_be_sent_as_json_cannot_be_returned(run, result):
    assert type(run(200, ends=lambda: result)) is AirflowFailException


@pytest.mark.parametrize(("returned", "kind"), [("1.png", AirflowFailException), (["1.png"], list)])
@pytest.mark.parametrize("map_index", [-1, 0])
def test_a_task_is_mapped_over_a_list_or_a_dict_only(api, returned, kind, map_index):
    def paint(client):
        client.request("POST", "/image")
        return returned

    with DAG("dag", schedule=None):
        painted = task.stability(credits=3)(paint)()
        task(lambda path: path).override(task_id="each").expand(path=painted)
    api(json={"credits": 5.0})
    api("/image", "POST")
    context = {"outlet_events": {}, "ti": SimpleNamespace(**vars(TASK_INSTANCE) | {"map_index": map_index})}

    if kind is list or map_index >= 0:  # an instance of a mapped task may return anything
        assert painted.operator.execute(context) == returned
    else:
        with pytest.raises(AirflowFailException, match="mapped over the result needs a list or a dict"):
            painted.operator.execute(context)


class Pictures(BaseXCom):
    """A backend that holds pictures."""

    asked: ClassVar = []

    @staticmethod
    def serialize_value(value, **where):
        Pictures.asked.append(where)
        if isinstance(value, Picture):
            return "a name"
        raise TypeError("what else?")


def test_a_backend_that_can_hold_more_is_asked_only_about_that(run, monkeypatch):
    monkeypatch.setattr(xcom, "XCom", Pictures)
    picture = Picture()

    assert run(200, ends=lambda: "images/1.png") == "images/1.png"
    assert Pictures.asked == []
    assert run(200, ends=lambda: picture) is picture
    where = {"task_id": "spend", "dag_id": "dag", "run_id": "run", "map_index": -1}
    assert Pictures.asked == [{"key": "return_value", **where}]
    assert type(run(200, ends=lambda: b"PNG")) is AirflowFailException


def refusals(deferral):
    return deferral.trigger.memory["refusals"]


def test_a_refusal_counts_when_the_balance_was_enough_before_and_after(run):
    assert refusals(run(402, balances=(5.0, 5.0))) == 1


@pytest.mark.parametrize("after", [2.0, 6.0], ids=["somebody-was-quicker", "topped-up-since"])
def test_a_refusal_does_not_count_when_the_balance_says_why(run, after):
    assert refusals(run(402, balances=(5.0, after))) == 0


def test_a_run_that_pays_before_it_is_refused_is_counted(run):
    assert refusals(run(200, 402, balances=(5.0, 2.0))) == 1


def test_it_gives_up_after_as_many_refusals(run):
    ended = run(402, balances=(120.0, 120.0), wait={"refusals": 2})

    assert isinstance(ended, AirflowFailException)
    assert str(ended).startswith("The balance is 120, the call is still refused: is another organization bil")


@pytest.mark.parametrize(
    ("pause", "interval", "least"),
    [(0, 60, 60), (60, 60, 120), (400, 60, 800), (800, 60, 900), (0, 3600, 3600)],
)
def test_each_refusal_is_followed_by_a_longer_pause(run, pause, interval, least):
    trigger = run(402, balances=(5.0, 2.0), wait={"last_pause": pause}, poke_interval=interval).trigger

    assert trigger.pause == least


def test_a_lock_out_is_waited_out_by_all(run):
    trigger = run(429).trigger

    assert 50 < trigger.locked_out <= 60


def test_what_is_around_an_execution_is_around_one_that_had_to_wait(api):
    try:
        from airflow.sdk import Asset
    except ImportError:
        from airflow.datasets import Dataset as Asset

    def paint():
        return Asset("s3://bucket/image")

    api(json={"credits": 5.0})
    with DAG("dag", schedule=None):
        operator = task.stability(credits=3)(paint)().operator
    opened = event("open", credits=5.0)
    operator.resume_execution("execute_complete", {"event": opened}, {"outlet_events": {}})

    assert [each.uri for each in operator.outlets] == ["s3://bucket/image"]


class Drafting(StabilitySpendOperator):
    """An operator of a user that pays for something of its own before the function runs."""

    drafts = 0

    def execute(self, context):
        type(self).drafts += 1
        return "not reached after a wait"


def test_what_a_subclass_does_in_its_own_execute_is_not_done_again_after_a_wait(api):
    api(json={"credits": 5.0})
    operator = Drafting(task_id="spend", python_callable=lambda: "done", credits=3)
    opened = event("open", credits=5.0)

    ended = operator.resume_execution("execute_complete", {"event": opened}, {"outlet_events": {}})

    assert (ended, Drafting.drafts) == ("done", 0)


@reads_no_database
@pytest.mark.parametrize(("poke_interval", "seconds"), [(60, MIN_DEFERRAL_SECONDS), (3, 3)])
def test_the_last_wait_by_reschedule_is_long_enough_for_the_scheduler_to_notice(api, poke_interval, seconds):
    api(json={"credits": 2.0})
    operator = spend(deferrable=False, wait_timeout=90, poke_interval=poke_interval)
    before = datetime.now(UTC)
    first = before - timedelta(seconds=89.5)
    task_instance = SimpleNamespace(try_number=1, get_first_reschedule_date=lambda context: first)

    with pytest.raises(AirflowRescheduleException) as raised:
        operator.execute({"ti": task_instance})

    wait = raised.value.reschedule_date - before
    assert timedelta(seconds=seconds) <= wait < timedelta(seconds=seconds + 2)


# Asynchronous jobs

CREATIVE = "/v2beta/stable-image/upscale/creative"
JOB = "job-1"
WORKS = {"status": 202, "json": {"id": JOB, "status": "in-progress"}}


def upscale(folder, before=None):
    def function(client):
        if before:
            before(client)
        made = client.generate(CREATIVE.removeprefix("/v2beta/"), to=folder, name="cat", image=b"x")
        return made.path

    return function


def test_a_job_that_is_not_finished_sends_the_task_to_the_triggerer(api, tmp_path):
    api(json={"credits": 60.0})
    api(CREATIVE, "POST", json={"id": JOB})
    api(f"/v2beta/results/{JOB}", **WORKS)
    operator = spend(python_callable=upscale(tmp_path), credits=60, wait_timeout=3600)
    with pytest.raises(TaskDeferred) as raised:
        operator.execute({"outlet_events": {}, "ti": TASK_INSTANCE})

    deferral = raised.value
    name, kwargs = deferral.trigger.serialize()
    assert StabilityJobTrigger(**json.loads(json.dumps(kwargs))).serialize() == (name, kwargs)
    assert (kwargs["job_id"], kwargs["result_path"]) == (JOB, f"/v2beta/results/{JOB}")
    assert (kwargs["stability_conn_id"], kwargs["timeout"]) == ("stability_default", 3600)
    assert (kwargs["waited"], kwargs["deferral_timeout"]) == (0, 3900)
    assert deferral.timeout == timedelta(seconds=3900)


def test_after_the_job_the_function_runs_again_without_a_look_at_the_balance(api, tmp_path):
    (tmp_path / "cat.png.paying.json").write_text(json.dumps({"id": "m", "job_id": JOB}))
    api(f"/v2beta/results/{JOB}", body=b"picture", content_type="image/png")
    finished = {"verdict": "job", "text": "It is finished.", "memory": {"seconds_waited": 5.0}}
    operator = spend(python_callable=upscale(tmp_path), credits=60)
    context = {"outlet_events": {}, "ti": TASK_INSTANCE}

    assert operator.resume_execution("execute_complete", {"event": finished}, context) == str(
        tmp_path / "cat.png"
    )


def test_a_finished_job_is_fetched_although_the_budget_is_used_up(
    api, tmp_path, monkeypatch, connection, base_url
):
    uri = f"stability://:sk-1@{base_url.removeprefix('https://')}?api_version=v1&ledger_conn_id=the_ledger"
    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", uri)
    monkeypatch.setenv("AIRFLOW_CONN_THE_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
    ledger = open_ledger("the_ledger")
    ledger.database.init()
    ledger.set_budget("images", 25, "total")
    ledger.hold([Hold("others", Spender("stability_default", budget="images"), 25)])
    (tmp_path / "cat.png.paying.json").write_text(json.dumps({"id": "m", "job_id": JOB}))
    api(f"/v2beta/results/{JOB}", body=b"picture", content_type="image/png")
    finished = {"verdict": "job", "text": "It is finished.", "memory": {"seconds_waited": 5.0}}
    operator = spend(python_callable=upscale(tmp_path), credits=25, budget="images")

    assert operator.resume_execution(
        "execute_complete", {"event": finished}, {"outlet_events": {}, "ti": TASK_INSTANCE}
    )


def test_the_time_that_a_job_takes_is_limited_too(api, tmp_path):
    (tmp_path / "cat.png.paying.json").write_text(json.dumps({"id": "m", "job_id": JOB}))
    api(f"/v2beta/results/{JOB}", **WORKS)
    event_ = {"verdict": "job", "text": "It is finished.", "memory": {"seconds_waited": 61.0}}
    operator = spend(python_callable=upscale(tmp_path), credits=60, wait_timeout=60)

    with pytest.raises(AirflowFailException, match=r"The job job-1 is not finished, and .* 60 s in total"):
        operator.resume_execution(
            "execute_complete", {"event": event_}, {"outlet_events": {}, "ti": TASK_INSTANCE}
        )
    assert (tmp_path / "cat.png.paying.json").exists()


def test_a_job_that_was_too_late_fails_with_what_the_trigger_said():
    late = {"verdict": "timeout", "text": "The job is not finished after 60 s.", "memory": {}}
    with pytest.raises(AirflowFailException, match="The job is not finished after 60 s"):
        spend().resume_execution("execute_complete", {"event": late}, {})


@reads_no_database
def test_by_reschedule_a_job_that_takes_too_long_for_a_worker_is_not_sent_to_a_triggerer(
    api, tmp_path, monkeypatch
):
    monkeypatch.setattr(generate, "MAX_JOB_SECONDS", -1.0)
    api(json={"credits": 60.0})
    api(CREATIVE, "POST", json={"id": JOB})
    api(f"/v2beta/results/{JOB}", **WORKS)
    operator = spend(python_callable=upscale(tmp_path), credits=60, deferrable=False)

    with pytest.raises(AirflowRescheduleException):
        operator.execute({"outlet_events": {}, "ti": TASK_INSTANCE})


@reads_no_database
def test_by_reschedule_a_job_is_waited_for_in_place(api, tmp_path, monkeypatch):
    monkeypatch.setattr(generate.time, "sleep", lambda seconds: None)
    api(json={"credits": 60.0})
    api(CREATIVE, "POST", json={"id": JOB})
    api(f"/v2beta/results/{JOB}", **WORKS)
    api(f"/v2beta/results/{JOB}", body=b"picture", content_type="image/png")
    operator = spend(python_callable=upscale(tmp_path), credits=60, deferrable=False)

    assert operator.execute({"outlet_events": {}, "ti": TASK_INSTANCE}) == str(tmp_path / "cat.png")
