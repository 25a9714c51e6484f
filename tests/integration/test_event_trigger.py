"""The trigger of an asset's watcher on the simulator: events at crossings, and at nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json

import pytest

from airflow_stability.compat import AIRFLOW_VERSION
from airflow_stability.simulator import Fault, StabilitySimulator
from airflow_stability.triggers import shared_connection
from tests.triggerer import gate_trigger

PUBLIC = "airflow_stability.triggers.events"
ALIAS = "airflow_stability.triggers.stability"

pytestmark = pytest.mark.usefixtures("connection")
airflow_3 = pytest.mark.skipif(AIRFLOW_VERSION < (3, 0), reason="Airflow 2.11 has no asset watchers")


def trigger(*, interval_when_refused=300.0, **changes):
    from airflow_stability.triggers.events import StabilityBalanceEventTrigger

    arguments = {"threshold": 50, "direction": "above", "poke_interval": 0.1}
    made = StabilityBalanceEventTrigger(**arguments | changes)
    made.poll_interval_after_permanent_failure = interval_when_refused
    return made


def balances(simulator):
    """Return the requests for a balance."""
    return [record for record in simulator.requests if record.path.endswith("/balance")]


class Watch:
    """A trigger as a triggerer runs it: what it fires is kept; what it raises comes out."""

    def __init__(self, simulator, trigger, store=None):
        self.simulator = simulator
        self.trigger = trigger
        self.fired = []
        if store is not None:
            trigger.asset_state_store = store

    async def __aenter__(self):
        self.task = asyncio.create_task(self.run())
        return self

    async def __aexit__(self, *exception):
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    async def run(self):
        async for event in self.trigger.run():
            self.fired.append(event.payload)

    async def polls(self, count=2):
        """Wait until the balance was asked for as many times more, and what came of it was seen."""
        asked = len(balances(self.simulator))
        await self.until(lambda: len(balances(self.simulator)) >= asked + count)

    async def until(self, condition):
        # On a busy machine, the first poll of a process alone has taken ten seconds.
        async with asyncio.timeout(30):
            while not condition():
                assert not self.task.done(), self.task
                await asyncio.sleep(0.01)

    async def says(self, text, logged):
        """Wait until a text is in the log."""
        await self.until(lambda: text in logged())


class Store:
    """Airflow's store of an asset, as far as a trigger uses it; fails while told to."""

    def __init__(self):
        self.values = {}
        self.writes = []
        self.reads_fail = self.writes_fail = False

    async def aget(self, key, default=None):
        if self.reads_fail:
            raise RuntimeError("the API server is gone")
        return self.values.get(key, default)

    async def aset(self, key, value):
        if self.writes_fail:
            raise RuntimeError("the API server is gone")
        self.values[key] = value
        self.writes.append(value)


@pytest.mark.skipif(AIRFLOW_VERSION >= (3, 0), reason="it is there on Airflow 3")
@pytest.mark.parametrize(
    ("module", "name"),
    [
        (PUBLIC, "StabilityBalanceEventTrigger"),
        (ALIAS, "StabilityBalanceEventTrigger"),
        ("airflow_stability.triggers.budget_events", "StabilityBudgetEventTrigger"),
        (ALIAS, "StabilityBudgetEventTrigger"),
    ],
)
def test_on_airflow_2_it_says_what_it_needs(module, name):
    importlib.import_module(ALIAS)  # what else is in there has to be importable

    with pytest.raises(ImportError) as refusal:
        exec(f"from {module} import {name}")

    assert str(refusal.value) == (
        "StabilityBalanceEventTrigger and StabilityBudgetEventTrigger need Airflow 3 or later: Airflow 2.11 "
        "has no asset watchers."
    )


