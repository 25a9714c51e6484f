"""The ledger on SQLite: what happens at its edges, and what its texts say. The state machine has the rest."""

import dataclasses
from datetime import datetime, timedelta

import pytest
from sqlalchemy import create_engine, event, func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

from airflow_stability.errors import (
    StabilityBudgetExhaustedError,
    StabilityBudgetNotFoundError,
    StabilityConfigurationError,
    StabilityLedgerUnavailableError,
)
from airflow_stability.ledger import database as database_module
from airflow_stability.ledger.database import Database, adapt, engine_arguments
from airflow_stability.ledger.ledger import Call, Hold, Ledger, Reading, Spender
from airflow_stability.ledger.schema import VERSION, balances, spends, versions, wallets
from airflow_stability.rules.credits import MICRO

SPENDER = Spender("stability_default", "org-1", "images", "dag", "run", "task", -1, 1)
NOBODYS = dataclasses.replace(SPENDER, budget=None)


class Time:
    """The database's time, which a test sets."""

    def __init__(self):
        self.now = datetime(2026, 11, 30, 10)

    def __call__(self):
        return self.now

    def pass_(self, **more):
        self.now += timedelta(**more)


@pytest.fixture
def engine():
    engine = adapt(create_engine("sqlite://", poolclass=StaticPool, **engine_arguments("sqlite")))
    yield engine
    engine.dispose()


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def empty(engine, time):
    return Ledger(Database(engine, "connection 'ledger'", clock=time))


@pytest.fixture
def ledger(empty):
    empty.database.init()
    empty.set_budget("images", 10, "day")
    return empty


def hold(key, credits, spender=SPENDER, **more):
    return Hold(key, spender, credits, **more)


def call(key, credits, spender=SPENDER, **more):
    return Call(key, spender, "stable-image/upscale/fast", credits, **more)


def row(ledger, key):
    with ledger.database.engine.connect() as connection:
        return connection.execute(select(spends).where(spends.c.spend_key == key)).first()


def state(ledger, key):
    found = row(ledger, key)
    return found and (found.state, found.microcredits / MICRO)


def used(ledger, name="images"):
    return next(budget.used / MICRO for budget in ledger.budgets() if budget.name == name)


def count(ledger, table):
    with ledger.database.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar()


# Calls


def test_a_call_takes_its_credits_out_of_the_hold_of_its_run(ledger):
    ledger.hold([hold("hold", 6, starts=True)])
    ledger.begin_call(call("call", 4), "hold")

    assert (state(ledger, "hold"), state(ledger, "call")) == (("held", 2), ("held", 4))
    assert used(ledger) == 6


def test_a_call_beyond_its_hold_takes_the_rest_from_the_budget(ledger):
    ledger.hold([hold("hold", 6, starts=True)])
    ledger.begin_call(call("call", 10), "hold")

    assert (state(ledger, "hold"), state(ledger, "call")) == (("held", 0), ("held", 10))
    assert used(ledger) == 10
    assert row(ledger, "call").known == "listed"


def test_a_call_beyond_hold_and_budget_is_refused_before_it_is_sent(ledger):
    ledger.hold([hold("hold", 4, starts=True), hold("other", 2)])

    with pytest.raises(StabilityBudgetExhaustedError) as raised:
        ledger.begin_call(call("call", 9.9), "hold")

    assert str(raised.value) == (
        "budget images: 6 of 10 credits used or held, renews 2026-12-01 00:00 UTC; stable-image/upscale/fast "
        "needs 9.9. Nothing was sent. It passes when the budget renews, when its limit is raised, or when "
        "others give back what they hold."
    )
    assert (state(ledger, "hold"), state(ledger, "call"), used(ledger)) == (("held", 4), None, 6)


def test_a_call_without_a_price_takes_what_its_task_has_declared(ledger):
    ledger.hold([hold("hold", 6, starts=True)])
    ledger.begin_call(call("first", None), "hold")
    ledger.begin_call(call("second", None), "hold")

    assert (state(ledger, "first"), row(ledger, "first").known) == (("held", 6), "declared")
    assert (state(ledger, "second"), row(ledger, "second").known) == (("held", 0), "unknown")
    assert used(ledger) == 6


@pytest.mark.parametrize("ended", ["posted", "void"])
def test_a_call_takes_nothing_out_of_a_hold_that_has_ended(ledger, ended):
    ledger.hold([hold("hold", 3, starts=True)])
    ledger.end("hold", ended)
    ledger.begin_call(call("call", 2), "hold")

    assert state(ledger, "hold") == (ended, 3)
    assert used(ledger) == (5 if ended == "posted" else 2)


