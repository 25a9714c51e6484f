"""The command line of the demo: `python -m tests.demo [--keep]`.

The exit status is 0 if everything is as it should be, else 1. After Ctrl-C it is 130, after SIGTERM 143. With
`--keep`, Airflow's web pages stay up until Ctrl-C, and the status is 0 then. In each case the demo stops all
processes that it has started.
"""

from __future__ import annotations

import argparse
import fcntl
import sys

from tests.demo.errors import DemoError
from tests.demo.folders import DEMO, LOCK_FILE
from tests.demo.run import run_demo
from tests.demo.signals import StopSignals
from tests.demo.terminal import Terminal


def main() -> int:
    """Run the demo, unless another demo runs in the same folder.

    :returns: the exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tests.demo", description="Show the provider package at work in a real Airflow."
    )
    parser.add_argument("--keep", action="store_true", help="leave Airflow's web pages up until Ctrl-C")
    options = parser.parse_args()
    terminal, signals = Terminal(), StopSignals()
    try:
        LOCK_FILE.parent.mkdir(exist_ok=True)
        with LOCK_FILE.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                terminal.say("failed", f"Another demo is running in {DEMO}. Stop it first.")
                return 1
            return run_demo(terminal, signals, keep=options.keep)
    except (DemoError, OSError) as error:
        terminal.say("failed", f"The demo could not prepare or clean up: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
