"""The report of the ledger's benchmark: tables for the terminal, and a page."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.ledger import DAGS, DAYS, SPENDS, WEEK
from tests.benchmarks.report import Result, table

NAME = "ledger-benchmark.md"
#: How many times as long as a plain UPDATE a hold may take.
MAX_RATIO = 3.0
#: Seconds for a sum.
MAX_SECONDS = 2.0


def text(result: Result) -> str:
    """Return all tables, for a terminal."""
    return "\n" + "\n\n".join([_targets(result), _figures(result)]) + "\n"


def write(result: Result, folder: Path) -> list[Path]:
    """Write the page, and return its path."""
    page = folder / NAME
    page.write_text(_page(result))
    return [page]


def _targets(result: Result) -> str:
    ratio = result["update"]["per_second"] / result["hold"]["per_second"]
    longest = max(result["sums"])
    rows = [
        ["", "goal", "measured", ""],
        [
            f"{result['processes']} processes: how many plain UPDATEs take as long as one hold",
            f"at most {MAX_RATIO:.0f}",
            f"{ratio:.2f}",
            "met" if ratio <= MAX_RATIO else f"missed by {ratio - MAX_RATIO:.2f}",
        ],
        [
            f"one week's spends, summed up by DAG, in a ledger of {SPENDS} spends",
            f"under {MAX_SECONDS:.0f} s",
            f"{longest:.2f} s",
            "met" if longest < MAX_SECONDS else f"missed by {longest - MAX_SECONDS:.2f} s",
        ],
    ]
    return table(rows)


def _figures(result: Result) -> str:
    rows = [["", "per second", "50th percentile", "99th percentile"]]
    for kind, name in (("hold", "hold on one budget"), ("update", "plain UPDATE of one row")):
        found = result[kind]
        rows.append(
            [
                name,
                f"{found['per_second']:.0f}",
                f"{found['p50'] * 1000:.0f} ms",
                f"{found['p99'] * 1000:.0f} ms",
            ]
        )
    return table(rows)


def _page(result: Result) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    processes, rounds, seconds = result["processes"], result["rounds"], result["seconds"]
    return f"""# How fast the ledger is

`make bench ARGS=--ledger-only` has written this page.

{result["began"]}, {result["machine"]}; its load was {result["load"]:.1f} at the end.
{versions}.

{_targets(result)}

## Measured

{_figures(result)}

## How it is measured

- PostgreSQL and all processes run on one machine. PostgreSQL has its default settings: it answers a
  transaction only when that is on the disk.
- {processes} processes take holds of one credit on one budget, as fast as they can. Each hold is a
  transaction of its own: it takes the credits out of the budget, and writes down the spend.
- The plain UPDATE adds 1 to a number in a table with one row. It is a transaction of its own, too, from the
  same processes, through the same SQLAlchemy engine. It writes one row. A hold writes two, and one of them
  goes into the table of spends and all its indexes.
- Both spend most of their time waiting for the lock of one row. So the percentiles apply to
  {processes} processes that do nothing else.
- Holds and UPDATEs take turns, {rounds} rounds of {seconds:.0f} s each.
- The spends are spread evenly over {DAYS} days and {DAGS} DAGs. The sums cover the last {WEEK} days. The
  slowest of {len(result["sums"])} sums counts.
"""
