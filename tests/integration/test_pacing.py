"""Waiters that say what they spend, in one event loop: who is let go, and when."""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from airflow_stability.compat import TaskDeferred
from airflow_stability.sensors.stability import StabilityBalanceSensor
from airflow_stability.simulator import Fault
from airflow_stability.triggers import shared_connection
from airflow_stability.triggers.feed import loop_state, observations
from airflow_stability.triggers.stability import StabilityBalanceTrigger
from tests.triggerer import gate_trigger

pytestmark = pytest.mark.usefixtures("connection")


def trigger(number=0, **arguments):
    defaults = {
        "minimum_credits": 0,
        "expected_credits": 3,
        "poke_interval": 0.2,
        "timeout": 10_000,
        "waited": 1000.0 - number,
    }
    return gate_trigger(**defaults | arguments)


class Waiters:
    """Triggers that wait side by side, and the order in which they are let go."""

    def __init__(self, *triggers):
        self.let_go = []
        self._tasks = [asyncio.create_task(self._run(number, each)) for number, each in enumerate(triggers)]

    async def _run(self, number, each):
        async with contextlib.aclosing(each.run()) as events:
            async for event in events:
                assert event.payload["verdict"] == "open", event.payload
                self.let_go.append(number)

    async def until(self, count):
        """Wait until so many have been let go, and return who."""
        async with asyncio.timeout(20):
            while len(self.let_go) < count:
                await asyncio.sleep(0.01)
        return sorted(self.let_go)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        for each in self._tasks:
            each.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def polls(simulator, count):
    """Wait until the balance was asked for so many times more, and its followers were told."""
    goal = len(simulator.requests) + count + 1
    async with asyncio.timeout(10):
        while len(simulator.requests) < goal:
            await asyncio.sleep(0.01)


async def only_this_task():
    """Wait until every feed has ended."""
    async with asyncio.timeout(20):
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.01)


def test_a_top_up_lets_go_as_many_as_it_carries_and_the_oldest_first(simulator):
    simulator.set_credits(0.0)

    async def main():
        # The last one that came is the oldest.
        async with Waiters(*(trigger(-number) for number in range(200))) as waiters:
            await polls(simulator, 2)
            assert waiters.let_go == []
            simulator.top_up(31.0)
            await polls(simulator, 3)
            return waiters.let_go

    assert sorted(asyncio.run(main())) == list(range(190, 200))


def test_what_settles_without_being_spent_lets_others_go(simulator):
    simulator.set_credits(7.0)

    async def main():
        async with Waiters(*(trigger(number, reservation_seconds=1.0) for number in range(6))) as waiters:
            await polls(simulator, 2)
            return await waiters.until(4)

    assert asyncio.run(main()) == [0, 1, 2, 3]
    calls = [record.monotonic for record in simulator.requests]
    assert calls[-1] - calls[0] >= 1.0


def test_gates_that_say_nothing_open_all_together(simulator):
    async def main():
        silent = [trigger(number, expected_credits=None) for number in range(50)]
        async with Waiters(*silent, trigger(99)) as waiters:
            await waiters.until(51)

    asyncio.run(main())
    assert len(simulator.requests) == 1


def test_what_the_last_waiter_was_let_go_for_stays_reserved(simulator):
    simulator.set_credits(4.0)

    async def main():
        async with Waiters(trigger()) as first:
            await first.until(1)
        await only_this_task()
        async with Waiters(trigger()) as second:
            await polls(simulator, 3)
            return second.let_go

    assert asyncio.run(main()) == []


def test_each_organization_has_its_own_pace(simulator):
    simulator.set_credits(4.0)
    simulator.set_credits(4.0, "org-other")

    async def main():
        async with Waiters(trigger(), trigger(organization="org-other")) as waiters:
            return await waiters.until(2)

    assert asyncio.run(main()) == [0, 1]


@pytest.fixture
def connect(simulator, monkeypatch):
    """Make another connection to the simulator."""

    def connect(conn_id, key=None, **extra):
        connection = {
            "conn_type": "stability",
            "host": simulator.url,
            "password": key or simulator.api_key,
            "extra": {"api_version": "v1", **extra},
        }
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))

    return connect


def accounts_asked(simulator):
    return [record.path for record in simulator.requests].count("/v1/user/account")


