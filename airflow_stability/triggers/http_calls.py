"""The HTTP calls of a triggerer: each begins at once in a thread, but a connection has at most two at a time.

A host that accepts calls and never answers must delay only those who wait for it:

- The threads are those of :mod:`airflow_stability.daemon_threads`, so no call waits until a call of another
  connection ends, and no process waits for one.
- The loop's own executor is not used. It has only a few threads for all triggers.
- Connections that hang have few threads in all: see :data:`MAX_LATE_CALLS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from airflow_stability.daemon_threads import start_in_thread
from airflow_stability.errors import StabilityTimeoutError

#: Calls of one connection at a time.
MAX_CALLS = 2

#: Calls at a time of all connections together whose last call came to no end in time. An outage that hits
#: hundreds of connections then takes up no more threads than this. Connections that are answered never wait
#: for them.
MAX_LATE_CALLS = 64

#: Seconds that a poll of the balance, or a request for a job, may take, whatever the connection's
#: ``request_timeout`` is.
POLL_SECONDS = 20.0

_Result = TypeVar("_Result")


class Run(Protocol):
    """Runs a call in a thread, and returns its result."""

    async def __call__(
        self, call: Callable[..., _Result], *args: Any, seconds: float | None = None
    ) -> _Result:
        """Run a call.

        :param seconds: how long to wait for the result; None for no limit. The call itself goes on.
        :raises StabilityTimeoutError: the call took longer.
        """


class Calls:
    """The calls of one connection in one event loop.

    :param late_calls: has room for the late calls of all connections.
    :param ended: called on the loop when a call has ended that nobody waits for any more.
    """

    def __init__(self, late_calls: asyncio.Semaphore, ended: Callable[[], None]) -> None:
        self._room = asyncio.Semaphore(MAX_CALLS)
        self._late_calls = late_calls
        self._ended = ended
        self._is_late = False
        #: How many calls run that nobody waits for any more.
        self.abandoned = 0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[Run]:
        """Wait for a turn to call, and provide what runs the calls of this turn, one after another.

        A call may outlast its turn, for example when nobody waits for it any more. It then keeps its room.
        """
        with contextlib.ExitStack() as room:
            await self._room.acquire()
            room.callback(self._room.release)
            if self._is_late:
                await self._late_calls.acquire()
                room.callback(self._late_calls.release)
            last: Future[Any] | None = None

            async def run(call: Callable[..., _Result], *args: Any, seconds: float | None = None) -> _Result:
                nonlocal last
                last = future = start_in_thread(functools.partial(call, *args))
                try:
                    async with asyncio.timeout(seconds):
                        result = await asyncio.wrap_future(future)
                except TimeoutError:
                    self._is_late = True
                    raise StabilityTimeoutError(
                        f"No complete response came within {seconds:g} s. A poll in a triggerer may take at "
                        f"most {POLL_SECONDS:g} s, whatever request_timeout is."
                    ) from None
                except Exception as error:
                    self._is_late = isinstance(error, StabilityTimeoutError)
                    raise
                self._is_late = False
                return result

            try:
                yield run
            finally:
                if last is not None and not last.done():
                    self._abandon(last, room.pop_all())

    def _abandon(self, call: Future[Any], room: contextlib.ExitStack) -> None:
        """Keep the room of a call until it has ended."""
        self.abandoned += 1
        loop = asyncio.get_running_loop()

        def end() -> None:
            self.abandoned -= 1
            room.close()
            self._ended()

        def end_on_loop(_call: Future[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(end)

        call.add_done_callback(end_on_loop)
