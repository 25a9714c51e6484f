"""What earlier releases have left in Airflow's database is gone on with, and what a later one may leave.

The rows were recorded in real Airflows: see `recorded/record.py`. Airflow keeps them when it is upgraded
itself, so those of an older Airflow are read as well.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import runpy
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_stability.compat import (
    AIRFLOW_VERSION,
    STARTS_IN_TRIGGERER,
    AirflowFailException,
    AirflowSensorTimeout,
    TaskDeferred,
)
from airflow_stability.sensors.stability import StabilityBalanceSensor
from airflow_stability.simulator import Fault
from airflow_stability.triggers.stability import StabilityBalanceTrigger
from tests.integration.recorded.record import POOR, RICH, WATCHED
from tests.integration.test_event_trigger import Store, Watch, airflow_3
from tests.triggerer import started_anew

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
#: How many seconds ago the tasks deferred: longer than any of them pauses, or a gate that is to time out has.
AGO = 95.0


@pytest.fixture(autouse=True)
def _wallets(simulator, connection, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_REFUSED", f"{simulator.connection_uri()}?api_version=v1")
    simulator.set_credits(POOR)
    simulator.set_credits(WATCHED, "org-other")


@pytest.fixture
def logged(caplog, logged):
    """Return a function that returns what was logged: Airflow 3 writes the log of a trigger to stdout."""
    return (lambda: caplog.text) if AIRFLOW_VERSION < (3, 0) else logged


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


def arguments_of(row):
    """Return a trigger's arguments as a triggerer reads them."""
    from airflow.models.trigger import Trigger

    arguments = Trigger._decrypt_kwargs(row["kwargs"])
    if AIRFLOW_VERSION >= (3, 0):
        decoders = "decoders" if AIRFLOW_VERSION >= (3, 2) else "serialized_objects"
        decode = importlib.import_module(f"airflow.serialization.{decoders}").smart_decode_trigger_kwargs
        arguments = {name: decode(value) for name, value in arguments.items()}
    return arguments


def made_anew(row, **changes):
    """Make a trigger of a row as a triggerer does."""
    module, _, name = row["classpath"].rpartition(".")
    trigger = getattr(importlib.import_module(module), name)(**arguments_of(row) | changes)
    if timeout := getattr(trigger, "deferral_timeout", None):
        return started_anew(trigger, seconds_ago=AGO, of=timeout)
    return trigger


def read(next_kwargs):
    """Return what a task resumes with, as a worker reads it."""
    from airflow.serialization.serialized_objects import BaseSerialization

    stored = json.loads(next_kwargs)
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
    assert deferral.trigger.memory["seconds_waited"] >= AGO


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


def check_nothing_is_renamed(before, arguments):
    """Check that all that was stored is stored still: under the same names, and with the same types."""
    kept = without_additions(before, arguments)
    assert shape(before) == shape(kept), "a task that waits would lose an argument that was renamed"


def without_additions(before, after):
    """Return a value without the names that were not stored before."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return after
    return {name: without_additions(before[name], value) for name, value in after.items() if name in before}


def written_now(task):
    """Return what a task stores today: its trigger's class and arguments, and how it is resumed."""
    if getattr(task, "start_from_trigger", False):
        start = task.start_trigger_args
        return start.trigger_cls, start.trigger_kwargs, start.next_method
    deferral = deferred(task.execute, CONTEXT)
    return *deferral.trigger.serialize(), deferral.method_name


@pytest.mark.parametrize("task_id", TASK_IDS)
def test_what_was_stored_is_stored_still_under_the_same_names(task_of, task_id):
    rows = [recorded["tasks"][task_id] for (_, airflow), recorded in RECORDED.items() if airflow == THIS]

    classpath, arguments, next_method = written_now(task_of(task_id))

    assert {(row["classpath"], row["next_method"]) for row in rows} == {(classpath, next_method)}
    for before in map(arguments_of, rows):
        check_nothing_is_renamed(before, arguments)


@airflow_3
def test_what_was_stored_of_a_watcher_is_stored_still_under_the_same_names(dags):
    rows = [recorded["watcher"] for (_, airflow), recorded in RECORDED.items() if airflow == THIS]

    classpath, arguments = dags["trigger"].serialize()

    assert {row["classpath"] for row in rows} == {classpath}
    for row in rows:
        check_nothing_is_renamed(arguments_of(row), arguments)


# What a later release leaves

LATER = {"opens_at": "noon", "memory_of_days": [1, 2]}


@pytest.mark.parametrize("task_id", ["classic", "decorated"])
def test_an_argument_of_a_later_release_is_kept_handed_on_and_ignored(simulator, task_of, task_id):
    path, arguments = deferred(task_of(task_id).execute, CONTEXT).trigger.serialize()
    later = StabilityBalanceTrigger(**json.loads(json.dumps(arguments | LATER)))
    simulator.set_credits(RICH)

    assert later.serialize() == (path, arguments | LATER)
    payload = fire(later).payload
    assert (payload["verdict"], payload["credits"]) == ("open", RICH)