def test_a_call_takes_from_a_hold_whose_end_is_unknown(ledger, time):
    ledger.hold([hold("hold", 3, starts=True)])
    time.pass_(hours=3)
    ledger.end_leases()
    assert state(ledger, "hold") == ("unknown", 3)
    ledger.begin_call(call("call", 2), "hold")

    assert (state(ledger, "hold"), used(ledger)) == (("unknown", 1), 3)


def test_a_call_outside_of_a_hold_and_of_a_budget_is_written_down(ledger):
    ledger.begin_call(call("call", 2, NOBODYS), None)
    ledger.begin_call(call("other", 2, NOBODYS), "no such hold")

    assert (state(ledger, "call"), state(ledger, "other"), used(ledger)) == (("held", 2), ("held", 2), 0)


def test_a_call_that_was_written_is_not_refused_because_of_itself(ledger):
    ledger.hold([hold("hold", 8, starts=True)])
    ledger.begin_call(call("call", 8), "hold")
    ledger.begin_call(call("call", 8), "hold")  # the answer to the first COMMIT was lost

    assert (state(ledger, "hold"), state(ledger, "call"), used(ledger)) == (("held", 0), ("held", 8), 8)


def test_a_long_path_and_a_long_reason_are_cut(ledger):
    ledger.begin_call(dataclasses.replace(call("call", 1, output="o" * 2000), endpoint="e" * 300), None)
    ledger.end("call", "void", "r" * 600)

    found = row(ledger, "call")
    assert [len(each) for each in (found.endpoint, found.output, found.reason)] == [250, 1000, 500]
    assert len(found.output_hash) == 64


# Durable calls


def test_the_next_call_for_an_output_does_not_free_the_one_before(ledger):
    """A person may have deleted its marker, after looking at the balance: it may have been paid for."""
    ledger.begin_call(call("first", 5, output="s3://bucket/1.png"), None)
    ledger.begin_call(call("second", 5, output="s3://bucket/1.png"), None)

    assert (state(ledger, "first"), state(ledger, "second"), used(ledger)) == (("held", 5), ("held", 5), 10)


def test_a_call_that_was_accepted_and_is_not_charged_counts_no_more(ledger):
    for key in ("first", "second"):
        ledger.begin_call(call(key, 3, output="s3://bucket/1.png"), None)
        ledger.end(key, "posted")
        ledger.database._clock.pass_(seconds=1)
    ledger.not_charged("s3://bucket/1.png", "moderated")
    ledger.not_charged("s3://bucket/2.png", "no such call")

    assert (state(ledger, "first"), state(ledger, "second"), used(ledger)) == (("posted", 3), ("void", 3), 3)


def test_a_hold_of_another_budget_does_not_begin(ledger):
    ledger.hold([hold("a", 3)])

    assert not ledger.start("a", "films")
    assert not ledger.start("a", None)
    assert ledger.start("a", "images")


def test_a_run_that_replays_holds_nothing_for_what_its_task_has_paid_for(ledger):
    ledger.begin_call(call("paid", 3, output="s3://bucket/1.png"), None)
    ledger.end("paid", "posted")
    ledger.begin_call(call("unknown", 2.5, output="s3://bucket/2.png"), None)
    ledger.begin_call(call("not durable", 1), None)
    ledger.begin_call(call("refused", 1, output="s3://bucket/3.png"), None)
    ledger.end("refused", "void")

    ledger.set_budget("images", 16, "total")

    def held(key, credits, **who):
        ledger.hold([hold(key, credits, dataclasses.replace(SPENDER, **who), replays=True)])
        return state(ledger, key)

    assert held("next try", 8, try_number=2) == ("held", 2.5)
    assert held("another run", 1, run_id="another") == ("held", 1)
    assert held("paid for", 5, try_number=2) == ("held", 0)
    # The budget has 6 left.
    refused = ledger.hold([hold("too much", 12, replays=True)])
    assert refused.needed == {"too much": 6.5}


def test_the_durable_calls_of_a_task_are_found_by_an_index(ledger, engine):
    queries = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection, _cursor, statement, parameters, *_more):
        queries.append((statement, parameters))

    ledger.hold([hold(f"h{number}", 1, replays=True) for number in range(5)])

    (found,) = [each for each in queries if "output_hash IS NOT NULL" in each[0]]
    with engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {found[0]}", found[1]).all()
    assert "stability_spends_by_task" in str(plan)


