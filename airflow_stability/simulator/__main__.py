"""The command line of the simulator: ``python -m airflow_stability.simulator``."""

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
from typing import Any, get_args
from urllib.parse import quote

from airflow_stability.simulator.faults import Fault, FaultKind
from airflow_stability.simulator.rate_limit import RateLimit
from airflow_stability.simulator.request_log import logger
from airflow_stability.simulator.server import StabilitySimulator

DESCRIPTION = "A local Stability API: nothing leaves this machine, and no credit is spent. Ctrl-C stops it."
CONTROLS = """\
controls, while it runs (JSON; GET /_simulator/state shows its state, GET /_simulator lists all controls):
  curl URL/_simulator/credits -H 'Content-Type: application/json' -d '{"credits": 50}'
  curl URL/_simulator/top-up  -H 'Content-Type: application/json' -d '{"credits": 10}'
  curl URL/_simulator/faults  -H 'Content-Type: application/json' -d '{"kind": "status", "status": 503}'
  curl -X DELETE URL/_simulator/faults
  curl URL/_simulator/charges

faults, until they are deleted or for the next "times" requests; with "path" or "key" only for those:
"""


def _faults() -> Iterator[str]:
    for kind in get_args(FaultKind):
        parameters = inspect.signature(getattr(Fault, kind)).parameters.values()
        named = [
            f"{parameter.name} ({'required' if parameter.default is parameter.empty else parameter.default})"
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
    count: dict[str, Any] = {"type": int, "metavar": "N"}
    seconds: dict[str, Any] = {"type": float, "metavar": "SECONDS"}
    add("--host", default="127.0.0.1", help="address to listen on, for the controls too (%(default)s)")
    add("--port", type=int, default=0, help="the port (a free one)")
    add("--credits", type=float, default=25.0, help="credits of the default organization (%(default)g)")
    add("--api-key-file", type=Path, metavar="FILE", help="a file with the API key (one is generated)")
    add("--requests-per-window", **count, default=real.requests, help="requests of a key (%(default)d)")
    add("--window", **seconds, default=real.window, help="length of the window (%(default)g)")
    add("--lockout", **seconds, default=real.lockout, help="lock-out after too many (%(default)g)")
    add("--retry-after", metavar="VALUE", help="Retry-After of a 429 (none, like the real API)")
    add("--job-seconds", **seconds, default=10.0, help="how long an asynchronous call takes (%(default)g)")
    add("--repeat-keys", action="store_true", help="repeat the key in a 401 of v1, as the real API does")
    add("--certfile", type=Path, metavar="FILE", help="a file with a certificate (PEM): https")
    add("--keyfile", type=Path, metavar="FILE", help="a file with its private key, if the other has none")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the simulator until Ctrl-C or SIGTERM, and return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        key = options.api_key_file.read_text().strip() if options.api_key_file else None
        if key is not None and quote(key, safe="") != key:
            # The shell inserts the key into a URI, and quotes nothing.
            parser.error("the key in --api-key-file may hold letters, digits and -._~ only")
        simulator = StabilitySimulator(
            host=options.host,
            port=options.port,
            credits=options.credits,
            api_key=key,
            rate_limit=RateLimit(
                options.requests_per_window, options.window, options.lockout, options.retry_after
            ),
            job_seconds=options.job_seconds,
            repeat_keys=options.repeat_keys,
            certfile=options.certfile,
            keyfile=options.keyfile,
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))

    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    # The shell may have changed what these signals do. Both stop the simulator cleanly.
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
        # The only place that shows a key. This one was generated a moment ago, for this simulator alone, and
        # the user pastes the line.
        uri = shlex.quote(simulator.connection_uri())
    else:
        # The user's own key is not shown: the shell that runs this line reads it from the same file.
        read = f"$(cat {shlex.quote(str(key_file.resolve()))})"
        uri = '"' + simulator.connection_uri(key="KEY").replace("KEY", read) + '"'
    return (
        f"The Stability simulator listens on {simulator.url}\nexport AIRFLOW_CONN_STABILITY_DEFAULT={uri}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
