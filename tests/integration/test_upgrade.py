"""What earlier releases have left in Airflow's database is gone on with, and what a later one may leave.

The rows were recorded in real Airflows: see `recorded/record.py`. Airflow keeps them when it is upgraded
itself, so those of an older Airflow are read as well.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import runpy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_stability.compat import (
    AIRFLOW_VERSION,
    STARTS_IN_TRIGGERER,
    AirflowFailException,
    AirflowSensorTimeout,
)
from airflow_stability.sensors.stability import StabilityBalanceSensor
from airflow_stability.simulator import Fault
from airflow_stability.triggers import stability as triggers
from airflow_stability.triggers.stability import ARGUMENTS_VERSION, StabilityBalanceTrigger
from tests.integration.recorded.record import POOR, RICH, WATCHED
from tests.integration.test_event_trigger import Store, Watch, airflow_3
from tests.versions import TaskDeferred

HERE = Path(__file__).parent / "recorded"
THIS = ".".join(map(str, AIRFLOW_VERSION))
#: By release and Airflow. JSON as Airflow has stored it stays text until Airflow itself reads it.
RECORDED = {
    (file.parent.name, file.stem.removeprefix("airflow-")): json.loads(file.read_text())
    for file in sorted(HERE.glob("*/airflow-*.json"))
}
READABLE = {
    origin: recorded
    for origin, recorded in RECORDED.items()
    if tuple(map(int, origin[1].split("."))) <= AIRFLOW_VERSION
}
TASKS = [
    pytest.param(task_id, row, id=f"{release}-{airflow}-{task_id}")
    for (release, airflow), recorded in READABLE.items()
    for task_id, row in recorded["tasks"].items()
]
TASK_IDS = sorted({task_id for recorded in RECORDED.values() for task_id in recorded["tasks"]})
WATCHERS = [
    pytest.param(recorded["watcher"], id="-".join(origin))
    for origin, recorded in READABLE.items()
    if "watcher" in recorded
]
RECORD_IT = "record them with python -m tests.integration.recorded.record RELEASE"
#: Longer than any of them pauses, or a gate that is to time out has.
AGO = timedelta(seconds=95)
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00")


@pytest.fixture(autouse=True)
def _wallets(simulator, connection, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_REFUSED", f"{simulator.connection_uri()}?api_version=v1")
    simulator.set_credits(POOR)
    simulator.set_credits(WATCHED, "org-other")


@pytest.fixture
def logged(caplog, capfd):
    """Return a function that returns what was logged: Airflow 3 writes the log of a trigger to stdout."""
    return lambda: caplog.text if AIRFLOW_VERSION < (3, 0) else capfd.readouterr().out


@pytest.fixture(scope="module")
def dags():
    return runpy.run_path(str(HERE / "dags" / "recorded.py"))


@pytest.fixture
def task_of(dags):
    def task_of(task_id):
        if task_id == "mapped":  # what it becomes is a gate as any other
            return StabilityBalanceSensor(task_id=task_id, organization="org-default", **dags["GATE"])
        return dags["late" if task_id == "timed_out" else "recorded"].get_task(task_id)

    return task_of


def made_of_late(text):
    """Return what was stored as if that had been a while ago."""
    began = re.search(rf'"(?:deferred_at|began|started)": "({TIME.pattern})"', text)
    if began is None:
        return text
    by = datetime.now(UTC) - AGO - datetime.fromisoformat(began[1])
    return TIME.sub(lambda time: (datetime.fromisoformat(time[0]) + by).isoformat(), text)


def arguments_of(row):
    """Return a trigger's arguments as a triggerer reads them."""
    from airflow.models.trigger import Trigger

    arguments = Trigger._decrypt_kwargs(made_of_late(row["kwargs"]))
    if AIRFLOW_VERSION >= (3, 0):
        decoders = "decoders" if AIRFLOW_VERSION >= (3, 2) else "serialized_objects"
        decode = importlib.import_module(f"airflow.serialization.{decoders}").smart_decode_trigger_kwargs
        arguments = {name: decode(value) for name, value in arguments.items()}
    return arguments


