"""The benchmark: `make bench`. Its page, `docs/benchmark.md`, says what is measured and how.

`make bench ARGS="--gates 1 20 --window 20"` is a quick look. Only a full run writes the page and the plot.
Exit status: 0 when it has reached its end, else 1; after Ctrl-C 130, after SIGTERM or SIGHUP 143. What it has
started is gone afterwards in each case.
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

from tests.benchmarks import report
from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.measure import Bench
from tests.real_airflow import AirflowError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".bench"
RESULT = FOLDER / "result.json"
GATES, WINDOW = [1, 100, 500], 60.0


class Terminated(BaseException):
    """SIGTERM or SIGHUP has come."""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench", description="Measure the waiting gates beside others."
    )
    parser.add_argument("--gates", type=int, nargs="+", default=GATES, help="numbers of gates (1 100 500)")
    parser.add_argument(
        "--window", type=float, default=WINDOW, help="seconds to watch waiting gates for (60)"
    )
    names = [each.dag for each in CONTENDERS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="some of the contenders")
    parser.add_argument(
        "--database", choices=("postgresql", "sqlite"), help="default: PostgreSQL if it is there"
    )
    parser.add_argument(
        "--page", action="store_true", help="measure nothing: write the page of the last full run again"
    )
    return parser.parse_args()


def bench(options: argparse.Namespace) -> None:
    full = (options.gates, options.window, len(options.only)) == (GATES, WINDOW, len(CONTENDERS))
    use_postgres = None if options.database is None else options.database == "postgresql"
    shutil.rmtree(FOLDER / "airflow", ignore_errors=True)
    shutil.rmtree(FOLDER / "logs", ignore_errors=True)
    FOLDER.mkdir(exist_ok=True)
    contenders = [each for each in CONTENDERS if each.dag in options.only]
    with Bench(FOLDER, say, window=options.window, use_postgres=use_postgres) as run:
        result = run.run(contenders, options.gates, lambda so_far: keep(full, so_far))
    keep(full, result)
    print(report.text(result))
    if full:
        write(result)
    else:
        say("this was no full run: the page stays as it is")


def keep(full: bool, result: report.Result) -> None:
    (RESULT if full else FOLDER / "quick.json").write_text(json.dumps(result, indent=1))


def write(result: report.Result) -> None:
    for path in report.write(result, ROOT / "docs"):
        say(f"written: {path.relative_to(ROOT)}")


def terminate(_number: int, _frame: object) -> None:
    raise Terminated


def main() -> int:
    options = arguments()
    if not version("apache-airflow").startswith("3.3."):
        say("the benchmark needs Airflow 3.3")
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup make bench
            signal.signal(number, terminate)
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if options.page:
                write(json.loads(RESULT.read_text()))
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
