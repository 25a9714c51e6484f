"""The state machine of the ledger on SQLite; tests/postgresql has it on PostgreSQL."""

from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from airflow_stability.ledger.database import adapt, engine_arguments
from tests.ledger_machine import run_machine


def test_no_budget_is_exceeded_and_every_charge_counts():
    engine = adapt(create_engine("sqlite://", poolclass=StaticPool, **engine_arguments("sqlite")))
    try:
        run_machine(engine, examples=60, steps=30)
    finally:
        engine.dispose()