def test_an_argument_that_is_missing_has_a_default(simulator, task_of):
    arguments = deferred(task_of("expecting").execute, CONTEXT).trigger.serialize()[1]
    kept = ("stability_conn_id", "organization", "minimum_credits", "poke_interval", "timeout")
    simulator.set_credits(RICH)

    assert (
        fire(StabilityBalanceTrigger(**{name: arguments[name] for name in kept})).payload["verdict"] == "open"
    )


SHARED = {"event": {"verdict": "shared"}}


def poll_again(task, memory):
    """Let a task go on with a verdict of a later release; return the trigger that it defers with."""
    event = {"verdict": "shared", "text": "It opens at noon.", "memory": memory, "seconds": AGO}
    return deferred(task.resume_execution, "execute_complete", {"event": event}, CONTEXT).trigger


@pytest.mark.parametrize("task_id", ["classic", "expecting"])
def test_a_verdict_of_a_later_release_makes_a_gate_poll_again_by_its_first_deadline(
    simulator, task_of, task_id
):
    first = deferred(task_of(task_id).execute, CONTEXT).trigger
    simulator.clear_requests()

    again = poll_again(task_of(task_id), first.memory | {"paid": 3})

    assert len(simulator.requests) == 1
    kept = ("timeout", "minimum_credits", "expected_credits")
    assert {name: getattr(again, name) for name in kept} == {name: getattr(first, name) for name in kept}
    assert again.waited == again.memory["waited"] == pytest.approx(first.waited + AGO, abs=10)
    assert again.deferral_timeout == pytest.approx(first.deferral_timeout - AGO, abs=10)


def test_a_verdict_that_only_a_later_release_knows_is_logged(simulator, task_of, logged):
    poll_again(task_of("classic"), None)

    assert "another release has sent the verdict 'shared'. It opens at noon." in logged()


@pytest.mark.skipif(not STARTS_IN_TRIGGERER, reason="this Airflow starts every task on a worker")
def test_a_gate_that_no_worker_has_seen_polls_for_an_unknown_verdict(simulator, task_of):
    again = poll_again(task_of("starts_in_triggerer"), None)

    assert len(simulator.requests) == 1
    assert again.waited == pytest.approx(AGO, abs=10)


@pytest.mark.parametrize("task_id", ["decorated", "spend_refused"])
def test_a_verdict_of_a_later_release_makes_a_spending_task_poll_again_and_forget_nothing(
    simulator, task_of, task_id
):
    first = deferred(task_of(task_id).execute, CONTEXT).trigger
    memory = first.memory | {"refusals": 1, "last_pause": 45.0, "paid": 3}
    simulator.set_credits(POOR)
    simulator.set_credits(POOR, "org-other")
    simulator.clear_requests()

    again = poll_again(task_of(task_id), memory)

    assert len(simulator.requests) == 1
    assert simulator.images_made == 0
    assert again.memory.keys() == first.memory.keys()
    remembered = ("refusals", "last_pause", "last_refusal", "try_number")
    assert {name: again.memory[name] for name in remembered} == {name: memory[name] for name in remembered}
    assert again.memory["seconds_waited"] == first.memory["seconds_waited"] + AGO


def test_a_gate_that_looks_again_opens_if_there_is_credit_by_now(simulator, task_of):
    simulator.set_credits(RICH)

    assert task_of("classic").resume_execution("execute_complete", SHARED, CONTEXT) == RICH


def test_a_gate_that_looks_again_fails_as_one_that_starts(simulator, task_of):
    simulator.inject(Fault.status(401))

    with pytest.raises(AirflowFailException, match="answered 401"):
        task_of("classic").resume_execution("execute_complete", SHARED, CONTEXT)


@airflow_3
def test_a_watchers_argument_that_is_in_no_release_is_a_type_error():
    from airflow_stability.triggers.events import StabilityBalanceEventTrigger

    with pytest.raises(TypeError, match=r"StabilityBalanceEventTrigger has no argument treshold$"):
        StabilityBalanceEventTrigger(threshold=8, direction="above", treshold=8)


def watcher_of_a_later_release(dags, **changes):
    return type(dags["trigger"])(**dags["trigger"].serialize()[1] | {"poke_interval": 0.1} | changes)


@airflow_3
def test_a_watcher_ignores_what_only_a_later_release_knows_and_hands_it_on(simulator, dags):
    later = watcher_of_a_later_release(dags, between=["8:00", "18:00"])

    async def main():
        async with Watch(simulator, later) as watch:
            await watch.polls()
            simulator.set_credits(RICH)
            await watch.until(lambda: watch.fired)
            await watch.polls(3)
            return len(watch.fired)

    assert asyncio.run(main()) == 1
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
    reason = f"has stored an argument that this one cannot use: {next(iter(changes))} must be"
    assert logged().count(reason) == 1
