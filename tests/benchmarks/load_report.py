"""The report of the load test: tables for the terminal, and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.benchmarks.contenders import INTERVAL
from tests.benchmarks.load import BLOCKED, PHASES
from tests.benchmarks.report import Result, table

NAME = "load.md"
#: Seconds by which a connection that hangs may delay the looks of others.
MAX_DELAY = 1.0


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
    between = result["longest_between_looks"]
    delay = max(between["hanging"] - between["waiting"], 0.0)
    rows = [
        ["", "goal", "measured", ""],
        [
            f"requests per interval of {INTERVAL} s",
            f"{wanted}: one for each organization",
            f"{asked:.1f}",
            # A bit more than the interval passes between two requests. Far fewer are missed looks.
            "met" if abs(asked - wanted) <= 0.05 * wanted else f"missed by {abs(asked - wanted):.1f}",
        ],
        [
            "longest block of the event loop by our code, in one round",
            f"at most {BLOCKED * 1000:.0f} ms",
            _ms(ours) if ours else "never long enough to be recorded",
            "met" if ours <= BLOCKED else f"missed by {_ms(ours - BLOCKED)}",
        ],
        [
            "later looks because another connection hangs",
            f"less than {MAX_DELAY * 1000:.0f} ms",
            _ms(delay),
            "met" if delay < MAX_DELAY else f"missed by {_ms(delay - MAX_DELAY)}",
        ],
    ]
    return table(rows)


def _figures(result: Result) -> str:
    cpu, memory = result["cpu_per_minute"], result["kb_per_gate"]
    between = result["longest_between_looks"]
    loaded, names = result["loaded"], {"gate": "start in the triggerer", "classic": "defer from a worker"}
    rows = [["", ""]]
    rows += [
        [
            f"start to all waiting, for the {loaded[kind]['gates']} gates that {name}",
            f"{loaded[kind]['seconds']:.0f} s",
        ]
        for kind, name in names.items()
    ]
    rows += [
        ["memory per waiting gate", f"{sum(memory.values()):.0f} kB"],
        ["- of which in the process of the event loop", f"{memory['loop']:.0f} kB"],
        ["- of which in the process that queries the database", f"{memory['database']:.0f} kB"],
        ["triggerer CPU a minute while all gates wait, above idle", f"{sum(cpu.values()):.1f} s"],
        ["- of which in the process of the event loop", f"{cpu['loop']:.1f} s"],
        ["- of which in the process that queries the database", f"{cpu['database']:.1f} s"],
        ["longest time between two looks at an organization", f"{between['waiting']:.2f} s"],
        [
            f"- while another connection, with {result['hanging']} organizations, hangs",
            f"{between['hanging']:.2f} s",
        ],
        ["top-up until the first gate is open", f"{result['seconds_to_first_open']:.1f} s"],
        ["top-up until every organization was looked at", f"{result['seconds_to_last_look']:.1f} s"],
        ["top-up until the last gate is open and its task ended", f"{result['seconds_to_last_open']:.1f} s"],
    ]
    return table(rows)


def _rounds(result: Result) -> str:
    rows = [
        [
            "",
            f"rounds over {BLOCKED * 1000:.0f} ms",
            "longest round",
            "its CPU time",
            "its garbage collection",
            "its time in our code",
            "code that ran most in it",
            "most time in our code, any round",
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
    each, loading_margin = gates // organizations, 3 * INTERVAL
    return f"""# Load: {gates} gates on one triggerer

`make bench` has written this page, after [the benchmark](benchmark.md). `make bench ARGS=--load-only`
writes only this page. The load test took {result["minutes"]:.0f} minutes.

{result["began"][:10]}, {result["machine"]}.
{versions}.

{_targets(result)}

## Measured

{_figures(result)}

Each gate that opens has an XCom and an event. The triggerer writes them to Airflow's database one after
another. The last gate waits for all of them: see [the benchmark](benchmark.md).

## The event loop

While one round of the event loop runs, everything else in the loop waits. The rounds took this long:

{_rounds(result)}

- A round is what the loop does between two looks at its sockets and timers. Each round is timed in the loop
  itself, at its beginning and its end. Rounds under 20 ms are not recorded.
- The time in our code is the time in which a function of this package is on the loop's stack, even if it
  has called other code. The figure is the sum over the round. It is sampled: every 10 ms of a round, a signal
  makes the loop's thread read its own stack. If C code is running, this happens as soon as that code has
  returned. Each sample stands for all the time since the sample before. So the moments at which
  our code begins and ends may each be wrong by half the time between two samples.
- The time of garbage collections is not part of the time in our code. A collection stops all threads of the
  process. It starts when the number of objects exceeds Python's limit, in the code that happens to create an
  object at that moment. This can be any code.
- A round whose CPU time is less than its length has waited. It may have waited for a core that another
  process used, for a lock or a socket, or for another thread that held Python's global lock. For example,
  a thread that sends a request may hold it.
- "First gate" is one gate that opens before all others start. With this gate, the triggerer loads everything
  that it needs for any gate. "Loading" lasts from the start of the other gates until {loading_margin} s after
  the last one waits. Then comes "Waiting". While another connection hangs, it is "Hanging". "Opening" lasts
  from the top-up until all tasks have ended.

## How it is measured

- Airflow, its database and the server run on one machine, as in [the benchmark](benchmark.md). The
  triggerer has a capacity of {gates} gates. All its other settings are Airflow's defaults.
- {gates} gates use one connection: {each} gates for each of {organizations} organizations. Each gate runs
  in a DAG run of its own, and looks at the balance every {INTERVAL} s. All gates end in the triggerer
  (`end_from_trigger`), and push their XCom. One gate in ten is deferred by a worker. The others start in
  the triggerer (`start_from_trigger`). Of these others, the gates of every second organization have
  `expected_credits`, so they open at [a pace](spending.md#the-pace).
- Requests, CPU time (user and system) and memory (USS) are measured during {result["window"]:.0f} s in
  which all gates wait. CPU time and memory are those of the triggerer's two processes, minus those of the
  same triggerer without gates (CPU: {result["idle_cpu_per_minute"]:.2f} s a minute). It is measured without
  gates after a first gate has ended. The loop is watched all the time, with and without gates.
- Then {result["hanging"]} more gates start, each for another organization, on a second connection. Its host
  accepts every request and never answers. For {result["window"]:.0f} s, the looks through the first
  connection are recorded again. The difference of the longest times between two looks at one organization,
  with and without the second connection, is by how much looks come later. It hangs until the end.
- All organizations of the first connection are topped up at the same moment. It may be any moment between
  their polls. A gate is open when its state is no longer `deferred`. The database is queried every 0.2 s.
"""
