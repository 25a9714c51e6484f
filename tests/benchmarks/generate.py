"""What a durable call costs beside a plain one: both against the simulator on this machine, turn by turn."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from pathlib import Path

from airflow_stability.client import StabilityClient
from airflow_stability.simulator import RateLimit, StabilitySimulator

ENDPOINT = "stable-image/generate/core"
CALLS = 300


def measure(calls: int = CALLS) -> str:
    """Return what was measured, in words: the medians of as many calls of each kind."""
    logging.disable(logging.INFO)  # the simulator logs each request
    seconds: dict[str, list[float]] = {"request": [], "generate": [], "generate again": []}
    with (
        StabilitySimulator(credits=1e9, rate_limit=RateLimit(requests=1_000_000)) as simulator,
        StabilityClient(simulator.api_key, base_url=simulator.url) as client,
        tempfile.TemporaryDirectory() as folder,
    ):

        def timed(kind: str, number: int) -> None:
            prompt = f"{kind} {number}"
            began = time.perf_counter()
            if kind == "request":
                form = {"prompt": (None, prompt)}
                client.request("POST", f"/v2beta/{ENDPOINT}", headers={"Accept": "image/*"}, files=form)
            else:
                client.generate(ENDPOINT, to=Path(folder), prompt=prompt.replace(" again", ""))
            seconds[kind].append(time.perf_counter() - began)

        for number in range(calls + 20):
            for kind in seconds:
                timed(kind, number)
    # Without the first ones, which load modules.
    medians = {kind: statistics.median(each[20:]) * 1000 for kind, each in seconds.items()}
    added = medians["generate"] - medians["request"]
    shown = ", ".join(f"{kind} {median:.2f} ms" for kind, median in medians.items())
    return f"medians of {calls} calls: {shown}; a durable call adds {added:.2f} ms (goal: under 5)"