#: Two waiters of one wallet, each with the arguments that differ, and how often the account is asked for.
ONE_WALLET = {
    "named-and-left-out": ({"organization": "org-default"}, {}, 1),
    "two-connections": ({}, {"stability_conn_id": "same_key"}, 0),
    "named-on-another-connection": ({"organization": "org-default"}, {"stability_conn_id": "same_key"}, 1),
    "connection-names-it": ({}, {"stability_conn_id": "names_it"}, 1),
    "named-twice": ({"organization": "org-default"}, {"stability_conn_id": "names_it"}, 0),
    "two-keys-that-name-it": (
        {"stability_conn_id": "other_key", "organization": "org-default"},
        {"stability_conn_id": "names_it"},
        0,
    ),
}


@pytest.fixture
def one_wallet(connect, simulator):
    connect("same_key", f"Bearer {simulator.api_key} ")
    connect("names_it", organization="org-default")
    connect("other_key", simulator.add_key())


@pytest.mark.usefixtures("one_wallet")
@pytest.mark.parametrize("second_comes", ["at-once", "later", "when-the-first-has-gone"])
@pytest.mark.parametrize(("one", "other", "accounts"), ONE_WALLET.values(), ids=ONE_WALLET)
def test_credit_for_one_lets_go_one_of_a_wallet_however_it_is_named(
    simulator, one, other, accounts, second_comes
):
    simulator.set_credits(4.0)

    async def main():
        one_waits, other_waits = trigger(**one), trigger(1, **other)
        if second_comes == "at-once":
            async with Waiters(one_waits, other_waits) as waiters:
                await waiters.until(1)
                await polls(simulator, 4)
                before = len(waiters.let_go)
                simulator.top_up(3.0)
                await waiters.until(2)
                return before
        async with Waiters(one_waits) as waiters:
            await waiters.until(1)
            if second_comes == "when-the-first-has-gone":
                await only_this_task()
            async with Waiters(other_waits) as second:
                await polls(simulator, 4)
                before = 1 + len(second.let_go)
                simulator.top_up(3.0)
                await second.until(1)
                return before

    assert asyncio.run(main()) == 1
    assert accounts_asked(simulator) == accounts


@pytest.mark.usefixtures("one_wallet")
def test_the_oldest_of_a_wallet_goes_first_whichever_poll_sees_the_credit(simulator):
    simulator.set_credits(1.0)

    async def main():
        young = trigger(1, stability_conn_id="same_key", poke_interval=0.2)
        old = trigger(0, poke_interval=60)
        async with Waiters(young, old) as waiters:
            await polls(simulator, 3)
            simulator.set_credits(4.0)
            await polls(simulator, 3)
            return waiters.let_go

    assert asyncio.run(main()) == [1]


def test_an_account_that_is_refused_makes_waiters_careful_and_fails_none(simulator):
    simulator.set_credits(4.0)
    simulator.set_credits(4.0, "org-other")
    simulator.inject(Fault.status(403), path="/v1/user/account")

    async def main():
        waiting = [trigger(organization=each, reservation_seconds=2.0) for each in (None, "org-other")]
        async with Waiters(*waiting) as waiters:
            await waiters.until(1)
            await polls(simulator, 4)
            assert len(waiters.let_go) == 1
            return await waiters.until(2)

    assert asyncio.run(main()) == [0, 1]
    assert accounts_asked(simulator) == 1


@pytest.mark.parametrize(
    "fault", [Fault.status(500), Fault.reset(), Fault.status(429, retry_after=1), Fault.status(403)]
)
def test_an_account_that_cannot_be_had_is_asked_for_once_more(simulator, monkeypatch, fault):
    monkeypatch.setattr(shared_connection, "ACCOUNT_SECONDS", 0.5)
    monkeypatch.setattr(shared_connection, "DEFAULT_ORGANIZATION_SECONDS", 0.5)
    simulator.set_credits(4.0)
    simulator.set_credits(4.0, "org-other")
    simulator.inject(fault, times=1, path="/v1/user/account")

    async def main():
        async with Waiters(trigger(), trigger(organization="org-other")) as waiters:
            return await waiters.until(2)

    assert asyncio.run(main()) == [0, 1]
    assert accounts_asked(simulator) == 2


@pytest.fixture
def change_default(simulator, monkeypatch):
    """Return a function that makes org-other the default of the account, and waits until that is known."""
    assert shared_connection.DEFAULT_ORGANIZATION_SECONDS == 600
    monkeypatch.setattr(shared_connection, "DEFAULT_ORGANIZATION_SECONDS", 0.5)

    async def change():
        memberships = [
            {"id": each, "name": each, "role": "MEMBER", "is_default": each == "org-other"}
            for each in ("org-default", "org-other")
        ]
        account = {"id": "user-1", "email": "a@example.com", "organizations": memberships}
        simulator.inject(Fault.body(json.dumps(account)), path="/v1/user/account")
        known = accounts_asked(simulator)
        async with asyncio.timeout(10):
            while accounts_asked(simulator) == known:
                await asyncio.sleep(0.01)

    return change


