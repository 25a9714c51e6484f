"""Tasks that spend with a ledger, run by Airflow in this process: what is written down, and who must wait."""

from __future__ import annotations

import os
from urllib.parse import quote

import pytest
from sqlalchemy import select

from airflow_stability.hooks.ledger import open_ledger
from airflow_stability.ledger.ledger import Hold, Spender
from airflow_stability.ledger.schema import spends
from airflow_stability.simulator import StabilitySimulator
from tests.integration.decision_table import FAILURES
from tests.versions import IS_LOWEST

# Airflow 2.11.0 loads all hooks for one of them, and modules of that time use what is deprecated.
pytestmark = [pytest.mark.filterwarnings("ignore")] if IS_LOWEST else []


@pytest.fixture(scope="module")
def finished(run_dag, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ledger")
    with StabilitySimulator(credits=1000.0) as simulator:
        address = f"{simulator.connection_uri()}?api_version=v1"
        connections = {
            "stability_default": address,
            "with_ledger": f"{address}&ledger_conn_id=the_ledger&budget=rest",
            "ledger_is_away": f"{address}&ledger_conn_id=no_ledger",
            "the_ledger": f"sqlite:///{quote(str(folder / 'ledger.db'))}",
            "no_ledger": f"sqlite:///{quote(str(folder / 'missing' / 'ledger.db'))}",
        }
        names = {f"AIRFLOW_CONN_{conn_id.upper()}": uri for conn_id, uri in connections.items()}
        os.environ.update(names)
        try:
            ledger = open_ledger("the_ledger")
            ledger.database.init()
            ledger.set_budget("images", 18, "month")
            ledger.set_budget("tight", 2, "total")
            ledger.set_budget("rest", 100, "total")
            ledger.set_budget("narrow", 3, "total")
            ledger.hold([Hold("another", Spender("with_ledger", budget="narrow"), 1)])
            ledger.end("another", "posted")
            result = run_dag("ledger", {"folder": str(folder / "images")})
            with ledger.database.engine.connect() as connection:
                rows = list(connection.execute(select(spends).order_by(spends.c.held_at)))
            yield result, simulator, {budget.name: budget for budget in ledger.budgets()}, rows
        finally:
            for name in names:
                del os.environ[name]


def spends_of(finished, task_id):
    """Return what a task has spent, without what it has given back."""
    rows = [row for row in finished[3] if row.task_id == task_id]
    assert all(row.dag_id == "ledger" and row.run_id == finished[0].run_id for row in rows)
    return [
        (row.state, row.microcredits / 1e6, row.known, row.endpoint, row.budget)
        for row in rows
        if row.endpoint is not None or row.state != "void"
    ]


CORE = "stable-image/generate/core"


@pytest.mark.parametrize(
    ("task_id", "state", "expected"),
    [
        ("paint", "success", [("posted", 3, "listed", CORE, "images")]),
        ("paint_two", "success", [("posted", 3, "listed", CORE, "images")] * 2),
        ("find_two", "success", []),
        ("templated", "success", [("posted", 3, "listed", CORE, "images")]),
        ("spend_elsewhere", "success", [("posted", 1.5, "declared", None, "rest")]),
        ("fail_elsewhere", "failed", [("unknown", 2.5, "declared", None, "rest")]),
        ("fail_before_paying", "failed", []),
        ("refused_elsewhere", "failed", []),
        ("never_fits", "failed", []),
        ("never_fits_and_is_poor", "failed", []),
        ("gate_never_fits_and_is_poor", "failed", []),
        ("has_no_budget", "failed", []),
        ("waits_for_its_budget", "failed", []),
        ("calls_more_than_it_has_declared", "failed", []),
        ("has_no_ledger", "failed", []),
        ("ledger_is_away", "failed", []),
        (
            "paint_in_a_plain_task",
            "failed",  # the simulator has no such engine
            [
                ("posted", 2.5, "listed", "stable-image/generate/sd3", "rest"),
                ("void", 0, "unknown", "/v1/generation/an-engine/text-to-image", "rest"),
            ],
        ),
    ],
)
def test_what_a_task_spends_is_written_down(finished, task_id, state, expected):
    assert finished[0].states[task_id] == state
    assert spends_of(finished, task_id) == expected


NEVER = "The task needs 30 credits, and the limit of its budget is less, so it could never run: budget images"
LATE = "Timed out after 1 s: "


@pytest.mark.parametrize(
    ("task_id", "beginning", "end"),
    [
        ("never_fits", NEVER, "Raise the limit, or lower the credits."),
        ("never_fits_and_is_poor", NEVER.replace("30", "3000"), "Raise the limit, or lower the credits."),
        (
            "gate_never_fits_and_is_poor",
            NEVER.replace("30", "3000"),
            "Raise the limit, or lower the credits.",
        ),
        ("has_no_budget", "There is no budget 'nowhere' in the ledger. Make it with ", "name another one."),
        (
            "waits_for_its_budget",
            f"{LATE}budget tight: 1 of 2 credits used or held, does not renew",
            "and this task needs 2.",
        ),
        (
            "calls_more_than_it_has_declared",
            f"{LATE}the key's default organization has",
            "or when others give back what they hold.",
        ),
        (
            "has_no_ledger",
            "budget is 'images', but the connection 'stability_default' has no ledger: ",
            "out.",
        ),
        (
            "ledger_is_away",
            f"{LATE}The ledger in connection 'no_ledger' is out of reach: ",
            "its connection.",
        ),
    ],
)
def test_a_task_without_a_hold_says_why(finished, task_id, beginning, end):
    assert FAILURES[task_id].startswith(beginning)
    assert FAILURES[task_id].endswith(end)


def test_the_budgets_and_the_books_agree(finished):
    _, simulator, budgets, rows = finished
    posted = sum(row.microcredits for row in rows if row.state == "posted" and row.endpoint) / 1e6

    assert budgets["images"].used == 12_000_000
    assert budgets["tight"].used == 1_000_000
    assert sum(charge.credits for charge in simulator.charges) == posted
    assert not [row for row in rows if row.state == "held"]
