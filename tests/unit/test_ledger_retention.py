"""What may be deleted from a ledger, and what must not."""

from datetime import datetime, timedelta

import pytest
from sqlalchemy import event, func, select

from airflow_stability.ledger import retention
from airflow_stability.ledger.ledger import Hold, Reading, Spender
from airflow_stability.ledger.retention import prune
from airflow_stability.ledger.schema import balances, spends

OLD = datetime(2026, 8, 2, 10)
BEFORE = datetime(2026, 11, 1)


def keys(ledger):
    with ledger.database.engine.connect() as connection:
        return set(connection.execute(select(spends.c.spend_key)).scalars())


def test_what_ended_long_ago_is_deleted_and_what_is_open_never_is(ledger):
    for state in ("posted", "void", "held", "unknown"):
        ledger.spend(state, state=state, at=OLD)
    ledger.spend("later", at=BEFORE)

    pruned = prune(ledger.database, BEFORE)

    assert keys(ledger) == {"held", "unknown", "later"}
    assert (pruned.before, pruned.spends, pruned.kept_open, pruned.kept_ended) == (BEFORE, 2, 2, 0)
    assert prune(ledger.database, BEFORE).spends == 0


def test_a_time_may_be_how_long_ago_by_the_databases_clock(ledger):
    ledger.spend("old", at=ledger.time - timedelta(days=2, seconds=1))
    ledger.spend("young", at=ledger.time - timedelta(days=2))

    assert prune(ledger.database, timedelta(days=2)).before == datetime(2026, 11, 16, 12)
    assert keys(ledger) == {"young"}


@pytest.mark.parametrize("before", [timedelta(hours=23), datetime(2026, 11, 17, 12, 0, 1)])
def test_what_is_younger_than_a_day_is_not_deleted(before, ledger):
    with pytest.raises(
        ValueError, match=r"^Only what is older than a day can be deleted: give a time up to 2026-11-17"
    ):
        prune(ledger.database, before)


def test_what_counts_in_the_current_period_of_its_budget_stays(ledger):
    ledger.time = OLD
    ledger.set_budget("ever", 100, "total")
    ledger.set_budget("monthly", 100, "month")  # nobody has used it since
    ledger.time = datetime(2026, 11, 18, 12)
    for budget in ("ever", "monthly", "deleted", None):
        if budget == "deleted":
            ledger.set_budget("deleted", 100, "total")
        ledger.spend(f"{budget}-old", at=OLD, budget=budget)
        ledger.spend(f"{budget}-this-month", at=datetime(2026, 11, 2), budget=budget)
    ledger.delete_budget("deleted")
    before = ledger.budgets()

    pruned = prune(ledger.database, datetime(2026, 11, 10))

    assert keys(ledger) == {"ever-old", "ever-this-month", "monthly-this-month"}
    assert (pruned.spends, pruned.kept_ended) == (5, 3)
    assert ledger.budgets() == before
    for budget in before:  # which sums up the spends
        ledger.set_budget(budget.name, 100, budget.every)
    assert ledger.budgets() == before


def test_what_ended_only_lately_stays(ledger):
    ledger.spend("late", state="unknown", at=OLD)
    ledger.settle("late", "void", "ann")

    assert prune(ledger.database, BEFORE).kept_ended == 1
    assert keys(ledger) == {"late"}


def test_of_each_wallet_the_last_balance_before_stays_from_which_later_ones_have_changed(ledger):
    now = ledger.time
    for wallet in ("org-1", "org-2"):
        for day, credits in ((1, 50), (2, 40), (3, 30), (18, 20)):
            ledger.time = datetime(2026, 11, day)
            hold = Hold(f"{wallet}-{day}", Spender("stability_default", wallet), 1)
            ledger.hold([hold], Reading(credits, 0.0))
    ledger.time = now

    assert prune(ledger.database, datetime(2026, 11, 10)).balances == 4
    with ledger.database.engine.connect() as connection:
        left = connection.execute(select(balances.c.wallet, balances.c.read_at)).all()
    assert sorted((wallet, read_at.day) for wallet, read_at in left) == [
        ("org-1", 3),
        ("org-1", 18),
        ("org-2", 3),
        ("org-2", 18),
    ]


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 100])
def test_each_transaction_deletes_a_few_rows_also_of_one_time(batch, ledger, monkeypatch, clock):
    monkeypatch.setattr(retention, "BATCH", batch)
    ledger.set_budget("ever", 100, "total")
    for number in range(12):
        ledger.spend(f"{number}", 1, at=OLD + timedelta(hours=number // 4))
        ledger.spend(f"kept-{number}", 1, at=OLD + timedelta(hours=number // 4), budget="ever")

    pruned = prune(ledger.database, BEFORE)

    assert (pruned.spends, pruned.kept_ended) == (12, 12)
    assert len(clock.waits) == {1: 3, 2: 3, 3: 3, 7: 1, 100: 0}[batch]
    with ledger.database.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(spends)).scalar() == 12


def test_a_batch_reads_only_what_is_old(ledger):
    ledger.spend("old", at=OLD)
    statements = []

    @event.listens_for(ledger.database.engine, "before_cursor_execute")
    def note(connection, cursor, statement, parameters, *_):
        if "stability_spends.ended_at < " in statement:
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            statements.append(" ".join(row[3] for row in cursor.fetchall()))

    prune(ledger.database, BEFORE)

    assert len(statements) == 2
    assert all("INDEX stability_spends_by_time (held_at<?)" in plan for plan in statements)
    assert not any("TEMP B-TREE" in plan for plan in statements)
