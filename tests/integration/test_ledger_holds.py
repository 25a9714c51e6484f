"""Waiters of a connection with a ledger: in two triggerers, each an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from sqlalchemy import select

from airflow_stability.hooks.ledger import open_ledger
from airflow_stability.ledger.ledger import Call, Hold, Spender
from airflow_stability.ledger.schema import spends
from tests.triggerer import WHO_LOADS, gate_trigger, output_of
from tests.versions import IS_LOWEST

# Airflow 2.11.0 loads all hooks for one of them, and modules of that time use what is deprecated.
pytestmark = [pytest.mark.filterwarnings("ignore")] if IS_LOWEST else []


CREDITS = 3


@pytest.fixture
def ledger(simulator, monkeypatch, tmp_path):
    address = f"{simulator.connection_uri()}?api_version=v1"
    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", f"{address}&ledger_conn_id=the_ledger")
    monkeypatch.setenv("AIRFLOW_CONN_WITHOUT_LEDGER", address)
    monkeypatch.setenv("AIRFLOW_CONN_THE_LEDGER", f"sqlite:///{quote(str(tmp_path / 'ledger.db'))}")
    ledger = open_ledger("the_ledger")
    ledger.database.init()
    return ledger


def trigger(number=0, **arguments):
    defaults = {
        "minimum_credits": None,
        "expected_credits": CREDITS,
        "poke_interval": 0.2,
        "waited": 40.0 - number,
        "is_of_task": True,
    }
    return gate_trigger(**defaults | arguments)


class Triggerer:
    """Runs triggers in an event loop of its own, in a thread, and keeps their events by number."""

    def __init__(self, triggers):
        self.events = {}
        self._triggers = triggers
        self._thread = threading.Thread(target=asyncio.run, args=(self._main(),))
        self._ends = threading.Event()

    async def _main(self):
        tasks = [asyncio.create_task(self._run(*each)) for each in self._triggers.items()]
        while not self._ends.is_set():
            await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, number, each):
        async for event in each.run():
            self.events[number] = event.payload

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._ends.set()
        self._thread.join()

    @property
    def opened(self):
        return sorted(number for number, event in self.events.items() if event["verdict"] == "open")


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def polled(simulator, times):
    """Wait until the balance was asked for so many times more, and everybody was told."""
    goal = len(simulator.requests) + times + 1
    until(lambda: len(simulator.requests) >= goal)


def test_a_top_up_for_twenty_lets_go_twenty_of_two_triggerers(simulator, ledger):
    simulator.set_credits(0.0)
    with (
        Triggerer({number: trigger(number) for number in range(0, 60, 2)}) as one,
        Triggerer({number: trigger(number) for number in range(1, 60, 2)}) as other,
    ):
        polled(simulator, 4)
        assert one.events == other.events == {}
        simulator.top_up(20 * CREDITS)
        until(lambda: len(one.events) + len(other.events) >= 20)
        polled(simulator, 6)
        opened = [*one.opened, *other.opened]

    assert len(opened) == 20
    # The oldest of each go first.
    assert one.opened == list(range(0, 2 * len(one.opened), 2))
    with ledger.database.engine.connect() as connection:
        held = list(connection.execute(select(spends.c.spend_key).where(spends.c.state == "held")).scalars())
    assert sorted(held) == sorted(event["hold"] for each in (one, other) for event in each.events.values())


def test_tasks_wait_for_their_budget_until_its_limit_is_raised(simulator, ledger):
    ledger.set_budget("images", 7, "total")
    with Triggerer({number: trigger(number, budget="images") for number in range(6)}) as triggerer:
        until(lambda: len(triggerer.events) == 2)
        polled(simulator, 3)
        assert triggerer.opened == [0, 1]
        ledger.set_budget("images", 12, "total")
        until(lambda: len(triggerer.events) == 4)
        polled(simulator, 3)
        assert triggerer.opened == [0, 1, 2, 3]
        # One gives back what it has not spent.
        ledger.end(triggerer.events[2]["hold"], "void", "given back")
        until(lambda: len(triggerer.events) == 5)
        assert triggerer.opened == [0, 1, 2, 3, 4]


def test_the_rest_of_a_run_holds_what_it_still_has_to_pay(simulator, ledger):
    simulator.set_credits(4.0)
    ledger.set_budget("images", 5, "total")
    facts = {"dag_id": "images", "run_id": "run-1", "task_id": "paint", "map_index": -1}
    spender = Spender("stability_default", budget="images", **facts)
    ledger.begin_call(Call("paid", spender, "core", 3, output="s3://bucket/1.png"), None)
    ledger.end("paid", "posted")
    # The rest was refused at a balance of 2.5.
    rest = trigger(minimum_credits=2.5, expected_credits=0.0, run_credits=6.0, budget="images")
    rest.task_instance = SimpleNamespace(**facts, try_number=1)
    with Triggerer({0: rest}) as triggerer:
        polled(simulator, 3)
        assert triggerer.events == {}  # its other 3 credits do not fit
        ledger.set_budget("images", 6, "total")
        until(lambda: triggerer.events)

    with ledger.database.engine.connect() as connection:
        held = select(spends.c.spend_key, spends.c.microcredits).where(spends.c.state == "held")
        assert connection.execute(held).all() == [(triggerer.events[0]["hold"], 3_000_000)]


def test_a_text_says_that_the_budget_was_the_reason(simulator, ledger):
    ledger.set_budget("images", 4, "total")
    ledger.hold([Hold("other", Spender("stability_default", budget="images"), 2)])
    with Triggerer({0: trigger(budget="images", timeout=4, waited=0)}) as triggerer:
        until(lambda: triggerer.events)

    event = triggerer.events[0]
    assert (event["verdict"], event["hold"]) == ("timeout", None)
    assert event["text"] == (
        "Timed out after 4 s: budget images: 2 of 4 credits used or held, does not renew, and this task "
        "needs 3."
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"budget": "nowhere"}, "There is no budget 'nowhere' in the ledger."),
        (
            {"budget": "images", "expected_credits": 30},
            "The task needs 30 credits, and the limit of its budget",
        ),
        (
            {"budget": "images", "stability_conn_id": "without_ledger"},
            "budget is 'images', but the connection 'without_ledger' has no ledger",
        ),
    ],
)
@pytest.mark.parametrize("credits", [0.5, 100.0], ids=["poor", "rich"])
def test_what_can_never_be_held_fails_at_once(simulator, ledger, arguments, text, credits):
    simulator.set_credits(credits)
    ledger.set_budget("images", 4, "total")
    with Triggerer({0: trigger(**arguments)}) as triggerer:
        until(lambda: triggerer.events)

    assert triggerer.events[0]["verdict"] == "fail"
    assert triggerer.events[0]["text"].startswith(text)


def test_a_ledger_that_is_out_of_reach_opens_no_gate(simulator, ledger, monkeypatch, tmp_path):
    missing = tmp_path / "missing" / "ledger.db"
    monkeypatch.setenv("AIRFLOW_CONN_THE_LEDGER", f"sqlite:///{quote(str(missing))}")
    with Triggerer({0: trigger(), 1: trigger(1)}) as triggerer:
        polled(simulator, 3)
        assert triggerer.events == {}
        # Airflow says so, too, if it could not ask.
        monkeypatch.delenv("AIRFLOW_CONN_THE_LEDGER")
        polled(simulator, 3)
        assert triggerer.events == {}
        monkeypatch.setenv("AIRFLOW_CONN_THE_LEDGER", f"sqlite:///{quote(str(tmp_path / 'ledger.db'))}")
        until(lambda: len(triggerer.events) == 2)


def test_a_task_that_can_never_run_is_told_so_when_the_ledger_is_back(simulator, ledger, monkeypatch):
    simulator.set_credits(0.5)
    ledger.set_budget("images", 2, "total")
    there = os.environ["AIRFLOW_CONN_THE_LEDGER"]
    monkeypatch.delenv("AIRFLOW_CONN_THE_LEDGER")
    with Triggerer({0: trigger(budget="images")}) as triggerer:
        polled(simulator, 3)
        assert triggerer.events == {}
        monkeypatch.setenv("AIRFLOW_CONN_THE_LEDGER", there)
        until(lambda: triggerer.events)

    assert triggerer.events[0]["verdict"] == "fail"


def test_a_low_balance_renews_no_hold(simulator, ledger):
    simulator.set_credits(0.5)
    waits = trigger()
    ledger.hold([Hold(waits.hold, Spender("stability_default"), CREDITS, lease=100.0)])

    def lease():
        with ledger.database.engine.connect() as connection:
            return connection.execute(select(spends.c.lease_ends_at)).scalar()

    before = lease()
    with Triggerer({0: waits}) as triggerer:
        polled(simulator, 3)

    assert triggerer.events == {}
    assert lease() == before


def test_a_trigger_that_starts_anew_holds_nothing_twice(simulator, ledger):
    first = trigger(deferral_timeout=None)
    with Triggerer({0: first}) as triggerer:
        until(lambda: triggerer.events)
    again = type(first)(**first.serialize()[1])
    with Triggerer({0: again}) as triggerer:
        until(lambda: triggerer.events)

    assert triggerer.events[0]["hold"] == first.hold
    with ledger.database.engine.connect() as connection:
        assert len(list(connection.execute(select(spends)))) == 1


LOADS = """
async def main():
    from tests.integration.test_ledger_holds import trigger

    one = trigger()
    sys.meta_path.insert(0, Finder())
    async for event in one.run():
        print(event.payload["verdict"])

asyncio.run(main())
print(loaded_by["airflow_stability.triggers.ledger_holds"] is threading.main_thread())
"""


@pytest.mark.starts_python
def test_the_event_loop_loads_nothing_for_a_ledger(simulator, ledger):
    assert output_of(WHO_LOADS + LOADS).split()[-2:] == ["open", "False"]
