"""A limit on the client's side for what a thread does with PostgreSQL.

PostgreSQL's own timeouts need a server that works, and its client waits for an answer without end. A pooler
or a load balancer whose server is gone keeps the connection open and says nothing. So the connection is cut
off here. MySQL's clients have a limit of their own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine


class Watchdog:
    """It cuts off the connections of an engine that a thread uses for too long.

    :param engine: of PostgreSQL; with other databases, nothing is cut off.
    """

    def __init__(self, engine: Engine) -> None:
        self._is_needed = engine.dialect.name == "postgresql"
        self._of_thread = threading.local()
        if self._is_needed:
            # First of all: what follows in a new connection may be kept waiting, too.
            event.listen(engine, "connect", self._note, insert=True)
            event.listen(engine, "checkout", self._note)

    @contextlib.contextmanager
    def limit(self, seconds: float) -> Iterator[threading.Event]:
        """Cut off what is used within the block, if that takes longer; the event tells whether it was.

        :param seconds: until then. A connection that is still being made has a limit of its own.
        """
        was_cut = threading.Event()
        if not self._is_needed:
            yield was_cut
            return
        used: list[Any] = []
        ended, lock = threading.Event(), threading.Lock()

        def cut() -> None:
            with lock:
                if not ended.is_set():
                    was_cut.set()
                    for connection in used:
                        _cut(connection)

        timer = threading.Timer(seconds, cut)
        timer.daemon = True
        self._of_thread.used = used
        timer.start()
        try:
            yield was_cut
        finally:
            with lock:
                ended.set()
            timer.cancel()
            self._of_thread.used = None

    def _note(self, connection: Any, *_more: object) -> None:
        used = getattr(self._of_thread, "used", None)
        if used is not None:
            used.append(connection)


def _cut(connection: Any) -> None:
    """End a connection from another thread than the one that waits for it, which then gets an error."""
    # An error means that it has ended already.
    with contextlib.suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)
