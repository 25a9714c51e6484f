"""What an earlier try of a task has held, and what ends by itself when it is in the way."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from airflow_stability.ledger.database import Database, adapt, engine_arguments
from airflow_stability.ledger.ledger import Call, Hold, Ledger, Reading, Spender

SPENDER = Spender("stability_default", "org-1", "images", "dag", "run", "task", -1, 1)


class Clock:
    now = datetime(2026, 11, 30, 12)

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(clock):
    engine = adapt(create_engine("sqlite://", poolclass=StaticPool, **engine_arguments("sqlite")))
    ledger = Ledger(Database(engine, "the test's database", clock=clock))
    ledger.database.init()
    ledger.set_budget("images", 10, "month")
    yield ledger
    engine.dispose()


def used(ledger):
    (budget,) = ledger.budgets()
    return budget.used / 1e6


def test_the_next_try_gives_back_what_an_earlier_one_can_spend_no_more(ledger):
    ledger.hold([Hold("first", SPENDER, 8, itemized=True, starts=True)])
    ledger.begin_call(Call("call", SPENDER, "stable-image/generate/core", 3), "first")
    ledger.end_earlier_tries(dataclasses.replace(SPENDER, try_number=2))

    assert used(ledger) == 3  # of the call, nobody knows


@pytest.mark.parametrize(
    "other",
    [
        {"try_number": 1},
        {"try_number": 2, "map_index": 0},
        {"try_number": 2, "run_id": "another"},
        {"try_number": 2, "task_id": "another"},
    ],
)
def test_another_task_gives_nothing_back(ledger, other):
    ledger.hold([Hold("first", SPENDER, 8, itemized=True, starts=True)])
    ledger.end_earlier_tries(dataclasses.replace(SPENDER, **other))

    assert used(ledger) == 8


def test_what_may_have_been_spent_by_other_means_is_not_given_back(ledger):
    ledger.hold([Hold("first", SPENDER, 8, itemized=False, starts=True)])
    ledger.end_earlier_tries(dataclasses.replace(SPENDER, try_number=2))

    assert used(ledger) == 8


def test_what_never_began_is_in_the_way_no_longer_than_its_lease(ledger, clock):
    ledger.hold([Hold("dead", SPENDER, 8, lease=60)])
    assert ledger.hold([Hold("next", SPENDER, 8)]).held == []
    clock.now += timedelta(seconds=61)

    assert ledger.hold([Hold("next", SPENDER, 8)]).held == ["next"]
    assert used(ledger) == 8


def test_the_balance_is_held_no_longer_either(ledger, clock):
    spender = dataclasses.replace(SPENDER, budget=None)
    ledger.hold([Hold("dead", spender, 8, lease=60)], Reading(10, 1))
    clock.now += timedelta(seconds=61)

    assert ledger.hold([Hold("next", spender, 8)], Reading(10, 1)).held == ["next"]
