"""What was measured, as a table for the terminal and as a page with a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.contenders import CONTENDERS, INTERVAL

Result = dict[str, Any]

NAMES = {each.dag: each.name for each in CONTENDERS}
OURS = [each.dag for each in CONTENDERS if each.ours]
RIVALS = [each.dag for each in CONTENDERS if not each.ours]

#: What is measured of waiting gates: the field, what it is called, and how it is written.
MEASURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "requests_per_minute": ("requests a minute", "{:.0f}".format),
    "worker_starts_per_gate": ("worker starts a gate", "{:.3g}".format),
    "triggerer_cpu_per_minute": ("triggerer CPU, s a minute", "{:.2f}".format),
    "triggerer_memory": ("triggerer memory, MB", "{:.0f}".format),
    "seconds_to_last_open": ("top-up to last gate open, s", "{:.1f}".format),
    "seconds_to_all_ended": ("top-up to all tasks ended, s", "{:.1f}".format),
    "seconds_to_all_waiting": ("start to all gates waiting, s", "{:.1f}".format),
}

#: Why a target is missed, by its number, for the page: to be written by whoever has found out.
EVENTS = (
    "All our gates see the same balance at the same moment, but the triggerer hands their events to "
    "Airflow's database one after another, and a gate counts as open when that is done. This comes on top "
    "of the interval, since the top-up is at the worst moment; those who poll for themselves spread over it."
)
XCOM = (
    "Each XCom has to be written before the event, and is a round of the triggerer's main loop with all of "
    "that loop's queries. `do_xcom_push=False` saves it."
)
WHY: dict[int, str] = {4: f"{EVENTS} {XCOM}", 5: XCOM}


@dataclass(frozen=True)
class Target:
    """One goal, and what became of it."""

    name: str
    goal: str
    measured: str
    missed_by: str | None


def text(result: Result) -> str:
    """Return all tables, for a terminal."""
    parts = [f"{title}\n\n{body}" for title, body in _tables(result)]
    return "\n" + "\n\n".join(parts) + "\n"


def write(result: Result, folder: Path) -> list[Path]:
    """Write the page and its plot, and return their paths."""
    from tests.benchmarks import plot

    folder.mkdir(exist_ok=True)
    page, picture = folder / "benchmark.md", folder / "benchmark.svg"
    plot.draw(result, picture)
    page.write_text(_page(result, picture.name))
    return [page, picture]


def targets(result: Result) -> list[Target]:
    """Return what the project has set itself, and what was measured of it. It needs a full run."""
    most = max(_gates(result))
    at_most = {dag: _row(result, dag, most) for dag in (*OURS, *RIVALS)}
    ours = [at_most[dag] for dag in OURS]
    http = at_most["http_sensor"]

    asked = max(row["requests_per_minute"] for row in result["measured"] if row["dag"] in OURS)
    starts = [row["worker_starts_per_gate"] for row in ours]
    cpu = max(row["triggerer_cpu_per_minute"] for row in ours)
    last = max(row["seconds_to_last_open"] for row in ours)
    ended = at_most["ours_start_end"]["seconds_to_all_ended"]
    bare = at_most["ours_no_xcom"]["seconds_to_all_ended"]
    imported = result["imports"]["ours"]
    heavy = ", ".join(imported["heavy"])
    return [
        Target(
            f"requests a minute while gates wait, interval {INTERVAL} s",
            "12, whatever their number",
            f"{asked:.0f} (HttpSensor: {http['requests_per_minute']:.0f} for {most} gates)",
            _over(asked, 12, "{:.0f}"),
        ),
        Target(
            "worker process starts per gate that has to wait",
            "2 classic, 1 end_from_trigger, 0 start_from_trigger, too",
            ", ".join(f"{each:.3g}" for each in starts)
            + f" (HttpSensor: {http['worker_starts_per_gate']:.3g})",
            None if starts == [2, 1, 0, 0] else "another number",
        ),
        Target(
            f"triggerer CPU a minute over its idle, {most} gates",
            f"under a tenth of HttpSensor's {http['triggerer_cpu_per_minute']:.1f} s",
            f"{cpu:.2f} s",
            _over(cpu, http["triggerer_cpu_per_minute"] / 10, "{:.2f} s"),
        ),
        Target(
            f"top-up to last gate open, {most} gates",
            f"one interval and 2 s: {INTERVAL + 2} s",
            f"at worst {last:.1f} s, classic {ours[0]['seconds_to_last_open']:.1f} s "
            f"(HttpSensor: {http['seconds_to_last_open']:.1f} s)",
            _over(last, INTERVAL + 2, "{:.1f} s"),
        ),
        Target(
            f"top-up to all {most} tasks ended, start and end in the trigger",
            "under 15 s",
            f"{ended:.1f} s, without XCom {bare:.1f} s (HttpSensor: {http['seconds_to_all_ended']:.0f} s)",
            _over(ended, 15, "{:.1f} s"),
        ),
        Target(
            "modules that a DAG file loads for the sensor beyond Airflow's base sensor",
            "under 15; no requests, tenacity or pydantic model of ours",
            f"{imported['modules']} (HttpSensor: {result['imports']['http_sensor']['modules']})",
            f"it loads {heavy}" if heavy else _over(imported["modules"], 14, "{:.0f}"),
        ),
    ]


def _over(measured: float, limit: float, form: str) -> str | None:
    return form.format(measured - limit) if measured > limit else None


def _tables(result: Result) -> list[tuple[str, str]]:
    most = max(_gates(result))
    tables = []
    there = {row["dag"] for row in result["measured"]}
    for rival in RIVALS:
        ours = [dag for dag in OURS if dag in there]
        if rival in there and ours:
            title = f"Ours : {NAMES[rival]}, {most} gates"
            tables.append((title, _ratios(result, ours, rival, most)))
    if there == set(NAMES):
        head = ["", "goal", "measured", ""]
        rows = [
            [each.name, each.goal, each.measured, f"missed by {each.missed_by}" if each.missed_by else "met"]
            for each in targets(result)
        ]
        tables.append(("Targets", table([head, *rows])))
    tables.append(("Measured", _figures(result)))
    tables.append(("Importing it into a DAG file, beyond Airflow's base sensor", _imports(result)))
    return tables


def _ratios(result: Result, ours: Sequence[str], rival: str, gates: int) -> str:
    rows = [["", *(NAMES[dag] for dag in ours)]]
    for field, (name, _) in MEASURES.items():
        theirs = _row(result, rival, gates)[field]
        rows.append(
            [name.partition(",")[0], *(_ratio(_row(result, dag, gates)[field], theirs) for dag in ours)]
        )
    imports = result["imports"]
    for field, name, scale in (("seconds", "import time", 1000), ("modules", "imported modules", 1)):
        ratio = _ratio(imports["ours"][field] * scale, imports[rival][field] * scale)
        rows.append([name, *[ratio] * len(ours)])
    return table(rows)


def _ratio(ours: float, theirs: float) -> str:
    """Return such as `1 : 40`; the figures themselves where one of them is nothing."""
    if min(ours, theirs) <= 0.005:
        return f"{max(ours, 0):.2g} : {max(theirs, 0):.3g}"
    if ours > theirs:
        return f"{ours / theirs:.2g} : 1"
    times = theirs / ours
    return f"1 : {times:.0f}" if times >= 10 else f"1 : {times:.2g}"


def _figures(result: Result) -> str:
    rows = [["gates", "", *(name for name, _ in MEASURES.values())]]
    for row in result["measured"]:
        figures = [form(row[field]) for field, (_, form) in MEASURES.items()]
        rows.append([str(row["gates"]), NAMES[row["dag"]], *figures])
    return table(rows)


def _imports(result: Result) -> str:
    names = {
        "ours": "StabilityBalanceSensor",
        "http_sensor": "HttpSensor",
        "http_event_trigger": "hand-written",
    }
    rows = [["", "ms", "modules"]]
    rows += [
        [names[name], f"{each['seconds'] * 1000:.1f}", str(each["modules"])]
        for name, each in result["imports"].items()
    ]
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns stand below each other. The first row is its head."""
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(rows[0]))]

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(rows[0]), line("-" * width for width in widths), *(line(row) for row in rows[1:])])