def made_anew(row, **changes):
    """Make a trigger of a row as a triggerer does."""
    module, _, name = row["classpath"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**arguments_of(row) | changes)


def read(next_kwargs):
    """Return what a task resumes with, as a worker reads it."""
    from airflow.serialization.serialized_objects import BaseSerialization

    stored = json.loads(made_of_late(next_kwargs))
    if AIRFLOW_VERSION >= (3, 2):
        from airflow.sdk.serde import deserialize

        try:
            return deserialize(stored)
        except (ImportError, KeyError, AttributeError, TypeError):
            pass
    return BaseSerialization.deserialize(stored)


def fire(trigger):
    async def fire():
        return [event async for event in trigger.run()]

    (event,) = asyncio.run(asyncio.wait_for(fire(), 10))
    return event


CONTEXT = {"outlet_events": {}, "ti": SimpleNamespace(try_number=1, start_date=datetime.now(UTC))}


def resume(task, row, event=None):
    """Let a task of a row go on as a worker does.

    :param event: what Airflow puts into the row; None if it has.
    """
    next_kwargs = read(row["next_kwargs"])
    if event is not None:
        next_kwargs["event"] = event
    return task.resume_execution(row["next_method"], next_kwargs, CONTEXT)


def deferred(run, *arguments):
    with pytest.raises(TaskDeferred) as raised:
        run(*arguments)
    return raised.value


def test_there_are_rows_of_this_airflow():
    assert THIS in {airflow for _, airflow in RECORDED}, RECORD_IT


@pytest.mark.parametrize(("task_id", "row"), TASKS)
def test_a_recorded_task_goes_on_waiting_and_is_let_go(simulator, task_of, task_id, row):
    simulator.set_credits(RICH)

    event = fire(made_anew(row))

    if task_id == "ends_in_triggerer" and AIRFLOW_VERSION < (3, 0):
        assert event.xcoms == {"return_value": RICH}
        return
    payload = json.loads(json.dumps(event.payload))
    if "resumes" in row and task_id not in ("refused", "timed_out"):
        recorded = read(row["resumes"]["next_kwargs"])["event"]
        assert payload.keys() >= recorded.keys()  # a worker of that release takes them for granted
    if task_id == "timed_out":
        with pytest.raises(AirflowSensorTimeout):
            resume(task_of(task_id), row, payload)
    elif task_id in ("decorated", "spend_refused"):
        resume(task_of(task_id), row, payload)
        assert (simulator.images_made, simulator.credits()) == (1, RICH - 3)
    else:
        assert resume(task_of(task_id), row, payload) == RICH


@pytest.mark.parametrize(("task_id", "row"), [each for each in TASKS if "resumes" in each.values[1]])
def test_a_recorded_event_ends_the_wait_as_it_would_have(simulator, task_of, task_id, row):
    simulator.set_credits(RICH)
    resumes = row["resumes"]

    match task_id:
        case "refused":
            with pytest.raises(AirflowFailException, match="answered 401"):
                resume(task_of(task_id), resumes)
        case "timed_out":
            with pytest.raises(AirflowSensorTimeout, match=r"Timed out after 45 s: .* has 2\.25 credits"):
                resume(task_of(task_id), resumes)
        case "decorated":
            resume(task_of(task_id), resumes)
            assert simulator.images_made == 1
        case _:
            assert resume(task_of(task_id), resumes) == RICH
            assert not simulator.requests


@pytest.mark.parametrize(("task_id", "row"), [each for each in TASKS if each.values[0] == "spend_refused"])
def test_a_recorded_refusal_counts(simulator, task_of, task_id, row):
    payload = fire(made_anew(row)).payload

    deferral = deferred(resume, task_of(task_id), row, payload)

    assert deferral.trigger.memory["refusals"] == 2
    assert deferral.trigger.memory["waited"] >= AGO.total_seconds()


