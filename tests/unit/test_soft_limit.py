"""When a budget's soft limit fires an event, and what is said about it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from airflow_stability.errors import (
    StabilityBudgetNotFoundError,
    StabilityConfigurationError,
    StabilityLedgerUnavailableError,
)
from airflow_stability.rules.log_throttle import LOG_EVERY
from airflow_stability.rules.soft_limit import SoftLimitWatch

START = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
FIRST, SECOND = START + timedelta(minutes=1), START + timedelta(days=1)
USED = "budget images: 8 of 10 credits used or held, does not renew"
OUTAGE = StabilityLedgerUnavailableError("The ledger is out of reach.")
MISSING = StabilityBudgetNotFoundError("There is no budget 'images' in the ledger.")


def observe(watch, reached_at, *, soft_percent=80, now=START):
    return watch.observe_budget(soft_percent, reached_at, USED, now)


def crossings(watch, *readings):
    """Return the times that a watch fires an event for."""
    return [reached_at for reached_at in readings if observe(watch, reached_at).crossed]


def restored(state):
    """Return a watch after a restart: a state is stored as JSON."""
    watch = SoftLimitWatch("images")
    watch.restore(json.loads(json.dumps(state)))
    return watch


@pytest.mark.parametrize(
    ("readings", "fired"),
    [
        ([None, None, FIRST, FIRST, FIRST], [FIRST]),
        ([None, FIRST, None, None, SECOND, SECOND], [FIRST, SECOND]),
        ([None, FIRST, SECOND], [FIRST, SECOND]),
        ([FIRST, FIRST, None, SECOND], [SECOND]),
        # A copy of the database that lags behind.
        ([None, FIRST, None, FIRST], [FIRST]),
        # The database's clock was set back.
        ([None, SECOND, None, FIRST], [SECOND, FIRST]),
    ],
)
def test_fires_once_for_each_time_that_the_ledger_has_noted(readings, fired):
    assert crossings(SoftLimitWatch("images"), *readings) == fired


@pytest.mark.parametrize("reached_at", [None, FIRST])
def test_the_first_reading_fires_nothing(reached_at):
    assert crossings(SoftLimitWatch("images"), reached_at, reached_at, reached_at) == []


def test_a_budget_that_was_not_there_fires_when_it_is_there_and_has_reached_its_limit():
    watch = SoftLimitWatch("images")
    watch.observe_failure(MISSING, START)

    assert crossings(watch, FIRST, FIRST) == [FIRST]


def test_a_failure_is_no_reading_and_forgets_nothing():
    watch = SoftLimitWatch("images")
    assert watch.observe_failure(OUTAGE, START).crossed is False
    assert watch.state is None

    assert crossings(watch, FIRST) == []
    watch.observe_failure(OUTAGE, START)
    assert crossings(watch, FIRST, SECOND) == [SECOND]


@pytest.mark.parametrize(
    ("before", "after", "fired"),
    [
        ([None], [FIRST], [FIRST]),
        ([None, FIRST], [FIRST, SECOND], [SECOND]),
        ([FIRST], [FIRST, SECOND], [SECOND]),
        ([None, FIRST], [None, FIRST], []),
    ],
)
def test_a_restored_state_replaces_the_first_reading(before, after, fired):
    watch = SoftLimitWatch("images")
    crossings(watch, *before)

    assert crossings(restored(watch.state), *after) == fired


@pytest.mark.parametrize("state", [None, {}, "later", {"reached_at": 5}, {"armed": True}])
def test_what_is_no_state_is_ignored(state):
    watch = restored(state)

    assert watch.state is None
    assert crossings(watch, FIRST) == []


def test_a_state_that_comes_late_counts_if_nothing_has_fired():
    watch = SoftLimitWatch("images")
    crossings(watch, SECOND)
    watch.restore({"reached_at": FIRST.isoformat()})

    assert crossings(watch, SECOND) == [SECOND]


def test_a_state_that_comes_after_an_event_is_ignored():
    watch = SoftLimitWatch("images")
    crossings(watch, None, SECOND)
    watch.restore({"reached_at": FIRST.isoformat()})

    assert crossings(watch, SECOND) == []


def test_the_state_changes_with_what_is_noted_only():
    watch = SoftLimitWatch("images")
    states = []
    for reached_at in (None, FIRST, None):
        observe(watch, reached_at)
        states.append(watch.state)

    noted = {"reached_at": FIRST.isoformat()}
    assert states == [{"reached_at": None}, noted, noted]


def test_the_texts():
    watch = SoftLimitWatch("images")

    texts = [observe(watch, reached_at).text for reached_at in (None, FIRST, FIRST)]
    texts.append(observe(watch, None, soft_percent=None).text)
    texts.append(watch.observe_failure(OUTAGE, START).text)
    texts.append(watch.observe_failure(MISSING, START).text)

    assert texts == [
        f"Watching: {USED}. An event is fired when 80 % of the limit is reached.",
        f"An event is fired: the soft limit of 80 % is reached: {USED}.",
        (
            f"Watching: {USED}. The soft limit of 80 % was reached at 2026-11-22 10:01:00 UTC. The next "
            "event is fired when it is reached again, in another period or after a change of the budget."
        ),
        f"Watching: {USED}. It has no soft limit, so no event is fired.",
        (
            "It is unknown how much of budget images is used, so no event can be fired: The ledger is out of "
            "reach."
        ),
        (
            "It is unknown how much of budget images is used, so no event can be fired: There is no budget "
            "'images' in the ledger. Until that is fixed, the ledger is read less often."
        ),
    ]


def test_only_what_a_person_must_mend_is_refused():
    watch = SoftLimitWatch("images")

    assert not watch.observe_failure(OUTAGE, START).refused
    assert watch.observe_failure(MISSING, START).refused
    assert not observe(watch, FIRST).refused


def test_it_logs_each_change_and_otherwise_once_an_hour():
    watch = SoftLimitWatch("images")
    later = START + LOG_EVERY

    def logs(now):
        return [
            observe(watch, None, now=now).should_log,
            observe(watch, None, now=now).should_log,
            observe(watch, FIRST, now=now).should_log,
            observe(watch, FIRST, now=now).should_log,
            watch.observe_failure(OUTAGE, now).should_log,
            watch.observe_failure(StabilityLedgerUnavailableError("in other words"), now).should_log,
            watch.observe_failure(MISSING, now).should_log,
            watch.observe_failure(StabilityConfigurationError("no tables"), now).should_log,
            watch.observe_failure(StabilityConfigurationError("no ledger"), now).should_log,
            watch.observe_failure(StabilityConfigurationError("no ledger"), now).should_log,
        ]

    assert logs(START) == [True, False, True, False, True, False, True, True, True, False]
    assert watch.observe_failure(StabilityConfigurationError("no ledger"), later).should_log
