"""What the Credits page makes of what it has read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from airflow_stability.compat import HAS_EXTERNAL_VIEWS

if not HAS_EXTERNAL_VIEWS:
    pytest.skip("the Credits page needs Airflow 3.1", allow_module_level=True)

from airflow_stability.page import app, permissions
from airflow_stability.page.balance_cache import CachedBalance, CachedConnection
from airflow_stability.page.burn_rate import Reading
from airflow_stability.page.queries import QueryResult, Wallet

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
BY_PAGE = Reading(NOW - timedelta(hours=2), 40.0)
BY_TASK = Reading(NOW - timedelta(minutes=1), 31.5)


def section(connection, *readings):
    result = QueryResult((), {Wallet("wallet", None): readings}, complete=True, unread=())
    return app._section("wallet", None, connection, result, set(), NOW, 1000.0)


def test_while_the_api_fails_the_last_balance_that_is_known_is_shown_whoever_read_it():
    failed = CachedBalance(BY_PAGE, "The API answered with status 503.", 999.0, (BY_PAGE,))

    assert section(CachedConnection(balances={None: failed}), BY_TASK)["last"] == BY_TASK
    assert section(CachedConnection(balances={None: failed}))["last"] == BY_PAGE
    assert section(CachedConnection(), BY_TASK)["last"] == BY_TASK
    assert section(CachedConnection())["last"] is None


def test_a_failure_with_a_lock_out_says_until_when_nothing_is_requested():
    failed = CachedBalance(BY_PAGE, "The API answered with status 503.", 999.0, (BY_PAGE,))
    locked = CachedConnection(balances={None: failed}, locked_until=NOW + timedelta(days=3))

    assert section(locked)["problem"] == (
        "The API answered with status 503. The server allows no call with this API key before "
        "2026-01-04 12:00:00 UTC."
    )


def test_an_organization_that_was_skipped_says_why():
    """It is not said to be new, or one of too many."""
    earlier = CachedBalance(BY_PAGE, None, 500.0, (BY_PAGE,))
    why = "It was not requested, because the request for organization org-1 failed."
    skipped = CachedConnection("org-1", balances={None: earlier}, skipped={None: why})

    assert section(skipped)["problem"] == why
    assert "tasks name more than 20" in section(CachedConnection("org-1"))["problem"]


def test_a_page_does_not_say_of_a_day_what_it_knows_of_twenty_minutes():
    """A fall between two readings may have been made good by a top-up, and nothing is known of the rest."""
    readings = [Reading(NOW - timedelta(minutes=each), 5.0) for each in (20, 10, 0)]
    shown = {"sections": [section(CachedConnection(), *readings)], "others": app.task_list([], set())}
    shown |= {
        "ledgers": [],
        "reading": False,
        "pending": False,
        "queried_at": None,
        "complete": True,
        "unread": (),
    }
    page = app._templates().get_template("credits.html")
    html = page.render(shown, nonce="", credits_url="", now=NOW, days=7, reload_seconds=3)

    assert "No fall was seen in the readings of the last 24 hours." in html
    assert "has not fallen" not in html


def test_what_the_api_has_just_said_is_shown_whatever_a_task_has_pushed_since():
    """A gate pushes its balance some time after reading it."""
    fresh = CachedBalance(BY_PAGE, None, 999.0, (BY_PAGE,))

    assert section(CachedConnection(balances={None: fresh}), BY_TASK)["last"] == BY_PAGE


@pytest.mark.parametrize(
    ("left", "until"),
    [(timedelta(minutes=5), "12:05:00 UTC"), (timedelta(days=300), "2026-10-28 12:00:00 UTC")],
)
def test_the_end_of_a_lock_out_has_a_date_if_it_is_not_today(left, until):
    locked = CachedConnection(locked_until=NOW + left)

    assert section(locked)["problem"].endswith(f"before {until}.")


@pytest.mark.parametrize(
    "connection",
    ["stability://:sk-KEY@", "Stability://:sk-KEY@", '{"conn_type": "stability", "password": "sk-KEY"}'],
)
def test_a_connection_in_the_environment_is_found_however_it_is_written(connection, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_MINE", connection)

    assert "mine" in permissions._in_environment()


@pytest.mark.parametrize(
    "connection",
    ["postgres://u:p@host", "no connection", '["stability"]', '{"conn_type": ["stability"]}', ""],
)
def test_what_is_no_connection_of_this_type_in_the_environment_is_left_out(connection, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_MINE", connection)

    assert "mine" not in permissions._in_environment()