@airflow_3
@pytest.mark.parametrize("row", WATCHERS)
def test_a_recorded_watcher_fires_at_a_crossing_and_remembers_what_was(simulator, row):
    memory = row.get("memory")
    store = Store()
    if memory:
        store.values[memory["key"]] = json.loads(memory["value"])
        simulator.set_credits(RICH)  # it crossed meanwhile

    async def main():
        async with Watch(simulator, made_anew(row, poke_interval=0.1), store) as watch:
            if not memory:
                await watch.polls()
                simulator.set_credits(RICH)
            await watch.until(lambda: watch.fired)
            return watch.fired[0]

    payload = asyncio.run(main())

    assert (payload["previous_credits"], payload["credits"]) == (POOR, RICH)
    assert (payload["threshold"], payload["direction"]) == (8.5, "above")


def shape(value):
    """Return the names in a value, and the types."""
    return {name: shape(each) for name, each in value.items()} if isinstance(value, dict) else type(value)


def written_now(task):
    """Return what a task stores today: its trigger's class and arguments, and how it is resumed."""
    if getattr(task, "start_from_trigger", False):
        start = task.start_trigger_args
        return start.trigger_cls, start.trigger_kwargs, start.next_method
    deferral = deferred(task.execute, CONTEXT)
    return *deferral.trigger.serialize(), deferral.method_name


def check_growth(before, arguments):
    """Check that arguments lack nothing that was ever stored, and are of the form that their version had."""
    assert all(each.keys() <= arguments.keys() for each in before)
    version = arguments["arguments_version"]
    same_version = [each for each in before if each.get("arguments_version") == version]
    assert same_version, f"No row has the arguments' version of today: {RECORD_IT}"
    assert all(shape(each) == shape(arguments) for each in same_version)


@pytest.mark.parametrize("task_id", TASK_IDS)
def test_arguments_change_with_their_version_and_lose_nothing(task_of, task_id):
    rows = [recorded["tasks"][task_id] for (_, airflow), recorded in RECORDED.items() if airflow == THIS]

    classpath, arguments, next_method = written_now(task_of(task_id))

    assert {(row["classpath"], row["next_method"]) for row in rows} == {(classpath, next_method)}
    assert arguments["arguments_version"] == ARGUMENTS_VERSION
    before = [arguments_of(row) for row in rows]
    check_growth(before, arguments)
    memories = [each["memory"] for each in before if "memory" in each]
    assert all(each.keys() <= arguments["memory"].keys() for each in memories)


@airflow_3
def test_a_watchers_arguments_change_with_their_version_and_lose_nothing(dags):
    from airflow_stability.triggers.events import ARGUMENTS_VERSION

    rows = [recorded["watcher"] for (_, airflow), recorded in RECORDED.items() if airflow == THIS]

    classpath, arguments = dags["trigger"].serialize()

    assert {row["classpath"] for row in rows} == {classpath}
    assert arguments["arguments_version"] == ARGUMENTS_VERSION
    check_growth([arguments_of(row) for row in rows], arguments)


# What a later release leaves

LATER = {"arguments_version": ARGUMENTS_VERSION + 1, "opens_at": "noon", "minimum_credits": ["8.5"]}
HAND_BACK = 0.3


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(triggers, "START_OVER_AFTER", HAND_BACK)


def of_a_later_release(trigger):
    return StabilityBalanceTrigger(**trigger.serialize()[1] | LATER)


def seconds_until(time):
    return (datetime.fromisoformat(time) - datetime.now(UTC)).total_seconds()