@airflow_3
def test_it_is_made_anew_from_what_it_serializes():
    first = trigger(
        threshold="12.5", direction="below", margin=3, organization="org-1", stability_conn_id="c"
    )

    path, arguments = first.serialize()

    module, _, name = path.rpartition(".")
    assert getattr(importlib.import_module(module), name) is type(first)
    assert type(first)(**arguments).serialize() == first.serialize()
    assert arguments == {
        "threshold": 12.5,
        "direction": "below",
        "margin": 3.0,
        "organization": "org-1",
        "stability_conn_id": "c",
        "poke_interval": 0.1,
        "stored": True,
    }


@airflow_3
def test_airflow_takes_it_for_a_watcher_and_finds_it_equal_to_what_it_stored():
    from airflow.models.trigger import Trigger
    from airflow.sdk import AssetWatcher
    from airflow.triggers.base import BaseEventTrigger

    watcher = AssetWatcher(name="balance", trigger=trigger())
    stored = Trigger.from_object(trigger())

    # Unequal, Airflow makes another trigger each time that it parses the DAG.
    assert BaseEventTrigger.hash(*watcher.trigger.serialize()) == BaseEventTrigger.hash(
        stored.classpath, stored.kwargs
    )


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 4), reason="before, a watcher's trigger is in no queue")
def test_airflow_finds_it_unequal_in_another_queue():
    from airflow.triggers.base import BaseEventTrigger

    stored = trigger(queue="credits").serialize()

    assert trigger(**stored[1]).queue == "credits"
    assert BaseEventTrigger.hash(*trigger(queue="others").serialize()) != BaseEventTrigger.hash(*stored)
    assert "queue" not in trigger().serialize()[1]  # so that an update of this package makes no other trigger


@airflow_3
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"threshold": "many"}, "threshold must be a finite number of credits"),
        ({"direction": "sideways"}, "direction must be 'above' or 'below'"),
        ({"margin": -1}, "margin must be a finite number of credits"),
        ({"margin": 51}, "margin must not be more than the threshold of 50"),
        ({"organization": "my org"}, "organization must be an id"),
        ({"stability_conn_id": ""}, "stability_conn_id must be the id of a connection"),
        ({"poke_interval": 0}, "poke_interval must be a finite number of seconds, more than 0"),
        ({"queue": ""}, "queue must be the name of a queue"),
    ],
)
def test_an_argument_that_cannot_work_is_refused_in_the_dag_file(changes, text):
    with pytest.raises(ValueError, match=text):
        trigger(**changes)


@pytest.mark.skipif(
    not (3, 0) <= AIRFLOW_VERSION < (3, 4), reason="Airflow 3.4 puts the trigger of a watcher into a queue"
)
def test_a_queue_is_refused_where_airflow_would_ignore_it():
    with pytest.raises(ValueError, match=r"queue needs Airflow 3\.4 or later.*got 'credits'"):
        trigger(queue="credits")


@airflow_3
@pytest.mark.parametrize(("direction", "first", "second"), [("above", 2.0, 50.5), ("below", 50.5, 50.0)])
def test_it_fires_once_per_crossing_and_never_at_the_polls_between(simulator, direction, first, second):
    simulator.set_credits(first)

    async def main():
        async with Watch(simulator, trigger(direction=direction)) as watch:
            await watch.polls(3)
            assert watch.fired == []
            simulator.set_credits(second)
            await watch.polls(5)
            assert len(watch.fired) == 1
            simulator.set_credits(first)
            await watch.polls(3)
            simulator.set_credits(second)
            await watch.polls(5)
            return watch.fired

    fired = asyncio.run(main())

    assert [(each["previous_credits"], each["credits"]) for each in fired] == [(first, second)] * 2


@airflow_3
def test_the_payload_tells_all_of_the_crossing(simulator):
    simulator.set_credits(0.5, "org-other")

    async def main():
        async with Watch(simulator, trigger(threshold=3, organization="org-other")) as watch:
            await watch.polls()
            simulator.set_credits(4.25, "org-other")
            await watch.until(lambda: watch.fired)
            return watch.fired

    (payload,) = asyncio.run(main())

    time = payload.pop("time")
    assert time.endswith("+00:00")
    assert payload == {
        "credits": 4.25,
        "previous_credits": 0.5,
        "threshold": 3.0,
        "direction": "above",
        "organization": "org-other",
    }


