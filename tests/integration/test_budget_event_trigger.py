"""The trigger of a budget's watcher, on a ledger in SQLite: events at the soft limit, and at nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
from datetime import timedelta
from urllib.parse import quote

import pytest
from sqlalchemy import event, select

from airflow_stability.hooks.ledger import open_ledger
from airflow_stability.ledger.ledger import Hold, Spender
from airflow_stability.ledger.schema import budgets, spends
from tests.integration.test_event_trigger import Store, Watch, airflow_3
from tests.triggerer import WHO_LOADS, output_of

pytestmark = airflow_3
CONNECTION = "stability://:sk-KEY@?api_version=v1"


@pytest.fixture
def ledger(monkeypatch, tmp_path):
    """A ledger with a budget of 10 credits, which is reported at 8."""
    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", f"{CONNECTION}&ledger_conn_id=the_ledger")
    monkeypatch.setenv("AIRFLOW_CONN_THE_LEDGER", f"sqlite:///{quote(str(tmp_path / 'ledger.db'))}")
    ledger = open_ledger("the_ledger")
    ledger.database.init()
    ledger.set_budget("images", 10, "total", soft_percent=80)
    yield ledger
    ledger.database.engine.dispose()
    open_ledger("the_ledger").database.engine.dispose()


_numbers = iter(range(1000))


def spend(ledger, credits):
    """Hold credits of the budget; return the key of the hold."""
    key = f"spend-{next(_numbers)}"
    assert ledger.hold([Hold(key, Spender("stability_default", budget="images"), credits)]).held == [key]
    return key


def trigger(*, interval_when_refused=0.1, **changes):
    from airflow_stability.triggers.budget_events import StabilityBudgetEventTrigger

    made = StabilityBudgetEventTrigger(**{"budget": "images", "poke_interval": 0.05} | changes)
    made.poll_interval_after_permanent_failure = interval_when_refused
    return made


@contextlib.contextmanager
def readings(ledger):
    """Return a list that grows with each reading of the ledger's budgets."""
    seen = []

    def take_note(_connection, _cursor, statement, *_):
        if "FROM stability_budgets" in statement:
            seen.append(statement)

    event.listen(ledger.database.engine, "after_cursor_execute", take_note)
    yield seen
    event.remove(ledger.database.engine, "after_cursor_execute", take_note)


def watched(ledger, *steps, store=None, **changes):
    """Run a trigger; after each step, let it read the ledger some more times. Return its events by step."""

    async def main():
        fired = []
        with readings(ledger) as read:
            async with Watch(None, trigger(**changes), store) as watch:
                for step in (lambda: None, *steps):
                    step()
                    before, seen = len(watch.fired), len(read)
                    await watch.until(lambda seen=seen: len(read) >= seen + 3)
                    fired.append(watch.fired[before:])
        return fired

    return asyncio.run(main())


def test_it_is_made_anew_from_what_it_serializes():
    first = trigger(budget="marketing", stability_conn_id="c", poke_interval=timedelta(minutes=2))

    path, arguments = first.serialize()

    module, _, name = path.rpartition(".")
    assert getattr(importlib.import_module(module), name) is type(first)
    assert type(first)(**arguments).serialize() == first.serialize()
    assert arguments == {
        "budget": "marketing",
        "stability_conn_id": "c",
        "poke_interval": 120.0,
        "stored": True,
    }


def test_airflow_takes_it_for_a_watcher_and_finds_it_equal_to_what_it_stored():
    from airflow.models.trigger import Trigger
    from airflow.sdk import AssetWatcher
    from airflow.triggers.base import BaseEventTrigger

    watcher = AssetWatcher(name="budget", trigger=trigger())
    stored = Trigger.from_object(trigger())

    assert BaseEventTrigger.hash(*watcher.trigger.serialize()) == BaseEventTrigger.hash(
        stored.classpath, stored.kwargs
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"budget": None}, r"budget must be a name of 1 to 100 printable .* around it; got None"),
        ({"budget": ""}, "budget must be a name of 1 to 100 printable characters"),
        ({"stability_conn_id": ""}, "stability_conn_id must be the id of a connection"),
        ({"poke_interval": 0}, "poke_interval must be a finite number of seconds, more than 0"),
        ({"queue": ""}, "queue must be the name of a queue"),
    ],
)
def test_an_argument_that_cannot_work_is_refused_in_the_dag_file(changes, text):
    with pytest.raises(ValueError, match=text):
        trigger(**changes)


def test_an_argument_that_is_in_no_release_is_a_type_error():
    with pytest.raises(TypeError, match=r"StabilityBudgetEventTrigger has no argument limit$"):
        trigger(limit=8)


