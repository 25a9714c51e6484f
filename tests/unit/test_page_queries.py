"""How odd rows are read. Any user who may write an XCom can write any value."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

from airflow_stability.compat import HAS_EXTERNAL_VIEWS

if not HAS_EXTERNAL_VIEWS:
    pytest.skip("the Credits page needs Airflow 3.1", allow_module_level=True)

from airflow_stability.decorators.stability import StabilityDecoratedOperator
from airflow_stability.operators.spend import StabilitySpendOperator
from airflow_stability.operators.stability import StabilityBalanceOperator
from airflow_stability.page import queries
from airflow_stability.page.burn_rate import Reading
from airflow_stability.sensors.stability import StabilityBalanceSensor
from airflow_stability.triggers.stability import StabilityBalanceTrigger

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_classes_have_the_names_that_the_database_holds():
    assert [StabilityBalanceSensor.__name__, StabilityBalanceOperator.__name__] == [
        queries.SENSOR,
        queries.BALANCE_OPERATOR,
    ]
    assert {StabilitySpendOperator.__name__, StabilityDecoratedOperator.__name__} == {
        *queries.SPENDING_OPERATORS
    }
    assert f"{StabilityBalanceTrigger.__module__}.{StabilityBalanceTrigger.__name__}" == queries.TRIGGER_PATH


@pytest.mark.parametrize(
    "value",
    [
        "Infinity",
        "-Infinity",
        "NaN",
        "1e400",
        "1.5e308",
        "9" * 400,
        "[" * 100_000,
        "true",
        "null",
        '"12.5"',
        "[12.5]",
        '{"credits": NaN}',
        '{"credits": [1]}',
        "{}",
        "no JSON",
    ],
    ids=lambda value: value[:20],
)
def test_a_value_that_is_no_balance_is_ignored(value):
    assert queries._reading(queries._credits_in(queries._decoded(value)), NOW, NOW) is None


@pytest.mark.parametrize("value", [12.5, "12.5", {"credits": 12.5}, json.dumps({"credits": 12.5})])
def test_a_balance_is_found_as_gates_and_operators_push_it(value):
    assert queries._reading(queries._credits_in(queries._decoded(value)), NOW, NOW) == Reading(NOW, 12.5)


def test_a_time_of_another_zone_is_shown_in_utc():
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5)))

    assert queries._reading(1.0, elsewhere, NOW).at.isoformat() == NOW.isoformat()


@pytest.mark.parametrize(
    ("minimum", "expected", "shown"),
    [
        (50, None, "more than 50"),
        ("0.5", "None", "more than 0.5"),
        (50.0, "0.0", "more than 50"),
        (0, "3", "3"),
        ("50", 2.5, "2.5 beyond 50"),
        ("{{ params.reserve }}", 3, "more than {{ params.reserve }}"),
        (None, None, "?"),
        (10**400, None, "?"),
        (["anything"], 3, "?"),
    ],
)
def test_the_needed_credits_are_written_as_in_the_log(minimum, expected, shown):
    assert queries._needs(minimum, expected) == shown


@pytest.mark.parametrize(
    ("budget", "read"),
    [
        ("team", "team"),
        (None, None),
        ("None", None),
        ("", None),
        ("{{ params.team }}", None),
        (["team"], None),
    ],
)
def test_the_budget_of_a_task_is_unknown_if_it_is_no_name(budget, read):
    assert queries._budget({"budget": budget}) == read
    assert queries._budget({}) is None


@pytest.mark.parametrize(
    ("arguments", "airflows", "seconds"),
    [
        ({"timeout": 3600.0, "waited": 600.0, "deferral_timeout": 3300.0}, 3300, 3000),
        ({"timeout": 3600.0, "waited": 600.0, "deferral_timeout": 900.0}, 900, 900),  # by execution_timeout
        ({"timeout": 3600.0, "deferral_timeout": None}, 3600, 3600),  # it started in the triggerer
        ({"timeout": "x", "waited": 1e300, "deferral_timeout": float("nan")}, 900, 900),
        ({}, 900, 900),
    ],
)
def test_a_wait_ends_by_the_timeout_of_the_trigger(arguments, airflows, seconds):
    airflow_timeout = (NOW + timedelta(seconds=airflows)).replace(tzinfo=None)

    assert queries._until(airflow_timeout, arguments) == NOW + timedelta(seconds=seconds)
    assert queries._until(None, arguments) is None


@pytest.mark.parametrize("encode", [dict, json.dumps], ids=["decoded", "encoded twice"])
@pytest.mark.parametrize(
    ("organization", "wallets"),
    [
        ("org-2", [queries.Wallet("wallet", "org-2")]),
        (None, [queries.Wallet("wallet", "org-1")]),
        ("", [queries.Wallet("wallet", "org-1")]),
        ("x" * 1_000_000, []),
        ("two words", []),
        (["org-2"], []),
        ({"org": 2}, []),
        (7, []),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_balance_belongs_to_the_organization_that_was_pushed_with_it(encode, organization, wallets):
    row = SimpleNamespace(value=encode({"credits": 12.5, "organization": organization}), timestamp=NOW)
    fields = {"stability_conn_id": "wallet", "organization": "org-1"}
    readings = defaultdict(list)

    queries._add_reading(row, fields, NOW, readings)

    assert [*readings] == wallets


@pytest.mark.parametrize("organization", ["x" * 1_000_000, "two words", ["org-1"], 7, "{{ params.of }}"])
def test_the_wallet_of_a_task_is_unknown_if_no_organization_is_called_that(organization):
    assert queries._wallet({"stability_conn_id": "wallet", "organization": organization}) is None