@airflow_3
def test_with_a_margin_a_hovering_balance_fires_once(simulator):
    simulator.set_credits(2.0)

    async def main():
        async with Watch(simulator, trigger(margin=10)) as watch:
            for credits in (2.0, 51.0, 49.0, 51.0, 41.0, 51.0):
                simulator.set_credits(credits)
                await watch.polls(3)
            return watch.fired

    assert len(asyncio.run(main())) == 1


@airflow_3
@pytest.mark.parametrize(
    "trouble",
    [Fault.status(503), Fault.status(401), Fault.reset(), Fault.truncated()],
    ids=["503", "401", "reset", "truncated"],
)
def test_trouble_neither_ends_it_nor_hides_a_crossing(simulator, trouble):
    simulator.set_credits(2.0)

    async def main():
        async with Watch(simulator, trigger(interval_when_refused=0.3)) as watch:
            await watch.polls()
            simulator.inject(trouble)
            await watch.polls(3)
            simulator.set_credits(60.0)
            await watch.polls(2)
            assert watch.fired == []
            simulator.clear_faults()
            await watch.until(lambda: watch.fired)
            await watch.polls(3)
            return watch.fired

    assert [payload["previous_credits"] for payload in asyncio.run(main())] == [2.0]


@airflow_3
def test_a_missing_connection_does_not_end_it(simulator, monkeypatch, connection, logged):
    monkeypatch.delenv("AIRFLOW_CONN_STABILITY_DEFAULT")

    async def main():
        async with Watch(simulator, trigger(interval_when_refused=0.1)) as watch:
            await watch.says("stability_default", logged)
            connection()
            await watch.polls()

    asyncio.run(main())


@airflow_3
def test_a_refused_key_is_tried_less_often_and_a_new_one_is_found(simulator, connection, logged):
    key = simulator.api_key

    async def main():
        async with Watch(simulator, trigger(interval_when_refused=1.0)) as watch:
            await watch.polls()
            new = simulator.rotate_key(key)
            await watch.until(lambda: simulator.requests[-1].status == 401)
            refused = len(simulator.requests)
            await asyncio.sleep(0.7)
            assert len(simulator.requests) == refused
            connection(new)
            await watch.until(lambda: simulator.requests[-1].status == 200)
            await asyncio.wait_for(watch.polls(5), 2)

    asyncio.run(main())

    log = logged()
    (said,) = [line for line in log.splitlines() if "is unknown" in line]
    assert "warning" in said.lower()
    assert "Check the API key" in said
    assert "the balance is polled less often" in said
    assert key not in log


@airflow_3
def test_many_watchers_share_one_poll(simulator):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            watches = [Watch(simulator, trigger(threshold=30 + number)) for number in range(20)]
            for watch in watches:
                await stack.enter_async_context(watch)
            await watches[0].polls(3)
            simulator.set_credits(60.0)
            for watch in watches:
                await watch.until(lambda watch=watch: watch.fired)
            return [record.monotonic for record in balances(simulator)]

    calls = asyncio.run(main())

    assert len(calls) <= (calls[-1] - calls[0]) / 0.1 + 2


@airflow_3
def test_a_cancelled_one_leaves_no_poll_running(simulator):
    async def main():
        async with Watch(simulator, trigger()) as watch:
            await watch.polls()
        async with asyncio.timeout(5):
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.01)

    asyncio.run(main())


@airflow_3
def test_what_nobody_thought_of_does_not_end_it(simulator, logged):
    async def main():
        refusals = iter([True])

        def refuse_once(loop, coroutine, **options):
            # The feed's own task is the first that the trigger has made.
            if "Feed._run" in repr(coroutine) and next(refusals, False):
                coroutine.close()
                raise RuntimeError("no more tasks")
            return asyncio.Task(coroutine, loop=loop, **options)

        asyncio.get_running_loop().set_task_factory(refuse_once)
        async with Watch(simulator, trigger()) as watch:
            await watch.polls()

    asyncio.run(main())

    assert "no more tasks" in logged()