@pytest.mark.parametrize("changes", [{"budget": ["a", "b"]}, {"poke_interval": "daily"}])
def test_what_only_a_later_release_can_run_neither_ends_nor_fires(ledger, logged, changes):
    later = trigger(stored=True, **changes)

    async def main():
        with readings(ledger) as read:
            async with Watch(None, later) as watch:
                await asyncio.sleep(0.3)
                assert not watch.task.done()
        assert not read

    asyncio.run(main())

    assert f"has stored an argument that this one cannot use: {next(iter(changes))} must be" in logged()


def test_what_only_a_later_release_knows_is_ignored_and_handed_on(ledger, logged):
    later = {"hours": ["8:00", "18:00"], "stored": True}

    _, ((event,)) = watched(ledger, lambda: spend(ledger, 8), **later)

    assert event
    assert trigger(**later).serialize()[1]["hours"] == ["8:00", "18:00"]
    assert "Arguments that only another release knows are ignored: hours." in logged()


def test_the_payload_tells_all_of_the_crossing(ledger):
    ledger.set_budget("images", 12.5, "month", soft_percent=40, timezone="Europe/Paris")

    _, (payload,) = watched(ledger, lambda: spend(ledger, 5))

    (budget,) = ledger.budgets()
    assert payload == {
        "budget": "images",
        "used": 5.0,
        "limit": 12.5,
        "soft_percent": 40,
        "reached_at": f"{budget.soft_reached_at.isoformat()}+00:00",
        "renews_at": f"{budget.period.ends_at.isoformat()}+00:00",
    }


def test_it_fires_once_and_not_when_the_budget_sinks_and_rises_again(ledger):
    held = []
    fired = watched(
        ledger,
        lambda: held.append(spend(ledger, 7)),
        lambda: held.append(spend(ledger, 1)),
        lambda: ledger.end(held[0], "void"),
        lambda: spend(ledger, 9),
    )

    assert [len(events) for events in fired] == [0, 0, 1, 0, 0]
    assert (fired[2][0]["used"], fired[2][0]["renews_at"]) == (8.0, None)


def a_week_passes(ledger):
    """Let all that the ledger has noted be a week older."""
    week = timedelta(days=7)

    def work(connection, _now):
        for table, columns in ((spends, ["held_at"]), (budgets, ["starts_at", "ends_at", "soft_reached_at"])):
            for row in connection.execute(select(table)):
                key = next(iter(table.primary_key))
                older = {name: value and value - week for name in columns for value in [getattr(row, name)]}
                connection.execute(table.update().where(key == getattr(row, key.name)).values(**older))

    ledger.database.run(work)


def test_it_fires_again_when_the_limit_is_reached_in_another_period(ledger):
    ledger.set_budget("images", 10, "week", soft_percent=80)
    fired = watched(
        ledger,
        lambda: spend(ledger, 8),
        lambda: a_week_passes(ledger),
        lambda: spend(ledger, 7),
        lambda: spend(ledger, 1),
    )

    assert [len(events) for events in fired] == [0, 1, 0, 0, 1]


def test_it_fires_again_when_a_changed_limit_is_reached(ledger):
    fired = watched(
        ledger,
        lambda: spend(ledger, 8),
        lambda: ledger.set_budget("images", 100, "total", soft_percent=80),
        lambda: spend(ledger, 72),
        lambda: ledger.set_budget("images", 100, "total", soft_percent=50),
    )

    assert [len(events) for events in fired] == [0, 1, 0, 1, 1]
    assert [events[0]["limit"] for events in fired if events] == [10.0, 100.0, 100.0]


def test_a_limit_that_was_reached_before_the_first_reading_fires_nothing(ledger):
    ledger.set_budget("images", 10, "week", soft_percent=80)
    spend(ledger, 8)

    fired = watched(ledger, lambda: a_week_passes(ledger), lambda: spend(ledger, 8))

    assert [len(events) for events in fired] == [0, 0, 1]


def test_a_budget_without_a_soft_limit_fires_nothing_and_the_log_says_so(ledger, logged):
    ledger.set_budget("images", 10, "total")

    assert watched(ledger, lambda: spend(ledger, 10)) == [[], []]
    assert logged().count("It has no soft limit, so no event is fired.") == 1


def test_remembered_across_a_restart_it_does_not_fire_again(ledger):
    store = Store()
    assert watched(ledger, lambda: spend(ledger, 8), store=store)[1]

    assert watched(ledger, store=store) == [[]]
    assert [write["reached_at"] is None for write in store.writes] == [True, False]


def test_remembered_across_a_restart_a_crossing_meanwhile_fires_once(ledger):
    store = Store()
    watched(ledger, store=store)
    spend(ledger, 8)

    assert [len(events) for events in watched(ledger, lambda: None, store=store)] == [1, 0]


def test_without_a_memory_a_crossing_meanwhile_is_missed(ledger):
    watched(ledger)
    spend(ledger, 8)

    assert watched(ledger) == [[]]


