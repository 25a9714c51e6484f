"""How fast the ledger is on PostgreSQL: holds by many processes at once, and sums of many spends."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

from sqlalchemy import func, select, text

from airflow_stability.ledger.ledger import Ledger
from airflow_stability.ledger.schema import spends
from tests.benchmarks.environment import machine
from tests.ledger_processes import (
    PROCESSES,
    ledger_at,
    plain,
    processes,
    time_holds,
    time_updates,
)
from tests.servers import PostgreSQL

#: Seconds of a round, in which all processes take holds, or all update the row.
SECONDS = 10.0
#: Of each kind, turn by turn.
ROUNDS = 3
SPENDS = 1_000_000
#: Days over which the spends are spread, and those that are summed.
DAYS, WEEK = 70, 7
DAGS = 50
PACKAGES = ("airflow-provider-stability", "SQLAlchemy", "psycopg2-binary")
#: How often they are summed.
SUMS = 5

_SPENDS = f"""
INSERT INTO stability_spends (
    spend_key, state, microcredits, known, wallet, conn_id, organization, budget, dag_id, run_id, task_id,
    map_index, try_number, endpoint, itemized, held_at, held_on, started_at, lease_ends_at, ended_at)
SELECT 'spend-' || n, 'posted', 1000000 * (1 + n % 8), 'listed', 'org-1', 'stability_default', 'org-1',
    'budget-' || n % 10, 'dag-' || n % {DAGS}, 'scheduled__' || n / 100, 'task', n % 100, 1,
    'stable-image/generate/core', false, at, at::date, at, at + interval '2 hours', at + interval '5 seconds'
FROM (
    SELECT n, now() AT TIME ZONE 'UTC' - n * interval '{DAYS} days' / {SPENDS} AS at
    FROM generate_series(1, {SPENDS}) AS n
) AS numbered
"""


def measure(say: Callable[[str], None]) -> dict[str, Any]:
    """Return what was measured.

    :param say: called with each line of progress.
    """
    programs = PostgreSQL.installed()
    if programs is None:
        raise OSError("PostgreSQL is not installed, or only root could run it.")
    began = datetime.now(UTC)
    with PostgreSQL(programs) as server, processes() as run:
        ledger = ledger_at(server.url)
        ledger.database.init()
        ledger.set_budget("images", 1e9, "total")
        with ledger.database.engine.begin() as connection:
            plain.create(connection)
            connection.execute(plain.insert().values(id=1, used=0))
        took: dict[str, list[float]] = {"hold": [], "update": []}
        for number in range(ROUNDS):
            say(f"{PROCESSES} processes, round {number + 1} of {ROUNDS}")
            for each in run(time_updates, server.url, SECONDS):
                took["update"] += each
            for each in run(time_holds, server.url, f"round-{number}", "images", SECONDS):
                took["hold"] += each
        held = ledger.budgets()[0].used
        # Each process takes one more at the beginning of a round.
        assert held == 1_000_000 * (len(took["hold"]) + PROCESSES * ROUNDS)
        say(f"making {SPENDS} spends")
        with ledger.database.engine.begin() as connection:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(spends.delete())
            connection.execute(text(_SPENDS))
        with ledger.database.engine.begin() as connection:
            connection.execute(text("ANALYZE stability_spends"))
        sums = [_sum_by_dag(ledger) for _ in range(SUMS)]
        ledger.database.engine.dispose()
    return {
        "began": f"{began:%Y-%m-%d}",
        "machine": machine(),
        "versions": {
            **{name: version(name) for name in PACKAGES},
            "Python": platform.python_version(),
            "PostgreSQL": PostgreSQL.version(programs),
        },
        "processes": PROCESSES,
        "seconds": SECONDS,
        "rounds": ROUNDS,
        "load": os.getloadavg()[0],
        **{kind: _figures(each, SECONDS * ROUNDS) for kind, each in took.items()},
        "sums": sums,
    }


def _figures(took: list[float], seconds: float) -> dict[str, float]:
    percentiles = statistics.quantiles(took, n=100)
    return {"per_second": len(took) / seconds, "p50": percentiles[49], "p99": percentiles[98]}


def _sum_by_dag(ledger: Ledger) -> float:
    """Return how many seconds it takes to sum a week by DAG."""
    query = (
        select(spends.c.dag_id, func.sum(spends.c.microcredits), func.count())
        .where(spends.c.held_at >= datetime.now(UTC).replace(tzinfo=None) - timedelta(days=WEEK))
        .group_by(spends.c.dag_id)
    )
    began = time.monotonic()
    found = ledger.database.run(lambda connection, _now: connection.execute(query).all())
    took = time.monotonic() - began
    assert len(found) == DAGS
    return took