def test_whose_durable_calls_are_not_known_is_not_told_from_others(ledger):
    nobody = Spender("stability_default", budget="images")
    ledger.begin_call(call("paid", 3, nobody, output="s3://bucket/1.png"), None)
    ledger.hold([hold("a", 4, nobody, replays=True)])

    assert state(ledger, "a") == ("held", 4)


@pytest.mark.parametrize(
    ("more", "ended", "then"),
    [
        ({}, None, "void"),
        ({"starts": True}, None, "held"),
        ({"starts": True}, "posted", "posted"),
        ({"starts": True}, "unknown", "unknown"),
    ],
)
def test_only_a_hold_whose_run_has_not_begun_is_released(ledger, more, ended, then):
    ledger.hold([hold("a", 3, **more)])
    if ended:
        ledger.end("a", ended)

    ledger.release("a", "Its task has taken another hold.")

    assert state(ledger, "a") == (then, 3)


def test_a_run_that_spends_nothing_holds_nothing_in_a_budget_that_is_overspent(ledger):
    ledger.hold([hold("a", 8)])
    ledger.set_budget("images", 5, "total")

    assert ledger.hold([hold("b", 0)]).held == ["b"]


def test_a_call_whose_price_is_more_than_the_limit_is_an_error_of_its_own(ledger):
    ledger.set_budget("images", 5, "total")

    with pytest.raises(
        StabilityConfigurationError, match=r"needs 8 credits, and the limit of its budget is less"
    ):
        ledger.begin_call(call("call", 8), None)


def test_a_call_is_not_kept_waiting_by_what_never_began(ledger, time):
    ledger.hold([hold("dead", 8, lease=60)])
    time.pass_(seconds=61)
    ledger.begin_call(call("call", 8), None)

    assert (state(ledger, "dead"), used(ledger)) == (("void", 8), 8)


def test_a_call_renews_the_lease_of_its_run(ledger, time):
    ledger.hold([hold("run", 8, itemized=True, starts=True, lease=3600)])
    time.pass_(seconds=3000)
    ledger.begin_call(call("call", 3), "run")
    time.pass_(seconds=3000)
    ledger.end_leases()

    assert state(ledger, "run") == ("held", 5)


def test_what_is_posted_stays_so_when_its_output_is_made_again(ledger):
    ledger.begin_call(call("first", 3, output="s3://bucket/1.png"), None)
    ledger.end("first", "posted")
    ledger.begin_call(call("second", 3, output="s3://bucket/1.png"), None)
    ledger.end("second", "void")
    ledger.output_found("s3://bucket/1.png")

    assert (state(ledger, "first"), state(ledger, "second"), used(ledger)) == (("posted", 3), ("void", 3), 3)


def test_an_output_that_is_found_was_paid_for(ledger, time):
    ledger.begin_call(call("call", 3, output="s3://bucket/1.png"), None)
    ledger.begin_call(call("other", 3, output="s3://bucket/2.png"), None)
    time.pass_(hours=3)
    ledger.end_leases()
    ledger.output_found("s3://bucket/1.png")

    assert (state(ledger, "call"), state(ledger, "other")) == (("posted", 3), ("unknown", 3))
    assert row(ledger, "call").reason == "Its output was found."


def test_an_output_of_two_open_calls_settles_neither(ledger, engine):
    for key in ("first", "second"):
        ledger.begin_call(call(key, 3, output=f"s3://bucket/{key}.png"), None)
    output_hash = row(ledger, "first").output_hash
    with engine.begin() as connection:
        connection.execute(spends.update().values(output_hash=output_hash))
    ledger.output_found("s3://bucket/first.png")

    assert (state(ledger, "first"), state(ledger, "second")) == (("held", 3), ("held", 3))


# Holds


def test_the_first_holds_are_taken_as_far_as_the_budget_allows(ledger):
    result = ledger.hold([hold("a", 6), hold("b", 5), hold("c", 4)])

    assert result.held == ["a", "c"]
    assert set(result.refused) == {"b"}
    assert result.refused["b"].text == (
        "budget images: 10 of 10 credits used or held, renews 2026-12-01 00:00 UTC"
    )
    assert state(ledger, "b") is None


def test_no_holds_are_no_transaction(empty):
    assert empty.hold([]).held == []


