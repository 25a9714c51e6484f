"""The report of the comparison: tables for the terminal, and a page with a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.contenders import CONTENDERS, INTERVAL

Result = dict[str, Any]

NAMES = {each.dag: each.name for each in CONTENDERS}
OURS = [each.dag for each in CONTENDERS if each.ours]
OTHERS = [each.dag for each in CONTENDERS if not each.ours]

#: The measures of waiting gates: the field, its name, and its format.
MEASURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "requests_per_minute": ("requests a minute", "{:.0f}".format),
    "worker_starts_per_gate": ("worker starts / gate", "{:.3g}".format),
    "triggerer_cpu_per_minute": ("triggerer CPU, s a minute", "{:.2f}".format),
    "triggerer_memory": ("triggerer memory, MB", "{:.0f}".format),
    "seconds_to_last_open": ("top-up to last gate open, s", "{:.1f}".format),
    "seconds_to_all_ended": ("top-up to all tasks ended, s", "{:.1f}".format),
    "seconds_to_all_waiting": ("start to all gates waiting, s", "{:.1f}".format),
}

#: The reasons for missed targets, by the target's number, for the page. They are written by hand.
EVENTS = (
    "All our gates see the same balance at the same moment. But the triggerer writes their events to "
    "Airflow's database one after another, and a gate counts as open only after that. This time comes on top "
    "of the poll interval, because the top-up comes at the worst moment, right after a poll. The gates of "
    "the other contenders poll for themselves, at moments spread over the interval."
)
XCOM = (
    "Each XCom is written before its event. For this, the main loop of the triggerer makes an extra round, "
    "with all database queries that belong to a round. `do_xcom_push=False` avoids this extra round."
)
WHY: dict[int, str] = {4: f"{EVENTS} {XCOM}", 5: XCOM}


@dataclass(frozen=True)
class Target:
    """A goal, and whether it is met."""

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
    """Return the project's goals, and what was measured for each. The result must be of a full run."""
    most = max(_gates(result))
    at_most = {dag: _row(result, dag, most) for dag in (*OURS, *OTHERS)}
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
            "12 for any number of gates",
            f"{asked:.0f} (HttpSensor: {http['requests_per_minute']:.0f} for {most} gates)",
            _over(asked, 12, "{:.0f}"),
        ),
        Target(
            "worker process starts for each gate that waits",
            "2 classic, 1 with end_from_trigger, 0 with start_from_trigger as well",
            ", ".join(f"{each:.3g}" for each in starts)
            + f" (HttpSensor: {http['worker_starts_per_gate']:.3g})",
            None if starts == [2, 1, 0, 0] else "another number",
        ),
        Target(
            f"triggerer CPU a minute above idle, {most} gates",
            f"under a tenth of HttpSensor's {http['triggerer_cpu_per_minute']:.1f} s",
            f"{cpu:.2f} s",
            _over(cpu, http["triggerer_cpu_per_minute"] / 10, "{:.2f} s"),
        ),
        Target(
            f"top-up to last gate open, {most} gates",
            f"within one interval and 2 s: {INTERVAL + 2} s",
            f"at worst {last:.1f} s, classic {ours[0]['seconds_to_last_open']:.1f} s "
            f"(HttpSensor: {http['seconds_to_last_open']:.1f} s)",
            _over(last, INTERVAL + 2, "{:.1f} s"),
        ),
        Target(
            f"top-up to all {most} tasks ended, start and end in the triggerer",
            "under 15 s",
            f"{ended:.1f} s, without XCom {bare:.1f} s (HttpSensor: {http['seconds_to_all_ended']:.0f} s)",
            _over(ended, 15, "{:.1f} s"),
        ),
        Target(
            "modules that a DAG file loads for the sensor, besides Airflow's base sensor",
            "under 15; not requests, tenacity or our pydantic models",
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
    for other in OTHERS:
        ours = [dag for dag in OURS if dag in there]
        if other in there and ours:
            title = f"Ours compared with {NAMES[other]}, {most} gates"
            tables.append((title, _ratios(result, ours, other, most)))
    if there == set(NAMES):
        head = ["", "goal", "measured", ""]
        rows = [
            [each.name, each.goal, each.measured, f"missed by {each.missed_by}" if each.missed_by else "met"]
            for each in targets(result)
        ]
        tables.append(("Targets", table([head, *rows])))
    tables.append(("Measured", _figures(result)))
    tables.append(("Importing the sensor into a DAG file", _imports(result)))
    return tables


def _ratios(result: Result, ours: Sequence[str], other: str, gates: int) -> str:
    rows = [["", *(NAMES[dag] for dag in ours)]]
    for field, (name, _) in MEASURES.items():
        theirs = _row(result, other, gates)[field]
        rows.append(
            [name.partition(",")[0], *(_ratio(_row(result, dag, gates)[field], theirs) for dag in ours)]
        )
    imports = result["imports"]
    for field, name, scale in (("seconds", "import time", 1000), ("modules", "imported modules", 1)):
        ratio = _ratio(imports["ours"][field] * scale, imports[other][field] * scale)
        rows.append([name, *[ratio] * len(ours)])
    return table(rows)


def _ratio(ours: float, theirs: float) -> str:
    """Return a ratio such as `1 : 40`; the figures themselves if one of them is zero."""
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
    """Return a Markdown table with aligned columns. The first row is its header."""
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

`make bench` has written this page. The whole benchmark took {result["minutes"]:.0f} minutes.

{result["began"][:10]}, {result["machine"]}.
{", ".join(f"{name} {number}" for name, number in versions.items())}.

"Ours" are gates of this package. "Hand-written" is a gate that a user writes with Airflow's own means.
[What is compared](#what-is-compared) describes all contenders. A ratio gives our figure first: 1 : 40 means
that the other contender's figure is 40 times as high. Lower is better for all figures.

{chr(10).join([sections[0], "", sections[1]])}

![The figures of each contender against the number of gates]({picture})

{(chr(10) * 2).join(sections[2:3] + missed + sections[3:])}

## What is compared

Every gate polls every {INTERVAL} s. All except HttpSensor wait for more than 10 credits. HttpSensor waits
until the response no longer has status 404. All gates use the same connection and organization. Each runs in
a DAG run of its own. [Another page](load.md) shows what thousands of gates cost.

{compared}

## How it is measured

- The contenders take turns on one machine, with one Airflow, one database and one server that counts
  requests. Airflow has a scheduler, a dag-processor, an api-server, a triggerer and LocalExecutor with
  {result["parallelism"]} workers. Its Python modules were compiled before. The triggerer is restarted for
  each line of the table. The settings that matter are Airflow's defaults with two exceptions: the limits
  on runs are higher than the number of gates, and a worker checks every second whether its task has ended.
- The server is this package's simulator, without a rate limit. The real limit is 150 requests in 10
  seconds. More than 75 gates that each poll every {INTERVAL} s would exceed it, and their key would be locked
  out.
- Requests, CPU time (user and system) and memory (USS) are measured during {result["window"]:.0f} s in
  which all gates wait. CPU time and memory are those of the triggerer and its child processes, minus those
  of the same triggerer without gates (CPU: {result["idle_cpu_per_minute"]:.2f} s a minute). Before it is
  measured without gates, it has run one gate. With its first trigger, the triggerer loads 200 MB of Airflow.
  This is so for each of the contenders.
- A worker start is counted when the process of a task reports to Airflow that it runs. Airflow's table `log`
  contains these reports.
- The top-up comes right after the response to a poll, which is the worst moment. A gate is open when its
  state is no longer `deferred`. A task has ended when its state is `success`. The database is queried for
  both every 0.2 s.
- Each import runs in a new process, which has already loaded Airflow's `DAG` and `BaseSensorOperator`. The
  time is the median of 9 imports. The sensors take turns. The hand-written gate names its trigger as a
  string, and loads only `StartTriggerArgs`.
"""
