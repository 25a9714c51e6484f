"""Threads that hold no process back from its end: a call begins at once in one, however many others hang.

A process does not wait for these threads when it ends, because they are daemons. It waits for the threads of
every executor of ``concurrent.futures``, and such an executor has only so many. Here, if no thread is free,
another one starts. So whoever starts calls limits how many of them run at a time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

#: Seconds for which a thread waits for another call. An event loop stands still while a thread starts.
IDLE_SECONDS = 120.0

THREAD_NAME = "stability-call"

#: The queues of the threads that wait for a call. The other threads of this name are busy.
idle_threads: list[SimpleQueue[tuple[Callable[[], Any], Future[Any]]]] = []
os.register_at_fork(after_in_child=idle_threads.clear)  # a forked process has none of the threads

_Result = TypeVar("_Result")


def start_in_thread(call: Callable[[], _Result]) -> Future[_Result]:
    """Start a call in a thread that holds no process back from its end.

    :returns: its result or exception, also one that no :class:`Exception` is. It cannot be cancelled.
    """
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