@airflow_3
def test_remembered_across_a_restart_it_does_not_fire_again(simulator):
    simulator.set_credits(2.0)
    store = Store()

    async def crosses():
        async with Watch(simulator, trigger(), store) as watch:
            await watch.polls()
            simulator.set_credits(60.0)
            await watch.until(lambda: store.writes[-1]["credits"] == 60.0)
            return watch.fired

    async def restarted():
        async with Watch(simulator, trigger(), store) as watch:
            await watch.polls(4)
            return watch.fired

    assert len(asyncio.run(crosses())) == 1
    assert asyncio.run(restarted()) == []


async def gets_to_know_the_balance(simulator, store, **changes):
    async with Watch(simulator, trigger(**changes), store) as watch:
        await watch.until(lambda: store.writes)


@airflow_3
@pytest.mark.parametrize(("direction", "before", "after"), [("above", 2.0, 60.0), ("below", 60.0, 2.0)])
def test_remembered_across_a_restart_a_crossing_meanwhile_fires(simulator, direction, before, after):
    simulator.set_credits(before)
    store = Store()
    asyncio.run(gets_to_know_the_balance(simulator, store, direction=direction))
    simulator.set_credits(after)

    async def restarted():
        async with Watch(simulator, trigger(direction=direction), store) as watch:
            await watch.until(lambda: watch.fired)
            await watch.polls(3)
            return watch.fired

    (payload,) = asyncio.run(restarted())

    assert (payload["previous_credits"], payload["credits"]) == (before, after)


@airflow_3
def test_without_a_memory_a_crossing_meanwhile_is_missed_and_nothing_fires_twice(simulator):
    simulator.set_credits(60.0)

    async def restarted():
        async with Watch(simulator, trigger()) as watch:
            await watch.polls(3)
            return watch.fired

    assert asyncio.run(restarted()) == []


@airflow_3
def test_killed_before_airflow_can_have_stored_the_event_it_fires_again(simulator):
    simulator.set_credits(2.0)
    store = Store()

    async def is_killed():
        async with Watch(simulator, trigger(poke_interval=0.5), store) as watch:
            await watch.until(lambda: store.writes)
            simulator.set_credits(60.0)
            await watch.until(lambda: watch.fired)

    async def restarted():
        async with Watch(simulator, trigger(), store) as watch:
            await watch.until(lambda: watch.fired)

    asyncio.run(is_killed())
    asyncio.run(restarted())