def test_a_task_that_can_never_fit_fails(ledger):
    result = ledger.hold([hold("large", 10.000001), hold("fits", 10)])

    assert result.held == ["fits"]
    assert str(result.failures["large"]) == (
        "The task needs 10.000001 credits, and the limit of its budget is less, so it could never run: "
        "budget images: 0 of 10 credits used or held, renews 2026-12-01 00:00 UTC. Raise the limit, or lower "
        "the credits."
    )


def test_a_budget_that_does_not_exist_fails(ledger):
    other = dataclasses.replace(SPENDER, budget="films")

    failure = ledger.hold([hold("a", 1, other)]).failures["a"]
    assert isinstance(failure, StabilityBudgetNotFoundError)
    assert str(failure) == (
        "There is no budget 'films' in the ledger. Make it with `airflow stability budget set`, or name "
        "another one."
    )
    with pytest.raises(StabilityBudgetNotFoundError, match="no budget 'films'"):
        ledger.begin_call(call("call", 1, other), None)
    assert count(ledger, spends) == 0


def test_a_hold_whose_first_try_was_committed_is_not_refused_because_of_itself(ledger):
    assert ledger.hold([hold("a", 6)]).held == ["a"]
    again = ledger.hold([hold("a", 6), hold("b", 6)])

    assert again.held == ["a"]
    assert set(again.refused) == {"b"}
    assert (state(ledger, "a"), used(ledger)) == (("held", 6), 6)


def test_a_hold_whose_first_try_was_committed_does_not_fail_when_the_budget_is_gone(ledger):
    ledger.hold([hold("a", 6)])
    ledger.set_budget("images", 5, "day")
    assert ledger.hold([hold("a", 6)]).held == ["a"]
    ledger.delete_budget("images")
    assert ledger.hold([hold("a", 6)]).held == ["a"]


def test_the_same_hold_twice_in_a_batch_is_one(ledger):
    assert ledger.hold([hold("a", 3), hold("a", 3)]).held == ["a"]
    assert used(ledger) == 3


def test_a_hold_is_taken_again_after_its_lease_has_ended(ledger, time):
    ledger.hold([hold("a", 3)])
    time.pass_(seconds=901)
    assert ledger.end_leases() == 1
    assert (state(ledger, "a"), used(ledger)) == (("void", 3), 0)
    assert not ledger.start("a", "images")

    assert ledger.hold([hold("a", 4)]).held == ["a"]
    found = row(ledger, "a")
    assert (found.state, found.microcredits, found.ended_at, found.reason) == ("held", 4 * MICRO, None, None)
    assert (found.held_at, found.lease_ends_at) == (time.now, time.now + timedelta(seconds=900))
    assert used(ledger) == 4
    assert ledger.start("a", "images")


def test_a_start_is_noted_and_has_a_longer_lease(ledger, time):
    ledger.hold([hold("a", 3)])
    assert row(ledger, "a").started_at is None
    time.pass_(minutes=5)
    assert ledger.start("a", "images", lease=60)

    found = row(ledger, "a")
    assert (found.started_at, found.lease_ends_at) == (time.now, time.now + timedelta(seconds=60))
    assert not ledger.start("no such hold", "images")


@pytest.mark.parametrize(
    ("more", "ends"),
    [
        ({}, "void"),
        ({"itemized": True}, "void"),
        ({"itemized": True, "starts": True}, "void"),
        ({"starts": True}, "unknown"),
    ],
)
def test_only_what_certainly_was_not_paid_for_is_given_back(ledger, time, more, ends):
    ledger.hold([hold("a", 3, **more)])
    time.pass_(seconds=900)
    ledger.end_leases()
    assert state(ledger, "a") == ("held", 3)  # until its last moment
    time.pass_(seconds=1)
    assert ledger.end_leases() == (ends == "void")

    assert (state(ledger, "a"), used(ledger)) == ((ends, 3), 0 if ends == "void" else 3)
    assert row(ledger, "a").reason == (
        "Its lease ended. It never ran, or each of its calls is a spend of its own."
        if ends == "void"
        else "Its lease ended, and its outcome was never reported."
    )


def test_a_call_whose_lease_ended_counts_until_somebody_settles_it(ledger, time):
    ledger.begin_call(call("call", 3), None)
    time.pass_(hours=2, seconds=1)
    assert ledger.end_leases() == 0
    assert (state(ledger, "call"), used(ledger)) == (("unknown", 3), 3)

    assert ledger.end("call", "void", "settled by ann")
    assert (used(ledger), row(ledger, "call").reason) == (0, "settled by ann")


