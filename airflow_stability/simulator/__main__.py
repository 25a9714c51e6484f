"""The simulator on the command line: `python -m airflow_stability.simulator`."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import logging
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_args
from urllib.parse import quote

from airflow_stability.simulator.controls import FaultKind
from airflow_stability.simulator.faults import Fault
from airflow_stability.simulator.request_log import logger
from airflow_stability.simulator.server import StabilitySimulator
from airflow_stability.simulator.state import RateLimit

DESCRIPTION = (
    "A Stability API to run at home: nothing leaves this machine, no credit is spent. Ctrl-C ends it."
)
CONTROLS = """\
controls, while it runs (JSON; GET /_simulator/state shows all there is, GET /_simulator names all controls):
  curl URL/_simulator/credits -H 'Content-Type: application/json' -d '{"credits": 50}'
  curl URL/_simulator/top-up  -H 'Content-Type: application/json' -d '{"credits": 10}'
  curl URL/_simulator/faults  -H 'Content-Type: application/json' -d '{"kind": "status", "status": 503}'
  curl -X DELETE URL/_simulator/faults

faults, for as long as they are not deleted or for the next "times" requests, only for a "path" or a "key":
"""


def _faults() -> Iterator[str]:
    for kind in get_args(FaultKind):
        parameters = inspect.signature(getattr(Fault, kind)).parameters.values()
        named = [
            f"{parameter.name} ({'needed' if parameter.default is parameter.empty else parameter.default})"
            for parameter in parameters
        ]
        yield f"  {kind:<10} {', '.join(named)}".rstrip()


def _parser() -> argparse.ArgumentParser:
    real = RateLimit()
    parser = argparse.ArgumentParser(
        prog="python -m airflow_stability.simulator",
        description=DESCRIPTION,
        epilog=CONTROLS + "\n".join(_faults()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="where to listen (127.0.0.1); others may then use its controls")
    add("--port", type=int, default=0, help="the port (a free one)")
    add("--credits", type=float, default=25.0, help="credits of the default organization (25)")
    add("--api-key-file", type=Path, metavar="FILE", help="a file that holds the API key (one is made up)")
    add(
        "--requests-per-window",
        type=int,
        default=real.requests,
        metavar="N",
        help=f"requests that a key may make in one window ({real.requests})",
    )
    add(
        "--window",
        type=float,
        default=real.window,
        metavar="SECONDS",
        help=f"that window's length ({real.window:g})",
    )
    add(
        "--lockout",
        type=float,
        default=real.lockout,
        metavar="SECONDS",
        help=f"how long a key is refused after that ({real.lockout:g})",
    )
    add("--retry-after", metavar="VALUE", help="what a 429 says in Retry-After (nothing, as in reality)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the simulator until Ctrl-C or SIGTERM. Returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        key = options.api_key_file.read_text().strip() if options.api_key_file else None
        if key is not None and quote(key, safe="") != key:
            # It is pasted into a URI by a shell, which quotes nothing.
            parser.error("the key in --api-key-file may hold letters, digits and -._~ only")
        simulator = StabilitySimulator(
            host=options.host,
            port=options.port,
            credits=options.credits,
            api_key=key,
            rate_limit=RateLimit(
                options.requests_per_window, options.window, options.lockout, options.retry_after
            ),
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))

    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    # Also where the shell had these ignored or deadly: both end it the clean way.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            simulator.start()
        except OSError as error:
            sys.stderr.write(f"Cannot listen on {options.host}:{options.port}: {error.strerror}.\n")
            return 1
        sys.stdout.write(_introduction(simulator, options.api_key_file))
        sys.stdout.flush()
        threading.Event().wait()
    simulator.stop()
    return 0


def _introduction(simulator: StabilitySimulator, key_file: Path | None) -> str:
    if key_file is None:
        # The one place that shows a key: it was made up a moment ago, opens nothing else, and is there to be
        # pasted.
        uri = shlex.quote(simulator.connection_uri())
    else:
        # A key of the user's own is not shown; the shell that gets this line reads it from the same file.
        read = f"$(cat {shlex.quote(str(key_file.resolve()))})"
        uri = '"' + simulator.connection_uri(key="KEY").replace("KEY", read) + '"'
    return (
        f"The Stability simulator listens on {simulator.url}\nexport AIRFLOW_CONN_STABILITY_DEFAULT={uri}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