def test_killed_before_airflow_can_have_stored_the_event_it_fires_again(ledger):
    store = Store()
    watched(ledger, store=store)
    spend(ledger, 8)

    async def is_killed():
        async with Watch(None, trigger(poke_interval=5), store) as watch:
            await watch.until(lambda: watch.fired)

    asyncio.run(is_killed())

    assert len(watched(ledger, store=store)[0]) == 1


def test_two_triggers_of_one_asset_have_each_their_own_memory(ledger, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", f"{CONNECTION}&ledger_conn_id=the_ledger")
    ledger.set_budget("others", 10, "total", soft_percent=80)
    store = Store()
    for changes in ({}, {"budget": "others"}, {"stability_conn_id": "other"}):
        watched(ledger, store=store, **changes)

    assert len(store.values) == 3


def test_a_store_that_cannot_be_written_neither_ends_it_nor_loses_an_event(ledger, logged):
    store = Store()
    store.writes_fail = True

    assert [len(events) for events in watched(ledger, lambda: spend(ledger, 8), store=store)] == [0, 1]
    assert logged().count("could not be stored (RuntimeError: the API server is gone)") == 1


def test_a_budget_that_is_made_later_fires(ledger, logged):
    ledger.delete_budget("images")

    def make():
        ledger.set_budget("images", 10, "total", soft_percent=80)
        spend(ledger, 8)

    assert [len(events) for events in watched(ledger, make)] == [0, 1]
    assert logged().count("There is no budget 'images' in the ledger.") == 1


def test_what_a_person_must_mend_is_tried_less_often(ledger):
    ledger.delete_budget("images")

    async def main():
        with readings(ledger) as read:
            async with Watch(None, trigger(interval_when_refused=60)) as watch:
                await watch.until(lambda: read)
                await asyncio.sleep(0.5)
        return len(read)

    assert asyncio.run(main()) == 1


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("STABILITY_DEFAULT", None, "The conn_id `stability_default` isn't defined"),
        (
            "STABILITY_DEFAULT",
            CONNECTION,
            "Connection 'stability_default' names no ledger: set ledger_conn_id",
        ),
        ("STABILITY_DEFAULT", "aws://:key@", "is of the type 'aws', so its password is sent nowhere"),
        ("THE_LEDGER", None, "The conn_id `the_ledger` isn't defined"),
        ("THE_LEDGER", "http://somewhere", "of type 'http', and a ledger needs a database"),
        (
            "THE_LEDGER",
            "sqlite:////no/such/folder/ledger.db",
            "The ledger in connection 'the_ledger' is out of",
        ),
        ("THE_LEDGER", "sqlite:///EMPTY", "run `airflow stability ledger init` once"),
    ],
)
def test_trouble_neither_ends_it_nor_hides_a_crossing(
    ledger, monkeypatch, tmp_path, logged, name, value, text
):
    name = f"AIRFLOW_CONN_{name}"
    works = os.environ[name]
    if value is not None:
        value = value.replace("EMPTY", quote(str(tmp_path / "empty.db")))

    async def main():
        async with Watch(None, trigger(), store) as watch:
            await watch.until(lambda: store.writes)
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
            await watch.says(text, logged)
            spend(ledger, 8)
            await asyncio.sleep(0.3)
            assert watch.fired == []
            monkeypatch.setenv(name, works)
            await watch.until(lambda: watch.fired)
            await asyncio.sleep(0.3)
            return watch.fired

    store = Store()
    assert len(asyncio.run(main())) == 1
    assert logged().count(text) == 1


def test_what_nobody_thought_of_does_not_end_it(ledger, logged):
    ledger.set_budget("images", 10, "week", soft_percent=80)

    def change(timezone):
        ledger.database.run(
            lambda connection, _now: connection.execute(budgets.update().values(timezone=timezone))
        )

    fired = watched(
        ledger,
        lambda: change("Nowhere/Else"),
        lambda: change("UTC"),
        lambda: spend(ledger, 8),
    )

    assert [len(events) for events in fired] == [0, 0, 0, 1]
    assert "An unexpected error; the watch goes on." in logged()


def test_a_cancelled_one_leaves_nothing_running(ledger):
    async def main():
        async with Watch(None, trigger()) as watch:
            await asyncio.sleep(0.2)
            assert not watch.task.done()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


LOADS = """
async def main():
    from airflow_stability.triggers.budget_events import StabilityBudgetEventTrigger

    watch = StabilityBudgetEventTrigger(budget="images", poke_interval=0.05)
    sys.meta_path.insert(0, Finder())
    task = asyncio.ensure_future(anext(aiter(watch.run())))
    while "airflow_stability.ledger.ledger" not in loaded_by:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    task.cancel()

asyncio.run(main())
of_loop = [name for name, thread in loaded_by.items() if thread is threading.main_thread()]
print("loaded by the loop:", [name for name in of_loop if "stability" in name])
"""


@pytest.mark.starts_python
def test_the_event_loop_loads_nothing_for_a_ledger(ledger):
    assert "loaded by the loop: []" in output_of(WHO_LOADS + LOADS).splitlines()