def test_waiters_follow_when_the_keys_default_changes(simulator, change_default):
    simulator.set_credits(0.0)

    async def main():
        left_out = trigger(0, poke_interval=60)
        async with Waiters(left_out, trigger(1, organization="org-default")) as waiters:
            await polls(simulator, 2)
            await change_default()
            await polls(simulator, 1)
            simulator.set_credits(4.0)
            await waiters.until(1)
            return waiters.let_go

    # The oldest waits for the credits of org-other.
    assert asyncio.run(main()) == [1]


def test_what_is_reserved_of_the_old_default_is_not_reserved_of_the_new_one(simulator, change_default):
    simulator.set_credits(0.0)

    async def main():
        async with Waiters(trigger(0, organization="org-default"), trigger(1)) as waiters:
            await polls(simulator, 3)  # the default is known
            for organization in ("org-default", "org-other"):
                simulator.set_credits(4.0, organization)
            await waiters.until(1)
            await polls(simulator, 2)
            before = list(waiters.let_go)
            await change_default()
            await waiters.until(2)
        async with Waiters(trigger(organization="org-default"), trigger(organization="org-other")) as others:
            await polls(simulator, 4)
            return before, others.let_go

    assert asyncio.run(main()) == ([0], [])


def test_what_is_reserved_stays_where_it_is_when_the_connection_names_another_organization(
    simulator, connect
):
    simulator.set_credits(4.0)
    simulator.set_credits(4.0, "org-other")
    connect("stability_default", organization="org-default")

    async def main():
        async with Waiters(trigger(), trigger(1)) as waiters:
            await waiters.until(1)
            await polls(simulator, 2)
            before = list(waiters.let_go)
            connect("stability_default", organization="org-other")
            await waiters.until(2)
            return before

    assert asyncio.run(main()) == [0]


def test_waiters_who_say_nothing_cost_no_call_for_the_account(simulator):
    async def main():
        silent = [trigger(expected_credits=None, organization=each) for each in (None, "org-default")]
        async with Waiters(*silent) as waiters:
            await waiters.until(2)

    asyncio.run(main())
    assert len(simulator.requests) == 2


@pytest.mark.usefixtures("one_wallet")
def test_connections_with_one_key_wait_a_lock_out_out_together(simulator):
    simulator.inject(Fault.status(429, retry_after=2), times=1)

    async def main():
        async with Waiters(trigger()) as first:
            async with asyncio.timeout(20):
                while not loop_state().connection("stability_default").seconds_locked_out():
                    await asyncio.sleep(0.01)
            async with Waiters(trigger(stability_conn_id="same_key")) as second:
                await first.until(1)
                await second.until(1)

    simulator.set_credits(50.0)
    asyncio.run(main())
    locked_out, *later = [record.monotonic for record in simulator.requests]
    assert all(call - locked_out >= 2.0 for call in later)


def test_what_is_reserved_stays_reserved_when_the_key_is_rotated(simulator, connection):
    simulator.set_credits(4.0)

    async def main():
        async with Waiters(trigger(), trigger(1)) as waiters:
            await waiters.until(1)
            connection(simulator.rotate_key(simulator.api_key))
            await polls(simulator, 4)
            return waiters.let_go

    assert asyncio.run(main()) == [0]


def test_a_gate_whose_own_key_is_refused_is_not_let_go_by_the_balance_of_another_key(simulator, connect):
    simulator.set_credits(0.0)
    key = simulator.add_key()
    connect("stability_default", organization="org-default")
    connect("refused", key, organization="org-default")

    def refusals():
        return [record.status for record in simulator.requests].count(401)

    async def refused_again():
        goal = refusals() + 2
        async with asyncio.timeout(10):
            while refusals() < goal:
                await asyncio.sleep(0.01)

    async def main():
        oldest, older = (trigger(number, stability_conn_id="refused") for number in (0, 1))
        async with Waiters(oldest, trigger(2)) as waiters:
            await polls(simulator, 4)
            simulator.revoke_key(key)
            await refused_again()
            async with Waiters(older) as newcomer:
                await refused_again()
                simulator.set_credits(9.0)
                await waiters.until(1)
                await refused_again()
                before = [*waiters.let_go, *newcomer.let_go]
                connect("refused", simulator.add_key(), organization="org-default")
                await waiters.until(2)
                await newcomer.until(1)
                return before

    assert asyncio.run(main()) == [1]


