"""The state machine of the ledger on SQLite; tests/cluster has it on PostgreSQL."""

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from airflow_stability.ledger.database import adapt, engine_arguments
from tests.ledger_machine import LedgerMachine


@pytest.fixture
def machine():
    engine = adapt(create_engine("sqlite://", poolclass=StaticPool, **engine_arguments("sqlite")))
    try:
        yield type("OnSqlite", (LedgerMachine,), {"engine": engine})
    finally:
        engine.dispose()


def test_no_budget_is_exceeded_and_every_charge_counts(machine):
    case = machine.TestCase
    case.settings = settings(
        max_examples=60,
        stateful_step_count=30,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    case("runTest").runTest()
