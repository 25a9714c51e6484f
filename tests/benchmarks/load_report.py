"""What was measured of the load, as a table for the terminal and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.benchmarks.contenders import INTERVAL
from tests.benchmarks.load import BLOCKED, PHASES
from tests.benchmarks.report import Result, table

NAME = "load.md"


def text(result: Result) -> str:
    """Return all tables, for a terminal."""
    return "\n" + "\n\n".join([_targets(result), _figures(result), _rounds(result)]) + "\n"


def write(result: Result, folder: Path) -> list[Path]:
    """Write the page, and return its path."""
    page = folder / NAME
    page.write_text(_page(result))
    return [page]


def _targets(result: Result) -> str:
    asked, wanted = result["requests_per_interval"], result["organizations"]
    ours = max(_of(result["rounds"][phase]["most_ours"], "ours") for phase in PHASES)
    rows = [
        ["", "goal", "measured", ""],
        [
            f"requests per interval of {INTERVAL} s",
            f"{wanted}: one per organization",
            f"{asked:.1f}",
            # From call to call it is a little more than the interval. Far fewer are missed looks.
            "met" if abs(asked - wanted) <= 0.05 * wanted else f"missed by {abs(asked - wanted):.1f}",
        ],
        [
            "event loop blocked by us, in one round of the loop",
            f"never over {BLOCKED * 1000:.0f} ms",
            _ms(ours) if ours else "not once long enough to be noted",
            "met" if ours <= BLOCKED else f"missed by {_ms(ours - BLOCKED)}",
        ],
    ]
    return table(rows)


def _figures(result: Result) -> str:
    cpu, memory = result["cpu_per_minute"], result["kb_per_gate"]
    loaded, names = result["loaded"], {"gate": "start in the triggerer", "classic": "defer from a worker"}
    rows = [["", ""]]
    rows += [
        [
            f"start to all waiting, the {loaded[kind]['gates']} gates that {name}",
            f"{loaded[kind]['seconds']:.0f} s",
        ]
        for kind, name in names.items()
    ]
    rows += [
        ["memory per waiting gate", f"{sum(memory.values()):.0f} kB"],
        ["- of which in the process of the event loop", f"{memory['loop']:.0f} kB"],
        ["- of which in the process that asks the database", f"{memory['database']:.0f} kB"],
        ["triggerer CPU a minute while all wait, over its idle", f"{sum(cpu.values()):.1f} s"],
        ["- of which in the process of the event loop", f"{cpu['loop']:.1f} s"],
        ["- of which in the process that asks the database", f"{cpu['database']:.1f} s"],
        ["top-up to first gate open", f"{result['seconds_to_first_open']:.1f} s"],
        ["top-up to the first look at the last organization", f"{result['seconds_to_last_look']:.1f} s"],
        ["top-up to last gate open, and its task ended", f"{result['seconds_to_last_open']:.1f} s"],
    ]
    return table(rows)


def _rounds(result: Result) -> str:
    rows = [
        [
            "",
            f"rounds over {BLOCKED * 1000:.0f} ms",
            "the longest",
            "CPU in it",
            "collecting garbage",
            "ours",
            "what ran in it most",
            "most of ours in any round",
        ]
    ]
    for phase in PHASES:
        found = result["rounds"][phase]
        longest, most_ours = found["longest"], found["most_ours"]
        innermost = longest and longest["innermost"]
        rows.append(
            [
                phase,
                str(found["blocked"]),
                *(_ms(_of(longest, field)) for field in ("seconds", "cpu", "garbage", "ours")),
                f"`{innermost[0][0].partition(' < ')[0]}`" if innermost else "",
                _ms(_of(most_ours, "ours")),
            ]
        )
    return table(rows)


def _of(noted: dict[str, Any] | None, field: str) -> float:
    return float(noted[field]) if noted else 0.0


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _page(result: Result) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    gates, organizations = result["gates"], result["organizations"]
    each, settles = gates // organizations, 3 * INTERVAL
    return f"""# Load: {gates} gates on one triggerer

Written by `make bench`, after [the benchmark](benchmark.md), or by `make bench ARGS=--load-only`, in
{result["minutes"]:.0f} minutes then.

{result["began"][:10]}, {result["machine"]}.
{versions}.

{_targets(result)}

## Measured

{_figures(result)}

A gate that opens is an XCom and an event. The triggerer writes them to Airflow's database one after
another, which is what the last gate waits for: see [the benchmark](benchmark.md).

## The event loop

What the loop did in one round, while everything else in it waited:

{_rounds(result)}

- A round is what the loop does between two looks at its sockets and clocks. Each of them is timed where it
  begins and ends, in the loop itself; those under 20 ms are not noted.
- Ours is the time in which a frame of this package is on the loop's stack, whatever it has called, added
  up over the round. It is sampled: every 10 ms of a round a signal has the loop's thread look at its
  own stack, as soon as what runs in C has ended. So each sample stands for all the time since the one
  before, and half a sample at either end may be counted wrongly.
- Collections of garbage are counted apart. They stop all threads of the process, and come in the code that
  happens to make one object too many.
- A round with less CPU than it is long has waited: for another thread with the global lock, such as one
  that makes a call, for a core that another process has, or for a lock or a socket.
- The first gate opens before all others start: with it the triggerer loads what it needs for any. Loading
  lasts from the start of the others until {settles} s after the last one waits, opening from the top-up
  until all tasks have ended.

## How it is measured

- One Airflow (scheduler, dag-processor, api-server, one triggerer, LocalExecutor, compiled modules), its
  database and the server on one machine, as in [the benchmark](benchmark.md). The triggerer has a capacity
  of {gates} gates. All other settings that concern it are Airflow's defaults.
- {gates} gates on one connection, {each} for each of {organizations} organizations, each in a DAG run of
  its own, look every {INTERVAL} s. All end in the triggerer (`end_from_trigger`) and push their XCom. One
  in ten is deferred by a worker, the others start in the triggerer (`start_from_trigger`). Those of every
  second organization that start there are paced (`expected_credits`).
- Requests, CPU (user and system) and memory (USS) are those of {result["window"]:.0f} s in which all gates
  wait. CPU and memory are those of the triggerer's two processes, less those of the same triggerer without
  gates (CPU: {result["idle_cpu_per_minute"]:.2f} s a minute), after a first one. The loop is watched all
  the time, with and without gates.
- The top-up of all organizations comes at once, at any time between their polls. A gate is open when its
  state is no longer `deferred`; the database is asked every 0.2 s.
"""
