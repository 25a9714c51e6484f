"""A result that is read in the background, rarely, and shared by all requests. This module uses no Airflow.

It measures durations by the monotonic clock: the time of day may be set.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from datetime import UTC, datetime
from typing import Generic, TypeVar

from airflow_stability.daemon_threads import start_in_thread

Result = TypeVar("Result")

#: A result is not read again before it is this old, however often the page is reloaded.
MAX_AGE_SECONDS = 15.0


class SharedRead(Generic[Result]):
    """The latest result of a function.

    :param read: called in a thread, with the time of day. What it raises, the requests that wait raise.
    :param has_failed: tells whether a result is that of a failure. How long a failure took does not matter
        for when the next read is due.
    """

    def __init__(
        self, read: Callable[[datetime], Result], *, has_failed: Callable[[Result], bool] = lambda _: False
    ) -> None:
        self._read = read
        self._has_failed = has_failed
        self._lock = threading.Lock()
        self._running: Future[None] | None = None
        self._latest: tuple[Result, datetime] | None = None
        self._fresh_until = 0.0

    def get(
        self, wait_seconds: float, *, wait_for_first: bool = False
    ) -> tuple[Result | None, datetime | None]:
        """Return the result. If it is an earlier one because the read takes long, return its time, too.

        :param wait_seconds: how long to wait for a read.
        :param wait_for_first: wait as long as it takes, if there is no earlier result; else return None then.
        """
        with self._lock:
            earlier = self._latest
            if self._running is None and (earlier is None or time.monotonic() >= self._fresh_until):
                self._running = start_in_thread(self._refresh)
            running = self._running
        if running is not None:
            wait([running], timeout=None if wait_for_first and not earlier else max(wait_seconds, 0.0))
            if not running.done():
                return earlier or (None, None)
            running.result()  # raises what has failed
        assert self._latest is not None
        return self._latest[0], None

    def _refresh(self) -> None:
        now, began = datetime.now(UTC), time.monotonic()
        try:
            result = self._read(now)
            self._latest = result, now
            ended = time.monotonic()
            if self._has_failed(result):
                self._fresh_until = ended + MAX_AGE_SECONDS
            else:
                # Slow reads run more rarely, so that reloads take at most a tenth of a large database's time.
                self._fresh_until = began + max(MAX_AGE_SECONDS, 10 * (ended - began))
        finally:
            with self._lock:
                self._running = None
