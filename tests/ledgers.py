"""Ledgers whose time a test sets, on SQLite: in memory, or in a file that commands can read."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import create_engine, select
from sqlalchemy.pool import StaticPool

from airflow_stability.ledger.database import Database, adapt, engine_arguments
from airflow_stability.ledger.ledger import HELD, Hold, Ledger, Spender
from airflow_stability.ledger.schema import spends


class LedgerForTests(Ledger):
    """A ledger with tables.

    :param url: the database; default: one in memory.
    :param time: the ledger's time, until somebody sets ``time``.
    """

    def __init__(self, url: str = "sqlite://", time: datetime = datetime(2026, 11, 18, 12)) -> None:
        self.time = time
        engine = adapt(create_engine(url, poolclass=StaticPool, **engine_arguments("sqlite")))
        super().__init__(Database(engine, "connection 'ledger'", clock=lambda: self.time))
        self.database.init()

    def spend(self, key, credits=3, state="posted", *, at=None, runs=True, itemized=False, **spender):
        """Hold credits, let the task run, and end it so; a state ``held`` leaves it as it is.

        :param at: when; default: now.
        :param runs: whether the task begins to run.
        :param spender: what differs from a spend of the task ``generate`` of the DAG ``images``.
        """
        now, self.time = self.time, at or self.time
        who = {"dag_id": "images", "run_id": "run-1", "task_id": "generate", "map_index": -1} | spender
        hold = Hold(key, Spender("stability_default", **who), credits, itemized=itemized, starts=runs)
        assert self.hold([hold]).held == [key]
        if state != HELD:
            self.end(key, state)
        self.time = now

    def row(self, key):
        """Return a spend as it is in the table; None if there is none."""
        query = select(spends).where(spends.c.spend_key == key)
        return self.database.run(lambda connection, _now: connection.execute(query).first())
