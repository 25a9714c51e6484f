"""The HTTP calls of a triggerer: each begins at once in a thread, but a connection has at most two at a time.

A host that accepts calls and never answers must delay only those who wait for it:

- If no thread is free, another one starts, so no call waits until a call of another connection ends.
- The loop's own executor is not used. It has only a few threads for all triggers.
- Connections that hang have few threads in all: see :data:`MAX_LATE_CALLS`.
- The threads are daemons, because a process does not wait for these when it ends. It waits for the threads of
  every executor of ``concurrent.futures``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from airflow_stability.errors import StabilityTimeoutError

#: Calls of one connection at a time.
MAX_CALLS = 2

#: Calls at a time of all connections together whose last call came to no end in time. An outage that hits
#: hundreds of connections then takes up no more threads than this. Connections that are answered never wait
#: for them.
MAX_LATE_CALLS = 64

#: Seconds that a poll of the balance may take, whatever the connection's ``request_timeout`` is.
POLL_SECONDS = 20.0

#: Seconds for which a thread waits for another call. The loop stands still while a thread starts.
IDLE_SECONDS = 120.0

THREAD_NAME = "stability-call"

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


#: The queues of the threads that wait for a call. The other threads of this name are busy.
idle_threads: list[SimpleQueue[tuple[Callable[[], Any], Future[Any]]]] = []
os.register_at_fork(after_in_child=idle_threads.clear)  # a forked process has none of the threads


def start_in_thread(call: Callable[[], _Result]) -> Future[_Result]:
    """Start a call in a thread that holds no process back from its end."""
    future: Future[_Result] = Future()
    future.set_running_or_notify_cancel()  # from now on it cannot be cancelled
    try:
        queue = idle_threads.pop()
    except IndexError:
        queue = SimpleQueue()
        threading.Thread(target=_work, args=(queue,), name=THREAD_NAME, daemon=True).start()
    queue.put((call, future))
    return future


def _work(queue: SimpleQueue[tuple[Callable[[], Any], Future[Any]]]) -> None:
    while True:
        try:
            _run(*queue.get(timeout=IDLE_SECONDS))
        except Empty:
            try:
                idle_threads.remove(queue)
            except ValueError:
                continue  # a call comes at this moment
            return
        idle_threads.append(queue)


def _run(call: Callable[[], Any], future: Future[Any]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)
    finally:
        del call, future  # the error's traceback holds this frame
