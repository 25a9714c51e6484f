"""A watch that records how long each round of a triggerer's event loop takes, and whose code runs in it.

A round is what the loop does between two looks at its sockets and timers. Everything that arrives meanwhile
waits for the end of the round. The watch is called at the beginning and end of each round, so it misses none.
It samples whose code runs: every 10 ms of a round, a signal makes the loop's thread read its own stack, which
takes some microseconds. The signal waits until running C code has returned, so each sample stands for all the
time since the sample before.

A round can also be long although no code of the loop runs. Python may collect garbage, another thread may
hold the global lock, and other processes may use the cores. So the watch also records the time of garbage
collections, which counts as nobody's, and the CPU time of the loop's thread.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from airflow.triggers.base import BaseTrigger, TaskSuccessEvent

#: The environment variable with the file that the rounds are written to, a JSON object a line.
FILE = "BENCH_LOOP_WATCH"
#: Seconds from which a round is recorded.
RECORDED_FROM = 0.02
SAMPLE_EVERY = 0.01
OURS = "airflow_stability"


class LoopWatch(BaseTrigger):
    """A trigger that starts the watch in its process, and ends. The watch ends with the process."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "loop_watch.LoopWatch", {}

    async def run(self) -> AsyncIterator[TaskSuccessEvent]:
        _Watch(asyncio.get_running_loop(), Path(os.environ[FILE]))
        yield TaskSuccessEvent()


class _Watch:
    def __init__(self, loop: asyncio.AbstractEventLoop, file: Path) -> None:
        self._file = file
        self._thread = threading.get_ident()
        #: When the current round began; None while the loop waits.
        self._began: float | None = None
        self._cpu = 0.0
        #: Seconds of all ended garbage collections, and when the current one began, if there is one.
        self._collected = 0.0
        self._collects_since: float | None = None
        #: Seconds of all garbage collections before the current round.
        self._collected_before = 0.0
        #: The samples of the current round: seconds since the sample before, and the stack.
        self._samples: list[tuple[float, list[str]]] = []
        self._done: list[dict[str, Any]] = []
        self._selector: Any = loop._selector  # type: ignore[attr-defined]
        self._wait = self._selector.select
        self._selector.select = self._select
        #: When the last sample was taken, and the seconds of garbage collections before it.
        self._sampled = (0.0, 0.0)
        gc.callbacks.append(self._on_collection)
        # The loop's thread reads its own stack. Reading it from another thread, with sys._current_frames, can
        # deadlock the process (python/cpython#106883).
        signal.signal(signal.SIGVTALRM, self._sample)
        threading.Thread(target=self._ask_for_samples, name="loop-watch", daemon=True).start()

    def _select(self, timeout: float | None = None) -> Any:
        if self._began is not None:
            seconds = time.monotonic() - self._began
            if seconds >= RECORDED_FROM:
                self._record(seconds)
            self._samples = []
        self._began = None
        try:
            return self._wait(timeout)
        finally:
            self._cpu, self._collected_before = time.thread_time(), self._collected
            self._began = time.monotonic()

    def _on_collection(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._collects_since = time.monotonic()
        elif (since := self._collects_since) is not None:
            self._collected += time.monotonic() - since
            self._collects_since = None

    def _collecting(self, now: float) -> float:
        """Return the seconds of all garbage collections, up to now.

        The current one counts too: Python code may run in it, in callbacks of weak references.
        """
        since = self._collects_since
        return self._collected + (0.0 if since is None else now - since)

    def _record(self, seconds: float) -> None:
        ours = [(took, stack) for took, stack in self._samples if any(map(_is_ours, stack))]
        innermost = Counter(" < ".join(stack[:3]) for _, stack in self._samples)
        innermost_with_ours = Counter(
            " < ".join([stack[0], next(filter(_is_ours, stack))]) for _, stack in ours
        )
        self._done.append(
            {
                "ended": time.monotonic(),
                "seconds": seconds,
                "cpu": time.thread_time() - self._cpu,
                "garbage": self._collected - self._collected_before,
                "ours": sum(took for took, _ in ours),
                "innermost": innermost.most_common(3),
                "innermost_with_ours": innermost_with_ours.most_common(3),
            }
        )

    def _ask_for_samples(self) -> None:
        while True:
            time.sleep(SAMPLE_EVERY)
            if (began := self._began) is not None and time.monotonic() - began > SAMPLE_EVERY / 2:
                signal.pthread_kill(self._thread, signal.SIGVTALRM)
            while self._done:
                with self._file.open("a") as file:
                    file.write(json.dumps(self._done.pop(0)) + "\n")

    def _sample(self, _signal: int, frame: FrameType | None) -> None:
        if self._began is None:  # the round has ended in the meantime
            return
        now = time.monotonic()
        garbage = self._collecting(now)
        last, collected = self._sampled
        took = now - max(self._began, last) - (garbage - max(collected, self._collected_before))
        self._samples.append((took, list(_names(frame))))
        self._sampled = now, garbage


def _is_ours(name: str) -> bool:
    return name.startswith(f"{OURS}.")


def _names(frame: FrameType | None) -> Iterator[str]:
    """Yield module and function of each frame of a stack, the innermost first."""
    while frame is not None:
        yield f"{frame.f_globals.get('__name__')}:{frame.f_code.co_name}"
        frame = frame.f_back
