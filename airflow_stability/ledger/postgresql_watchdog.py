"""A limit on the client's side for what a thread does with PostgreSQL.

PostgreSQL's own timeouts need a server that works, and its client waits for an answer forever. If a server is
gone, a pooler or a load balancer in front of it keeps the connection open and says nothing. So the connection
is cut off here. MySQL's clients have a limit of their own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

#: Seconds between two looks at what takes long.
LOOK_EVERY = 1.0

#: What threads are doing now, and the one thread of this process that watches it.
_uses: set[_Use] = set()
_watcher: threading.Thread | None = None


class Watchdog:
    """Cuts off connections of an engine that a thread uses for too long.

    :param engine: of PostgreSQL; with other databases, nothing is cut off.
    """

    def __init__(self, engine: Engine) -> None:
        self._is_needed = engine.dialect.name == "postgresql"
        self._of_thread = threading.local()
        if self._is_needed:
            # Before all other listeners: what they do on a new connection may hang, too.
            event.listen(engine, "connect", self._note, insert=True)
            event.listen(engine, "checkout", self._note)

    @contextlib.contextmanager
    def limit(self, seconds: float) -> Iterator[_Use]:
        """Cut off the connections that are used in the block, if it takes too long.

        The object that the block gets tells whether this has happened.

        :param seconds: how long the block may take. A connection that is still being made has its own limit.
        """
        use = _Use(seconds)
        if not self._is_needed:
            yield use
            return
        self._of_thread.use = use
        _uses.add(use)
        _watch()
        try:
            yield use
        finally:
            self._of_thread.use = None
            _uses.discard(use)
            use.end()

    def _note(self, connection: Any, *_more: object) -> None:
        use = getattr(self._of_thread, "use", None)
        if use is not None:
            use.connections.append(connection)


class _Use:
    """What a thread does with connections, until it has ended or is cut off."""

    def __init__(self, seconds: float) -> None:
        self.ends_at = time.monotonic() + seconds
        #: A forked process gets a copy of this object, whose connections still belong to this process.
        self.process = os.getpid()
        self.connections: list[Any] = []
        self.was_cut = False
        self._has_ended = False
        self._lock = threading.Lock()

    def end(self) -> None:
        with self._lock:
            self._has_ended = True

    def cut(self) -> None:
        """End the connections. The thread that waits for one of them then gets an error."""
        with self._lock:
            if self._has_ended or self.was_cut:
                return
            self.was_cut = True
            for connection in self.connections:
                # An error means that the connection has ended already.
                with (
                    contextlib.suppress(Exception),
                    socket.socket(fileno=os.dup(connection.fileno())) as wire,
                ):
                    wire.shutdown(socket.SHUT_RDWR)


def _watch() -> None:
    """Start the thread, if there is none in this process."""
    global _watcher
    if _watcher is None or not _watcher.is_alive():
        _watcher = threading.Thread(target=_look, name="stability-ledger-watchdog", daemon=True)
        _watcher.start()


def _look() -> None:
    never = threading.Event()
    while not never.wait(LOOK_EVERY):
        for use in list(_uses):
            if use.process == os.getpid() and use.ends_at <= time.monotonic():
                use.cut()
