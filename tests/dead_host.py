"""A host that accepts every connection and never answers, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import Self
from urllib.parse import quote, urlencode


class DeadHost:
    """The host runs within its ``with`` block. At the end of the block, the calls to it fail.

    :param drip: seconds after which it sends one more byte of its answer, so that no read times out; None for
        a host that sends nothing.
    """

    def __init__(self, drip: float | None = None) -> None:
        self._drip = drip
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._calls: set[socket.socket] = set()
        self._ended = threading.Event()
        #: The largest number of calls that it had at the same time.
        self.most_calls = 0
        #: The number of calls so far.
        self.all_calls = 0

    @property
    def calls(self) -> int:
        """How many calls wait for an answer now."""
        with self._lock:
            return self._waiting()

    def connection(self, **extra: object) -> str:
        """Return an Airflow connection to the host, as a URI.

        :param extra: more of the connection's extra.
        """
        url = quote(f"http://127.0.0.1:{self.port}", safe="")
        return f"stability://:sk-dead-host@{url}?{urlencode({'api_version': 'v1', **extra})}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for call in self._calls:
                with contextlib.suppress(OSError):  # its process has ended
                    call.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                call, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._calls.add(call)
                self.all_calls += 1
                self.most_calls = max(self.most_calls, self._waiting())
            threading.Thread(target=self._hold, args=(call,), daemon=True).start()

    def _waiting(self) -> int:
        """Return the number of calls, without those that have hung up and whose threads have not seen it."""
        poll = select.poll()
        for call in self._calls:
            poll.register(call, getattr(select, "POLLRDHUP", 0))  # Linux only
        return len(self._calls) - len(poll.poll(0))

    def _hold(self, call: socket.socket) -> None:
        try:
            if self._drip is not None:
                call.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not self._ended.wait(self._drip):
                    call.sendall(b"x")
            while call.recv(65536):
                pass
        except OSError:
            pass
        finally:
            with self._lock:
                self._calls.discard(call)
            call.close()
