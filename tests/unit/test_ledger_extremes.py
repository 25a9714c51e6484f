"""Numbers and moments that a ledger must bear."""

import pytest
from sqlalchemy import event

from airflow_stability.ledger.ledger import Hold, Reading, Spender
from airflow_stability.ledger.schema import metadata

SPENDER = Spender("stability_default", "org-1")


@pytest.mark.parametrize("balance", [1e22, -1e22, 1.7e308])
def test_a_balance_larger_than_the_column_is_taken_for_the_largest(balance, ledger):
    result = ledger.hold([Hold("a", SPENDER, 3)], Reading(balance, 0.0))

    assert result.held == (["a"] if balance > 0 else [])


def test_credits_larger_than_the_column_are_held_as_the_most_it_takes(ledger):
    for key in ("a", "b", "c"):
        assert ledger.hold([Hold(key, SPENDER, 1e300)]).held == [key]

    assert ledger.hold([Hold("d", SPENDER, 3)], Reading(1e6, 0.0)).refused == {"d": None}


@pytest.mark.parametrize("limit", [1e300, "1e13", 1_000_000_000_000.1])
def test_a_limit_larger_than_the_column_is_an_error(limit, ledger):
    with pytest.raises(ValueError, match=r"^limit must be at most 1000000000000 credits; got "):
        ledger.set_budget("team", limit, "month")

    ledger.set_budget("team", 1_000_000_000_000, "month")


def insert_before(engine, table, statement):
    """Run a statement just before the first insert into a table, as if somebody else were faster."""
    done = []

    @event.listens_for(engine, "before_cursor_execute")
    def be_faster(connection, cursor, text, *_):
        if text.startswith(f"INSERT INTO {table} ") and not done:
            done.append(text)
            cursor.execute(statement)

    return done


def test_two_who_make_a_budget_at_once_make_one(ledger):
    row = (
        "'team', 5, 'month', 'UTC', NULL, '2026-11-01 00:00:00.000000', '2026-12-01 00:00:00.000000', 0, NULL"
    )
    faster = insert_before(
        ledger.database.engine, "stability_budgets", f"INSERT INTO stability_budgets SELECT {row}"
    )

    ledger.set_budget("team", 10, "month")

    assert faster
    assert [budget.limit for budget in ledger.budgets()] == [10_000_000]


def test_two_who_make_the_tables_at_once_make_them(ledger):
    metadata.drop_all(ledger.database.engine)
    row = "INSERT INTO stability_ledger SELECT 1, '2026-11-01 00:00:00.000000'"
    faster = insert_before(ledger.database.engine, "stability_ledger", row)

    assert ledger.database.init() == 1

    assert faster
    assert ledger.budgets() == []
