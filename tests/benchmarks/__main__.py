"""The command line of the benchmarks: `make bench`.

The pages docs/benchmark.md, docs/load.md and docs/ledger-benchmark.md say what is measured, and how. Only a
full run writes its page.
`make bench ARGS="--gates 1 20 --window 20"` is a quick comparison, and
`make bench ARGS="--load-only --load-gates 300 --load-organizations 10 --window 20"` a quick load test.

The exit status is 0 if the run was completed, else 1. After Ctrl-C it is 130, after SIGTERM or SIGHUP 143. In
each case all processes that were started are stopped.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks import generate, ledger, ledger_report, load_report, report
from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.load import LoadTest
from tests.benchmarks.measure import Comparison
from tests.real_airflow import AirflowError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".bench"
PAGES = ROOT / "docs"
RESULT, LOAD_RESULT, LEDGER_RESULT = (FOLDER / f"{name}.json" for name in ("result", "load", "ledger"))
GATES, WINDOW = [1, 100, 500], 60.0
LOAD_GATES, LOAD_ORGANIZATIONS = 5000, 50


class Terminated(BaseException):
    """A SIGTERM or SIGHUP has come."""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench",
        description="Compare waiting gates of this package with others, and measure many of them.",
    )
    parser.add_argument("--gates", type=int, nargs="+", default=GATES, help="numbers of gates (1 100 500)")
    parser.add_argument(
        "--window", type=float, default=WINDOW, help="seconds for which waiting gates are measured (60)"
    )
    names = [each.dag for each in CONTENDERS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="compare only these")
    parser.add_argument(
        "--database", choices=("postgresql", "sqlite"), help="default: PostgreSQL if it is installed"
    )
    parser.add_argument(
        "--load-only",
        action="store_true",
        help="run only the load test, which otherwise follows a full comparison",
    )
    parser.add_argument(
        "--load-gates",
        type=int,
        default=LOAD_GATES,
        help="gates of the load test, a multiple of the organizations",
    )
    parser.add_argument("--load-organizations", type=int, default=LOAD_ORGANIZATIONS)
    parser.add_argument(
        "--generate-only", action="store_true", help="measure only what a durable call adds to a plain one"
    )
    parser.add_argument(
        "--ledger-only", action="store_true", help="measure only the ledger, on PostgreSQL: about two minutes"
    )
    parser.add_argument(
        "--page", action="store_true", help="measure nothing, and write the pages of the last full runs again"
    )
    options = parser.parse_args()
    if options.load_gates % options.load_organizations:
        parser.error("--load-gates must be a multiple of --load-organizations")
    return options


def bench(options: argparse.Namespace) -> None:
    full = (options.gates, options.window, len(options.only)) == (GATES, WINDOW, len(CONTENDERS))
    if options.generate_only:
        say(generate.measure())
        return
    if options.ledger_only:
        measure_ledger()
        return
    if not options.load_only:
        compare(options, full)
    if options.load_only or full:
        load(options)


def compare(options: argparse.Namespace, full: bool) -> None:
    saved = RESULT if full else FOLDER / "quick.json"
    contenders = [each for each in CONTENDERS if each.dag in options.only]
    clean_folder()
    with Comparison(FOLDER, say, window=options.window, use_postgres=use_postgres(options)) as run:
        result = run.run(contenders, options.gates, lambda so_far: save(saved, so_far))
    save(saved, result)
    print(report.text(result))
    if full:
        say_written(report.write(result, PAGES))
    else:
        say("this was not a full run: the page is unchanged")


def load(options: argparse.Namespace) -> None:
    gates, organizations, window = options.load_gates, options.load_organizations, options.window
    full = (gates, organizations, window) == (LOAD_GATES, LOAD_ORGANIZATIONS, WINDOW)
    clean_folder()
    with LoadTest(
        FOLDER,
        say,
        gates=gates,
        organizations=organizations,
        window=window,
        use_postgres=use_postgres(options),
    ) as run:
        result = run.run()
    save(LOAD_RESULT if full else FOLDER / "quick-load.json", result)
    print(load_report.text(result))
    if full:
        say_written(load_report.write(result, PAGES))
    else:
        say("this was not a full load test: the page is unchanged")


def measure_ledger() -> None:
    result = ledger.measure(say)
    save(LEDGER_RESULT, result)
    print(ledger_report.text(result))
    say_written(ledger_report.write(result, PAGES))


def use_postgres(options: argparse.Namespace) -> bool | None:
    return None if options.database is None else options.database == "postgresql"


def clean_folder() -> None:
    for name in ("airflow", "logs"):
        shutil.rmtree(FOLDER / name, ignore_errors=True)


def save(path: Path, result: report.Result) -> None:
    path.write_text(json.dumps(result, indent=1))


def say_written(written: list[Path]) -> None:
    for path in written:
        say(f"written: {path.relative_to(ROOT)}")


def write_again() -> None:
    for path, write in (
        (RESULT, report.write),
        (LOAD_RESULT, load_report.write),
        (LEDGER_RESULT, ledger_report.write),
    ):
        if path.exists():
            say_written(write(json.loads(path.read_text()), PAGES))


def terminate(_number: int, _frame: object) -> None:
    raise Terminated


def main() -> int:
    options = arguments()
    if not version("apache-airflow").startswith("3.3."):
        say("the benchmarks need Airflow 3.3")
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup make bench
            signal.signal(number, terminate)
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if options.page:
                write_again()
            else:
                bench(options)
        except (AirflowError, OSError) as error:
            say(f"failed: {type(error).__name__}: {error}")
            return 1
        except KeyboardInterrupt:
            return 130
        except Terminated:
            return 143
    return 0


if __name__ == "__main__":
    sys.exit(main())