def _gates(result: Result) -> list[int]:
    return sorted({row["gates"] for row in result["measured"]})


def _row(result: Result, dag: str, gates: int) -> dict[str, Any]:
    return next(row for row in result["measured"] if (row["dag"], row["gates"]) == (dag, gates))


def _page(result: Result, picture: str) -> str:
    versions = result["versions"]
    sections = [f"## {title}\n\n{body}" for title, body in _tables(result)]
    missed = [
        f"Missed: {target.name}, by {target.missed_by}. {WHY.get(number, '')}".rstrip()
        for number, target in enumerate(targets(result), 1)
        if target.missed_by
    ]
    compared = "\n".join(f"- **{each.name}**: {each.setup}" for each in CONTENDERS)
    return f"""# Benchmark: gates that wait for credit

Written by `make bench`, which runs all of it anew, in {result["minutes"]:.0f} minutes then.

{result["began"][:10]}, {result["machine"]}.
{", ".join(f"{name} {number}" for name, number in versions.items())}.

{chr(10).join([sections[0], "", sections[1]])}

![How each grows with the number of gates]({picture})

{(chr(10) * 2).join(sections[2:3] + missed + sections[3:])}

## What is compared

Every gate waits for more than 10 credits and looks every {INTERVAL} s. All wait on one connection and
organization, each in a DAG run of its own. What thousands of gates cost has [a page of its own](load.md).

{compared}

## How it is measured

- One Airflow (scheduler, dag-processor, api-server, one triggerer, LocalExecutor with
  {result["parallelism"]} workers, compiled modules), one database and one counting server for all, who take
  turns on the same machine. The triggerer is started anew for each line of the table. Settings are Airflow's
  defaults, except that no limit on runs binds, and that a worker looks every second whether its task is over.
- The server is this package's simulator without its rate limit. With the real one, 150 requests in 10
  seconds, more than 75 gates that poll for themselves every {INTERVAL} s lock their key out.
- Requests, CPU (user and system) and memory (USS) are those of {result["window"]:.0f} s in which all gates
  wait. CPU and memory are those of the triggerer and its children, less those of the same
  triggerer without gates (CPU: {result["idle_cpu_per_minute"]:.2f} s a minute), after a first one: with that
  it loads 200 MB of Airflow, whoever waits.
- Worker starts are the processes of tasks that have told Airflow that they run, from its table `log`.
- The top-up comes just after a poll is answered, the worst moment for one poll. A gate is open when its state
  is no longer `deferred`, a task has ended when it is `success`; the database is asked for both every 0.2 s.
- Imports: in processes of their own that have loaded Airflow's `DAG` and `BaseSensorOperator`; the median of
  9, in turns. The hand-written gate names its trigger as a string, and loads only `StartTriggerArgs`.
"""