def test_a_trigger_hands_a_task_with_later_arguments_back_without_a_look(simulator, task_of, soon, logged):
    later = of_a_later_release(deferred(task_of("classic").execute, CONTEXT).trigger)
    simulator.clear_requests()
    began = datetime.now(UTC)

    payload = fire(later).payload

    assert (payload["verdict"], payload["memory"]) == ("again", later.memory)
    assert datetime.now(UTC) - began >= timedelta(seconds=HAND_BACK)
    assert not simulator.requests
    assert logged().count("a later release of airflow-provider-stability") == 1


def test_it_waits_a_minute_before():
    assert triggers.START_OVER_AFTER == 60


def hand_back(task, event, context=CONTEXT):
    """Let a task go on with what a triggerer of another release has fired."""
    return task.resume_execution("execute_complete", {"event": event}, context)


@pytest.mark.parametrize("task_id", ["classic", "expecting"])
def test_a_gate_that_was_handed_back_starts_over_by_its_first_deadline(simulator, task_of, task_id, soon):
    first = deferred(task_of(task_id).execute, CONTEXT).trigger
    payload = fire(of_a_later_release(first)).payload
    # Some versions of Airflow give another start when a task resumes.
    later = {"ti": SimpleNamespace(try_number=1, start_date=datetime.now(UTC) + AGO)}

    again = deferred(hand_back, task_of(task_id), payload, later)

    assert again.method_name == "execute_complete"
    written, before = again.trigger.serialize()[1], first.serialize()[1]
    kept = ("arguments_version", "deadline", "since", "minimum_credits", "expected_credits", "memory")
    assert {name: written[name] for name in kept} == {name: before[name] for name in kept}
    assert 0 < seconds_until(written["join_at"]) <= HAND_BACK
    simulator.set_credits(RICH)
    assert fire(again.trigger).payload["credits"] == RICH


def test_a_gate_that_was_handed_back_opens_if_there_is_credit_by_now(simulator, task_of, soon):
    payload = fire(of_a_later_release(deferred(task_of("classic").execute, CONTEXT).trigger)).payload
    simulator.set_credits(RICH)

    assert hand_back(task_of("classic"), payload) == RICH


@pytest.mark.skipif(not STARTS_IN_TRIGGERER, reason="this Airflow starts every task on a worker")
def test_a_gate_that_no_worker_has_seen_looks_when_it_is_handed_back(simulator, task_of, soon):
    sensor = task_of("starts_in_triggerer")
    payload = fire(StabilityBalanceTrigger(**sensor.start_trigger_args.trigger_kwargs | LATER)).payload
    started = datetime.now(UTC) - AGO

    again = deferred(hand_back, sensor, payload, {"ti": SimpleNamespace(try_number=1, start_date=started)})

    assert len(simulator.requests) == 1
    deadline = datetime.fromisoformat(again.trigger.deadline)
    assert deadline - started == timedelta(seconds=sensor.timeout)
    simulator.set_credits(RICH)
    assert hand_back(sensor, payload) == RICH


def test_a_spending_task_that_was_handed_back_neither_runs_before_its_pause_ends_nor_forgets(
    simulator, task_of, soon
):
    operator = task_of("spend_refused")
    first = deferred(operator.execute, CONTEXT).trigger
    simulator.clear_requests()
    payload = fire(of_a_later_release(first)).payload

    again = deferred(hand_back, operator, payload).trigger

    assert not simulator.requests
    assert again.serialize()[1].keys() == first.serialize()[1].keys()
    assert abs(seconds_until(again.join_at) - seconds_until(first.join_at)) < 1
    assert abs(seconds_until(again.deadline) - seconds_until(first.deadline)) < 1
    changes = {"waited", "began", "join_at"}
    assert {**again.memory, **dict.fromkeys(changes)} == {**first.memory, **dict.fromkeys(changes)}
    assert (again.memory["refusals"], again.memory["pause"]) == (1, 90.0)
    assert again.memory["waited"] >= HAND_BACK