@airflow_3
def test_two_triggers_of_one_asset_have_each_their_own_memory(simulator, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_OTHER", f"{simulator.connection_uri()}?api_version=v1")
    store = Store()
    different = [
        {},
        {"threshold": 51},
        {"direction": "below"},
        {"margin": 1},
        {"organization": "org-other"},
        {"stability_conn_id": "stability_other"},
    ]

    async def main():
        async with contextlib.AsyncExitStack() as stack:
            for changes in different:
                watch = Watch(simulator, trigger(**changes), store)
                await stack.enter_async_context(watch)
            await watch.until(lambda: len(store.values) == len(different))

    asyncio.run(main())


@airflow_3
def test_it_writes_what_is_news_only(simulator):
    simulator.set_credits(2.0)
    store = Store()

    async def main():
        async with Watch(simulator, trigger(), store) as watch:
            await watch.polls(5)
            simulator.set_credits(3.0)
            await watch.polls(5)

    asyncio.run(main())

    state = {"armed": True, "organization": "org-default"}
    assert store.writes == [state | {"credits": 2.0}, state | {"credits": 3.0}]


@airflow_3
def test_a_store_that_cannot_be_written_neither_ends_it_nor_loses_an_event(simulator, logged):
    simulator.set_credits(2.0)
    store = Store()

    async def main():
        async with Watch(simulator, trigger(), store) as watch:
            await watch.until(lambda: store.writes)
            store.writes_fail = True
            simulator.set_credits(60.0)
            await watch.until(lambda: watch.fired)
            await watch.polls(3)
            store.writes_fail = False
            await watch.until(lambda: not store.writes[-1]["armed"])
            return watch.fired

    assert len(asyncio.run(main())) == 1
    assert logged().count("could not be stored (RuntimeError: the API server is gone)") == 1


@airflow_3
def test_a_store_that_cannot_be_read_at_first_is_not_overwritten_and_counts_later(simulator, logged):
    simulator.set_credits(2.0)
    store = Store()
    asyncio.run(gets_to_know_the_balance(simulator, store))
    known = list(store.writes)
    simulator.set_credits(60.0)
    store.reads_fail = True

    async def restarted():
        async with Watch(simulator, trigger(), store) as watch:
            await watch.polls(3)
            assert watch.fired == []
            assert store.writes == known
            store.reads_fail = False
            await watch.until(lambda: watch.fired)

    asyncio.run(restarted())

    assert logged().count("could not be read (RuntimeError: the API server is gone)") == 1


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 3), reason="asset state stores came with Airflow 3.3")
def test_several_assets_with_one_trigger_have_no_memory_and_are_told_so(simulator, logged):
    from airflow.sdk import Asset
    from airflow.sdk.execution_time.context import AssetStateStoreAccessors

    simulator.set_credits(2.0)
    store = AssetStateStoreAccessors(inlets=[Asset("one"), Asset("two")])

    async def main():
        async with Watch(simulator, trigger(), store) as watch:
            await watch.polls()
            simulator.set_credits(60.0)
            await watch.until(lambda: watch.fired)

    asyncio.run(main())

    assert "Several assets with the same trigger have no state store." in logged()


# Another wallet behind the same connection


@pytest.fixture
def rich():
    """Another server, where each organization has credits that cross no threshold by themselves."""
    with StabilitySimulator(credits=60.0) as other:
        other.set_credits(60.0, "org-other")
        yield other


@pytest.fixture
def edit(simulator, rich, monkeypatch):
    """Return a function that edits the connection; 2 credits are behind it before, 60 after."""
    simulator.set_credits(2.0)
    simulator.set_credits(60.0, "org-other")
    simulator.add_account("user-2", "someone@example.org", ["org-other", "org-default"])
    other_key = simulator.add_key(account="user-2")

    def edit(what):
        server = rich if what == "host" else simulator
        uri = server.connection_uri(other_key if what == "key" else None)
        organization = "&organization=org-other" if what == "organization" else ""
        monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", f"{uri}?api_version=v1{organization}")

    return edit


@airflow_3
@pytest.mark.parametrize("account", ["can be read", "cannot be read"])
@pytest.mark.parametrize("what", ["organization", "key", "host"])
def test_a_connection_that_leads_to_another_wallet_fires_nothing(
    what, account, simulator, rich, edit, logged
):
    server = rich if what == "host" else simulator
    if account == "cannot be read":
        for each in (simulator, rich):
            each.inject(Fault.status(404), path="/v1/user/account")
    store = Store()

    async def main():
        async with Watch(simulator, trigger(), store) as watch:
            await watch.until(lambda: store.writes)
            edit(what)
            await watch.until(lambda: store.writes[-1]["credits"] == 60.0)
            await watch.until(lambda: len(balances(server)) > 3)
            assert watch.fired == []
            for credits in (1.0, 70.0):  # from here on, it watches as ever
                for organization in ("org-default", "org-other"):
                    server.set_credits(credits, organization)
                await watch.until(lambda credits=credits: store.writes[-1]["credits"] == credits)
            return watch.fired

    (payload,) = asyncio.run(main())

    assert (payload["previous_credits"], payload["credits"]) == (1.0, 70.0)
    assert logged().count("leads to other credits than before") == 1