@pytest.mark.parametrize(
    ("first", "then", "changes"),
    [
        ("posted", "posted", False),
        ("posted", "unknown", False),
        ("posted", "void", True),
        ("void", "posted", True),
        ("void", "unknown", False),
        ("void", "void", False),
        ("unknown", "unknown", False),
        ("unknown", "posted", True),
        ("unknown", "void", True),
    ],
)
def test_an_end_may_be_put_right_and_is_never_forgotten(ledger, first, then, changes):
    ledger.begin_call(call("call", 3), None)
    assert ledger.end("call", first)

    assert ledger.end("call", then) is changes
    assert state(ledger, "call") == (then if changes else first, 3)
    assert used(ledger) == (0 if state(ledger, "call")[0] == "void" else 3)
    assert not ledger.end("no such call", then)


# The balance


def test_a_top_up_for_20_holds_20(ledger):
    first = ledger.hold([hold(f"a{n}", 1, NOBODYS) for n in range(15)], Reading(20, 1))
    # Another triggerer, with a reading of the same moment.
    second = ledger.hold([hold(f"b{n}", 1, NOBODYS) for n in range(15)], Reading(20, 1))

    assert (len(first.held), second.held) == (15, [f"b{n}" for n in range(5)])
    assert second.refused == {f"b{n}": None for n in range(5, 15)}
    assert set(second.reserved.values()) == {20}


def test_a_smaller_task_behind_a_larger_one_is_held(ledger):
    result = ledger.hold([hold("a", 5, NOBODYS), hold("b", 2, NOBODYS)], Reading(3, 1))

    assert (result.held, result.reserved) == (["b"], {"a": 0})


def test_a_budget_and_the_balance_must_both_suffice(ledger):
    assert ledger.hold([hold("a", 5)], Reading(4, 1)).refused == {"a": None}
    assert ledger.hold([hold("b", 5), hold("c", 6)], Reading(100, 1)).held == ["b"]
    assert (state(ledger, "a"), used(ledger)) == (None, 5)


def test_a_minimum_must_be_exceeded(ledger):
    result = ledger.hold(
        [hold("a", 1, NOBODYS, minimum=20), hold("b", 1, NOBODYS, minimum=5)], Reading(20, 1)
    )

    assert (result.held, set(result.refused)) == (["b"], {"a"})


def test_what_others_hold_of_another_wallet_is_not_spoken_for(ledger):
    other = dataclasses.replace(NOBODYS, organization=None)
    ledger.hold([hold("a", 20, other)])

    assert ledger.hold([hold("b", 20, NOBODYS)], Reading(20, 1)).held == ["b"]
    assert row(ledger, "a").wallet == "connection stability_default"


@pytest.mark.parametrize("ended", ["posted", "unknown"])
def test_what_was_spent_after_a_reading_counts_against_it(ledger, time, ended):
    ledger.begin_call(call("call", 15, NOBODYS), None)
    time.pass_(seconds=10)
    ledger.end("call", ended)
    time.pass_(seconds=10)

    assert not ledger.hold([hold("a", 6, NOBODYS)], Reading(20, 11)).held
    assert ledger.hold([hold("a", 6, NOBODYS)], Reading(20, 9)).held


def test_what_was_given_back_after_a_reading_does_not_count(ledger, time):
    ledger.begin_call(call("call", 15, NOBODYS), None)
    ledger.end("call", "void")

    assert ledger.hold([hold("a", 20, NOBODYS)], Reading(20, 1)).held


def test_the_latest_reading_and_each_change_are_kept(ledger, time):
    def kept():
        with ledger.database.engine.connect() as connection:
            return [
                (found.wallet, found.microcredits / MICRO, (found.read_at - begin).total_seconds())
                for table in (wallets, balances)
                for found in connection.execute(select(table).order_by(table.c.read_at))
            ]

    begin = time.now
    for credits, age in ((20, 5), (30, 6), (20, 5)):  # the second one is older
        ledger.hold([hold("a", 1000, NOBODYS)], Reading(credits, age))
    assert kept() == [("org-1", 20, -5), ("org-1", 20, -5)]
    ledger.hold([hold("a", 1000, NOBODYS)], Reading(20, 4))
    assert kept() == [("org-1", 20, -4), ("org-1", 20, -5)]
    ledger.hold([hold("a", 1000, NOBODYS)], Reading(19, 3))
    assert kept() == [("org-1", 19, -3), ("org-1", 20, -5), ("org-1", 19, -3)]