def test_a_newcomer_does_not_get_what_was_let_go_a_moment_ago(simulator):
    simulator.set_credits(4.0)

    async def main():
        slow = trigger(expected_credits=100, poke_interval=30)
        async with Waiters(slow, trigger(1, poke_interval=30)) as waiters:
            assert await waiters.until(1) == [1]
            async with Waiters(trigger(poke_interval=30)) as newcomer:
                await asyncio.sleep(0.5)
                return newcomer.let_go, len(simulator.requests)

    assert asyncio.run(main()) == ([], 1)


def test_a_pause_is_waited_out_and_costs_no_call(simulator):
    async def main():
        began = asyncio.get_running_loop().time()
        async with Waiters(trigger(pause=1.0)) as waiters:
            await waiters.until(1)
        return began

    began = asyncio.run(main())
    (call,) = simulator.requests
    assert call.monotonic >= began + 1


def test_a_pause_does_not_outlast_the_deadline(simulator):
    async def main():
        waiting = trigger(pause=60.0, timeout=0.3, waited=0.0, last_credits=9.0)
        return [event.payload async for event in waiting.run()]

    (payload,) = asyncio.run(asyncio.wait_for(main(), 5))
    assert payload["verdict"] == "timeout"
    assert payload["text"].endswith("has 9 credits, needs 3.")


@pytest.mark.parametrize("mode", ["late", "pausing"])
def test_a_trigger_that_times_out_without_a_look_names_the_organization_of_its_connection(
    simulator, monkeypatch, mode
):
    uri = f"{simulator.connection_uri()}?api_version=v1&organization=org-other"
    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", uri)
    simulator.set_credits(2.5, "org-other")
    gate = StabilityBalanceSensor(task_id="gate", minimum_credits=3, timeout=60, deferrable=True)
    context = {"ti": SimpleNamespace(try_number=1, start_date=datetime.now(UTC))}
    with pytest.raises(TaskDeferred) as deferral:
        gate.execute(context)
    arguments = deferral.value.trigger.serialize()[1]
    if mode == "late":
        arguments["waited"] = 61.0
    else:
        arguments |= {"waited": 59.7, "pause": 60.0}

    async def main():
        return [event.payload async for event in StabilityBalanceTrigger(**arguments).run()]

    (payload,) = asyncio.run(asyncio.wait_for(main(), 5))
    assert payload["text"].startswith(
        "Timed out after 60 s: organization org-other has 2.5 credits, needs more than 3."
    )
    assert len(simulator.requests) == 1


def test_what_is_older_than_its_own_look_is_no_news(simulator):
    async def main():
        async with contextlib.aclosing(observations("stability_default", None, 30)) as feed:
            old = await anext(feed)
            looked_at = asyncio.get_running_loop().time()
            async with contextlib.aclosing(
                observations("stability_default", None, 1, ignore_before=looked_at)
            ) as newcomer:
                new = await anext(newcomer)
            return old.at < new.at

    assert asyncio.run(main())
    assert len(simulator.requests) == 2


def test_a_killed_triggerer_loses_neither_turn_nor_memory(simulator):
    simulator.set_credits(0.0)
    memory = {"refusals": 2, "seconds_waited": 12.5}

    async def wait_and_die(waiting):
        async with Waiters(waiting):
            await polls(simulator, 1)

    async def go_on(waiting):
        return [event.payload async for event in waiting.run()]

    waiting = trigger(memory=memory, reservation_seconds=1.5)
    asyncio.run(wait_and_die(waiting))
    simulator.top_up(5.0)
    name, arguments = waiting.serialize()
    again = StabilityBalanceTrigger(**json.loads(json.dumps(arguments)))

    (payload,) = asyncio.run(asyncio.wait_for(go_on(again), 10))
    assert again.serialize() == (name, arguments)
    assert (payload["verdict"], payload["credits"], payload["memory"]) == ("open", 5.0, memory)


def test_pacers_that_are_idle_are_forgotten(simulator):
    async def main():
        for number in range(20):
            simulator.add_organization(f"org-{number}", credits=10.0, accounts=["user-1"])
            async with Waiters(trigger(organization=f"org-{number}", reservation_seconds=0.1)) as waiters:
                await waiters.until(1)
        await asyncio.sleep(0.2)
        async with Waiters(trigger()):
            await polls(simulator, 0)
        return len(loop_state().pacers)

    assert asyncio.run(main()) <= 2