@airflow_3
def test_a_watch_begins_anew_once_the_key_is_known_to_have_another_default(simulator, monkeypatch, logged):
    monkeypatch.setattr(shared_connection, "DEFAULT_ORGANIZATION_SECONDS", 0.3)
    simulator.set_credits(2.0)
    memberships = [{"id": "org-other", "name": "Other", "role": "MEMBER", "is_default": True}]
    account = {"id": "user-1", "email": "user-1@example.com", "organizations": memberships}
    store = Store()

    async def main():
        async with Watch(simulator, trigger(), store) as watch:
            await watch.until(lambda: store.writes)
            simulator.inject(Fault.body(json.dumps(account)), path="/v1/user/account")
            await watch.until(lambda: store.writes[-1]["organization"] == "org-other")
            simulator.set_credits(60.0)
            await watch.until(lambda: watch.fired)
            return watch.fired

    assert asyncio.run(main())[0]["previous_credits"] == 2.0
    assert logged().count("leads to other credits than before") == 1


@airflow_3
@pytest.mark.parametrize("what", ["organization", "key"])
def test_a_connection_that_leads_to_another_wallet_after_a_restart_fires_nothing(what, simulator, edit):
    store = Store()
    asyncio.run(gets_to_know_the_balance(simulator, store))
    edit(what)

    async def restarted():
        async with Watch(simulator, trigger(), store) as watch:
            await watch.until(lambda: store.writes[-1]["credits"] == 60.0)
            await watch.polls(3)
            return watch.fired

    assert asyncio.run(restarted()) == []
    assert store.writes == [
        {"armed": True, "credits": 2.0, "organization": "org-default"},
        {"armed": False, "credits": 60.0, "organization": "org-other"},
    ]


@airflow_3
def test_beside_a_gate_another_wallet_after_a_restart_fires_nothing_either(simulator, edit):
    store = Store()
    asyncio.run(gets_to_know_the_balance(simulator, store))
    edit("key")
    gate = gate_trigger(poke_interval=1.0)

    async def restarted():
        asked = len(balances(simulator))
        waiting = asyncio.ensure_future(anext(aiter(gate.run())))
        while len(balances(simulator)) == asked:  # the gate does not ask for the account
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        async with Watch(simulator, trigger(poke_interval=1.0), store) as watch:
            await watch.until(lambda: store.writes[-1]["credits"] == 60.0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return watch.fired

    assert asyncio.run(restarted()) == []


@airflow_3
@pytest.mark.parametrize("names", ["", "&organization=org-default"])
@pytest.mark.parametrize("restart", [False, True])
def test_a_crossing_while_the_key_of_the_wallet_is_rotated_fires(names, restart, simulator, monkeypatch):
    simulator.set_credits(2.0)
    store = Store()

    def connect(key=None):
        uri = f"{simulator.connection_uri(key)}?api_version=v1{names}"
        monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", uri)

    def rotate():
        new = simulator.rotate_key(simulator.api_key)
        simulator.set_credits(60.0)
        connect(new)

    async def rotated():
        async with Watch(simulator, trigger(interval_when_refused=0.1), store) as watch:
            if not restart:
                await watch.until(lambda: store.writes)
                rotate()
            await watch.until(lambda: watch.fired)
            return watch.fired

    connect()
    if restart:
        asyncio.run(gets_to_know_the_balance(simulator, store))
        rotate()
    (payload,) = asyncio.run(rotated())

    assert (payload["previous_credits"], payload["credits"]) == (2.0, 60.0)


@airflow_3
def test_the_account_is_read_once_for_each_key_and_not_at_all_for_a_named_organization(simulator):
    def accounts():
        return [record for record in simulator.requests if record.path.endswith("/account")]

    async def main():
        async with Watch(simulator, trigger(organization="org-other")) as named:
            await named.polls(3)
            assert accounts() == []
        async with Watch(simulator, trigger()) as watch:
            await watch.polls(5)

    asyncio.run(main())

    assert len(accounts()) == 1