# Budgets


def test_a_soft_limit_is_reported_once_in_each_period(ledger, time):
    ledger.set_budget("images", 10, "day", soft_percent=80)

    assert ledger.hold([hold("a", 7.9)]).soft_limits == []
    (reached,) = ledger.hold([hold("b", 0.1)]).soft_limits
    assert (reached.name, reached.soft_reached_at) == ("images", time.now)
    assert ledger.hold([hold("c", 0.5)]).soft_limits == []
    assert ledger.hold([hold("f", 0.2), hold("g", 0.3)]).soft_limits == []
    ledger.end("a", "void")
    assert ledger.hold([hold("d", 7.9)]).soft_limits == []

    time.pass_(days=1)
    assert ledger.hold([hold("e", 1)]).soft_limits == []
    assert [each.name for each in ledger.begin_call(call("call", 9), None)] == ["images"]
    assert ledger.begin_call(call("call", 9), None) == []


def test_a_soft_limit_that_is_changed_is_reported_again(ledger, time):
    ledger.set_budget("images", 10, "day", soft_percent=50)
    (reached,) = ledger.hold([hold("a", 5)]).soft_limits
    time.pass_(minutes=1)
    again = ledger.set_budget("images", 10, "day", soft_percent=50)
    assert again.soft_reached_at == reached.soft_reached_at < time.now
    assert not ledger.hold([hold("b", 1)]).soft_limits
    ledger.set_budget("images", 20, "day", soft_percent=50)
    assert ledger.hold([hold("c", 4)]).soft_limits


def test_a_budget_without_a_soft_limit_reports_none(ledger):
    assert ledger.hold([hold("a", 10)]).soft_limits == []
    assert ledger.budgets()[0].soft_reached_at is None


def test_a_limit_below_what_is_used_holds_nothing_more_and_loses_nothing(ledger):
    ledger.hold([hold("a", 6, starts=True)])
    lowered = ledger.set_budget("images", 4, "day")

    assert lowered.text == "budget images: 6 of 4 credits used or held, renews 2026-12-01 00:00 UTC"
    assert set(ledger.hold([hold("b", 1)]).refused) == {"b"}
    ledger.begin_call(call("call", 5), "a")  # what was held before can be spent
    with pytest.raises(StabilityBudgetExhaustedError, match="6 of 4 credits"):
        ledger.begin_call(call("more", 2), "a")
    assert (state(ledger, "a"), state(ledger, "call"), used(ledger)) == (("held", 1), ("held", 5), 6)

    ledger.set_budget("images", 7, "day")
    assert ledger.hold([hold("b", 1)]).held
    assert used(ledger) == 7


def test_a_budget_that_is_deleted_while_something_is_held_can_be_made_again(ledger):
    ledger.hold([hold("a", 4, starts=True), hold("b", 2)])
    assert ledger.delete_budget("images")
    assert not ledger.delete_budget("images")
    assert ledger.budgets() == []

    assert ledger.end("b", "void")
    with pytest.raises(StabilityBudgetNotFoundError):
        ledger.begin_call(call("call", 1), "a")
    assert ledger.set_budget("images", 10, "day").used == 4 * MICRO
    assert ledger.end("a", "posted")
    assert used(ledger) == 4


def test_another_period_counts_what_was_spent_in_it_before(ledger, time):
    ledger.hold([hold("a", 4)])
    time.pass_(days=1)
    ledger.set_budget("films", 10, "day")
    ledger.hold([hold("b", 3), hold("c", 5, dataclasses.replace(SPENDER, budget="films"))])
    assert (used(ledger), used(ledger, "films")) == (3, 5)

    assert ledger.set_budget("images", 10, "month").used == 3 * MICRO  # it is December now
    assert ledger.set_budget("images", 10, "week").used == 7 * MICRO
    assert ledger.set_budget("images", 10, "total").text == (
        "budget images: 7 of 10 credits used or held, does not renew"
    )


def test_a_months_end_renews_a_budget(ledger, time):
    ledger.set_budget("images", 10, "month", timezone="Europe/Paris")
    ledger.hold([hold("a", 10, lease=1e6)])
    time.now = datetime(2026, 11, 30, 22, 59, 59)
    refused = ledger.hold([hold("b", 1)]).refused["b"]
    assert refused.text == "budget images: 10 of 10 credits used or held, renews 2026-12-01 00:00 CET"
    time.now = datetime(2026, 11, 30, 23)
    assert used(ledger) == 0

    assert ledger.hold([hold("b", 1)]).held
    assert (used(ledger), ledger.budgets()[0].period.ends_at) == (1, datetime(2026, 12, 31, 23))