@pytest.mark.parametrize("credits", [POOR, RICH])
def test_a_spending_task_that_was_handed_back_after_its_pause_looks_and_runs_if_it_can(
    simulator, task_of, credits, soon
):
    operator = task_of("decorated")
    first = deferred(operator.execute, CONTEXT).trigger
    payload = fire(of_a_later_release(first)).payload
    # What only a later release stateful is none of this one's.
    payload["memory"] |= {"refusals": 2, "pause": 4.0, "paid": 3}
    simulator.set_credits(credits)

    if credits == RICH:
        hand_back(operator, payload)
        assert simulator.images_made == 1
        return
    again = deferred(hand_back, operator, payload).trigger
    assert simulator.images_made == 0
    assert (again.memory["refusals"], again.memory["since"]) == (2, first.memory["since"])
    assert 0 < seconds_until(again.join_at) <= HAND_BACK


@pytest.mark.parametrize("task_id", ["classic", "decorated"])
def test_a_verdict_that_only_a_later_release_knows_starts_a_task_over(simulator, task_of, task_id, logged):
    memory = deferred(task_of(task_id).execute, CONTEXT).trigger.memory
    event = {"verdict": "shared", "text": "It opens at noon.", "memory": memory}

    again = deferred(hand_back, task_of(task_id), event)

    # Its triggerer may say so at once again.
    assert 55 < seconds_until(again.trigger.join_at) <= 60
    log = logged()
    assert "'shared'" in log
    assert "It opens at noon." in log


def test_a_gate_that_starts_over_fails_as_one_that_starts(simulator, task_of):
    simulator.inject(Fault.status(401))

    with pytest.raises(AirflowFailException, match="answered 401"):
        hand_back(task_of("classic"), {"verdict": "again", "text": "", "memory": {"try_number": 1}})


@pytest.mark.parametrize("version", [{}, {"arguments_version": ARGUMENTS_VERSION}], ids=["none", "this"])
def test_an_argument_that_is_in_no_release_is_a_type_error(task_of, version):
    arguments = deferred(task_of("classic").execute, CONTEXT).trigger.serialize()[1]
    del arguments["arguments_version"]

    with pytest.raises(TypeError, match=r"StabilityBalanceTrigger has no argument minimum_credit$"):
        StabilityBalanceTrigger(**arguments, minimum_credit=8, **version)


@airflow_3
def test_a_watchers_argument_that_is_in_no_release_is_a_type_error():
    with pytest.raises(TypeError, match=r"StabilityBalanceEventTrigger has no argument treshold$"):
        triggers.StabilityBalanceEventTrigger(threshold=8, direction="above", treshold=8)


def watcher_of_a_later_release(dags, **changes):
    arguments = dags["trigger"].serialize()[1] | {"arguments_version": 2, "poke_interval": 0.1} | changes
    return triggers.StabilityBalanceEventTrigger(**arguments)


@airflow_3
def test_a_watcher_ignores_what_only_a_later_release_knows_and_says_so_once(simulator, dags, logged):
    later = watcher_of_a_later_release(dags, between=["8:00", "18:00"])

    async def main():
        async with Watch(simulator, later) as watch:
            await watch.polls()
            simulator.set_credits(RICH)
            await watch.until(lambda: watch.fired)
            await watch.polls(3)
            return len(watch.fired)

    assert asyncio.run(main()) == 1
    assert logged().count("the balance is watched regardless of between.") == 1
    assert later.serialize()[1]["between"] == ["8:00", "18:00"]


@airflow_3
@pytest.mark.parametrize("changes", [{"direction": "both"}, {"threshold": None}, {"poke_interval": "daily"}])
def test_a_watcher_that_only_a_later_release_can_run_neither_ends_nor_fires(simulator, dags, logged, changes):
    later = watcher_of_a_later_release(dags, **changes)

    async def main():
        async with Watch(simulator, later) as watch:
            await asyncio.sleep(0.5)
            assert not watch.task.done()
            assert not watch.fired

    asyncio.run(main())

    assert not simulator.requests
    assert logged().count(f"nothing is watched: {next(iter(changes))} must be") == 1