def test_a_day_of_25_hours_is_one_day(ledger, time):
    time.now = datetime(2026, 10, 24, 22)
    ledger.set_budget("images", 10, "day", timezone="Europe/Paris")
    ledger.hold([hold("a", 10, lease=1e6)])
    time.pass_(hours=24, minutes=59)
    assert ledger.hold([hold("b", 1)]).refused
    time.pass_(minutes=1)
    assert ledger.hold([hold("b", 1)]).held


def test_what_is_held_in_one_period_and_ends_in_the_next_counts_in_the_first(ledger, time):
    ledger.hold([hold("a", 4, starts=True, lease=1e6), hold("b", 3, lease=1e6)])
    time.pass_(days=1)
    ledger.hold([hold("c", 9)])
    ledger.end("a", "posted")
    ledger.end("b", "void")

    assert used(ledger) == 9
    assert ledger.hold([hold("d", 1)]).held


def test_a_call_of_a_hold_of_the_last_period_counts_in_this_one(ledger, time):
    ledger.hold([hold("a", 4, starts=True, lease=1e6)])
    time.pass_(days=1)
    ledger.begin_call(call("call", 3), "a")

    assert (state(ledger, "a"), used(ledger)) == (("held", 1), 3)


def test_a_process_whose_clock_is_behind_holds_in_the_period_that_has_begun(ledger, engine, time):
    behind = Ledger(Database(engine, "the same", clock=lambda: time.now - timedelta(seconds=1)))
    time.now = datetime(2026, 12, 1)
    ledger.hold([hold("a", 4)])
    behind.hold([hold("b", 4)])
    behind.begin_call(call("call", 2), None)

    assert used(ledger) == 10
    assert row(ledger, "b").held_at == row(ledger, "call").held_at == time.now


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"name": ""}, "budget must be a name of 1 to 100 printable characters"),
        ({"name": " a"}, "budget must be a name of 1 to 100 printable characters"),
        ({"name": "a\n"}, "budget must be a name of 1 to 100 printable characters"),
        ({"name": "a\tb"}, "budget must be a name of 1 to 100 printable characters"),
        ({"name": "a" * 101}, "budget must be a name of 1 to 100 printable characters"),
        ({"name": 7}, "budget must be a name of 1 to 100 printable characters"),
        ({"limit": -1}, "limit must be"),
        ({"limit": "much"}, "limit must be"),
        ({"every": "year"}, "every must be one of day, week, month, total; got 'year'"),
        ({"timezone": "Mars/Base"}, "timezone must be the name of a time zone, such as Europe/Paris"),
        ({"soft_percent": 0}, "soft must be a whole percent from 1 to 100; got 0"),
        ({"soft_percent": 101}, "soft must be a whole percent from 1 to 100; got 101"),
        ({"soft_percent": True}, "soft must be a whole percent from 1 to 100; got True"),
        ({"soft_percent": 80.5}, "soft must be a whole percent from 1 to 100; got 80.5"),
    ],
)
def test_an_unusable_budget_is_refused(ledger, arguments, problem):
    usable = {"name": "films", "limit": 10, "every": "day"}
    with pytest.raises(ValueError, match=problem):
        ledger.set_budget(**(usable | arguments))
    assert [each.name for each in ledger.budgets()] == ["images"]


@pytest.mark.parametrize("name", ["a", "a" * 100, "Bilder für alle"])
@pytest.mark.parametrize("soft", [None, 1, 100])
def test_a_usable_budget_is_made(ledger, name, soft):
    ledger.set_budget(name, 0.5, "day", soft_percent=soft)

    (made,) = [each for each in ledger.budgets() if each.name == name]
    assert (made.limit, made.soft_percent) == (MICRO / 2, soft)


# The tables


def test_missing_tables_are_said_in_a_sentence(empty):
    with pytest.raises(StabilityConfigurationError) as raised:
        empty.budgets()
    assert str(raised.value) == (
        "The ledger has no tables in connection 'ledger': run `airflow stability ledger init` once."
    )
    assert empty.database.init() == VERSION
    assert empty.budgets() == []


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        (VERSION - 1, f"this release needs {VERSION}: run `airflow stability ledger init` once"),
        (
            VERSION + 1,
            f"this release knows up to {VERSION}: install a later release of airflow-provider-stability here",
        ),
    ],
)
def test_tables_of_another_version_are_refused(ledger, engine, version, advice):
    with engine.begin() as connection:
        connection.execute(versions.update().values(version=version))
    other = Ledger(Database(engine, "connection 'ledger'"))

    with pytest.raises(StabilityConfigurationError) as raised:
        other.hold([hold("a", 1)])
    assert str(raised.value) == (
        f"The ledger's tables in connection 'ledger' have version {version}, and {advice}."
    )
    assert count(ledger, spends) == 0


def test_init_makes_nothing_twice(ledger):
    ledger.hold([hold("a", 1)])
    assert ledger.database.init() == VERSION
    assert (count(ledger, versions), count(ledger, spends)) == (1, 1)


def test_init_refuses_airflows_own_database(empty, engine):
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE task_instance (dag_id TEXT)")

    with pytest.raises(StabilityConfigurationError) as raised:
        empty.database.init()
    assert str(raised.value) == (
        "connection 'ledger' is Airflow's own database, which a ledger must not share: tasks may not reach "
        "it, and Airflow's upgrades change it. Name another database or schema."
    )
    assert empty.database.version() is None


def test_the_version_is_asked_for_once(ledger, engine):
    asked = []
    event.listen(engine, "before_cursor_execute", lambda *each: asked.append(each[2]))
    ledger.budgets()
    ledger.budgets()
    assert not [each for each in asked if versions.name in each]


# The database


def failing(engine, times, text="the server is away, and its password is hunter2."):
    """Let the next transactions fail; return the list of those that were begun."""
    begun = []

    def begin(_connection):
        begun.append(1)
        if len(begun) <= times:
            raise OperationalError("SELECT 1", {}, Exception(text))

    event.listen(engine, "begin", begin)
    return begun


def test_a_transaction_that_the_database_ends_is_run_again(ledger, engine, clock):
    begun = failing(engine, 3)

    assert ledger.hold([hold("a", 1)]).held == ["a"]
    assert len(begun) == 4
    assert clock.waits == pytest.approx([0.05, 0.1, 0.15])


def test_a_database_that_stays_away_is_said_in_a_sentence_without_secrets(engine, clock, time):
    database = Database(engine, "connection 'ledger'", ("hunter2",), clock=time)
    ledger = Ledger(database)
    database.init()
    begun = failing(engine, 99)

    with pytest.raises(StabilityLedgerUnavailableError) as raised:
        ledger.hold([hold("a", 1)])
    assert str(raised.value) == (
        "The ledger in connection 'ledger' is out of reach: Exception: the server is away, and its password "
        "is ***. No call is sent unless it is written down first. Check the database and its connection."
    )
    assert raised.value.__context__ is None
    assert len(begun) == database_module.TRIES
    assert len(clock.waits) == database_module.TRIES - 1


def test_a_long_error_of_the_database_is_cut(ledger, engine, clock):
    failing(engine, 99, "x\n" * 500)

    with pytest.raises(StabilityLedgerUnavailableError) as raised:
        ledger.budgets()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_the_clock_is_compared_now_and_then(clock):
    compared = []

    class Counting(database_module.DatabaseClock):
        def _compare(self):
            compared.append(clock.now)
            return super()._compare()

    engine = create_engine("sqlite://")
    its = Counting(engine)
    first = its.now()
    clock.now += 600
    assert (its.now() - first).total_seconds() == pytest.approx(600)
    clock.now += 1
    its.now()
    assert compared == [1000.0, 1601.0]
    engine.dispose()


def test_an_engine_waits_for_nothing_without_end():
    assert engine_arguments("postgresql") == {
        "future": True,
        "connect_args": {"connect_timeout": 15},  # PgBouncer refuses the server's own timeouts
    }
    assert engine_arguments("mysql") == {
        "future": True,
        "connect_args": {"connect_timeout": 15},
        "isolation_level": "READ COMMITTED",
    }
    assert engine_arguments("sqlite") == {
        "future": True,
        "connect_args": {"timeout": 15, "check_same_thread": False},
    }


def test_on_sqlite_a_transaction_begins_as_a_writer(tmp_path):
    engine = adapt(create_engine(f"sqlite:///{tmp_path / 'ledger'}", **engine_arguments("sqlite")))
    said = []
    event.listen(engine, "before_cursor_execute", lambda *each: said.append(each[2]))
    with engine.begin() as connection:
        connection.execute(select(1))
    engine.dispose()
    assert said[0] == "BEGIN IMMEDIATE"
