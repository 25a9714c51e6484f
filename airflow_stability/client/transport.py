"""One HTTP exchange with limits: an end as a whole, a largest size, no redirect. Knows no Stability API.

requests limits the wait for each piece of an answer, not the answer: a server that sends a byte a second
would hold a call for ever. Here a timer cuts the socket when the whole took too long.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import threading
from contextvars import ContextVar
from http.cookiejar import DefaultCookiePolicy
from types import TracebackType
from typing import Any, Self

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.poolmanager import PoolManager

_current: ContextVar[TimeLimit | None] = ContextVar("stability_time_limit", default=None)


class UnreadableAnswerError(Exception):
    """A body that is not read, or not to its end; the text completes "the body ..."."""


class TimeLimit:
    """Ends every exchange begun inside ``with TimeLimit(seconds) as limit`` when the time is up.

    The exchange then fails, or seems to have ended early: ask ``limit.expired`` after either. Looking up
    the host name cannot be cut; the resolver's own limits apply there.

    It is told as well how far an exchange came: ``limit.unsent`` after a failure means that not one byte of
    the request has left, and is False wherever that is not certain.

    :param seconds: how long the exchange may take as a whole.
    """

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self.unsent = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            # A timer that fires just now must not cut a connection that went back to the pool.
            self._forget()
        _current.reset(self._token)

    def watch(self, connected: socket.socket) -> None:
        """Remember the socket that the exchange runs over.

        A second descriptor of it, rather: a TLS handshake takes the first one away from its socket object,
        and shutting a TLS socket down drops the state that its reader is using.
        """
        with self._lock:
            self._forget()
            self._socket = socket.fromfd(connected.fileno(), socket.AF_INET, socket.SOCK_STREAM)
        if self.expired:
            self._cut()

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _cut(self) -> None:
        with self._lock:
            self.expired = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # it may be gone already
                    self._socket.shutdown(socket.SHUT_RDWR)


def _check_time() -> None:
    """Raise an error if the time is up: a socket that is cut still hands out what has arrived before."""
    limit = _current.get()
    if limit is not None and limit.expired:
        raise TimeoutError("the answer took too long")


class _BoundedReader(io.BufferedReader):
    """Reads no line without an end, and nothing "until the end": a chunk of length -1 would ask for that.

    And no body where the head broke off: http.client takes the end of a connection for the end of a head too.
    """

    line_broke_off = False
    head_broke_off = False

    def read(self, size: int | None = -1, /) -> bytes:
        _check_time()
        if self.head_broke_off:
            raise OSError("the answer ended inside its head")
        if size is None or size < 0:
            raise OSError("the length of a chunk is negative")
        return super().read(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        _check_time()
        longest = 64 * 1024 if size is None or size < 0 else size
        line = super().readline(longest)
        self.line_broke_off = len(line) < longest and not line.endswith(b"\n")
        return line


class _BoundedResponse(http.client.HTTPResponse):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reader = _BoundedReader(self.fp.detach())  # nothing is buffered yet
        self.fp = self._reader

    def begin(self) -> None:
        super().begin()
        # http.client passes over 100 only. Any other that is not the last word (RFC 9110, section 15.2) it
        # would take for the answer, and the answer for that to the next request on this connection.
        while 102 <= self.status <= 199:
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()
        self._reader.head_broke_off = self._reader.line_broke_off
        # urllib3 would log what could not be read as a header, as it came: it may hold the key.
        self.msg.defects.clear()
        self.msg.set_payload("")


class _WatchedHTTPConnection(HTTPConnection):
    """Tells the time limit which socket it uses: from connecting on, and when it is used again. And when a
    request begins to leave.
    """

    response_class = _BoundedResponse

    def _new_conn(self) -> socket.socket:
        connected = super()._new_conn()
        _watch(connected)
        return connected

    def _tunnel(self) -> None:
        super()._tunnel()
        limit = _current.get()
        if limit is not None and limit.expired:
            # The head of a proxy's answer that was cut seems complete; TLS would begin on a dead socket.
            raise TimeoutError("the proxy's answer took too long")

    def putrequest(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:
            _watch(self.sock)
        super().putrequest(*args, **kwargs)

    def endheaders(self, *args: Any, **kwargs: Any) -> None:
        """Send what was put together so far: up to here nothing of a request has left.

        What a proxy is asked to connect to, and TLS's own talk, go by other ways.
        """
        if self.sock is None:
            self.connect()  # http.client would, in the same breath as it sends the first byte
        limit = _current.get()
        if limit is not None:
            if limit.expired:
                raise TimeoutError("connecting took too long")  # the socket is cut: do not begin to send
            limit.unsent = False
        super().endheaders(*args, **kwargs)


class _WatchedHTTPSConnection(_WatchedHTTPConnection, HTTPSConnection):
    pass


def _watch(connected: socket.socket) -> None:
    limit = _current.get()
    if limit is not None:
        limit.watch(connected)


class _WatchedHTTPPool(HTTPConnectionPool):
    ConnectionCls = _WatchedHTTPConnection


class _WatchedHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedHTTPSConnection


class _WatchedAdapter(HTTPAdapter):
    """requests' own adapter, with connections that tell the time limit which socket they use.

    A request that it takes is unsent until one of them says otherwise. One that something else takes, such as
    a stand-in for the network in a test, is not known to be.
    """

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        limit = _current.get()
        if limit is not None:
            limit.unsent = True  # this is requests' first step with a request
        return super().get_connection_with_tls_context(*args, **kwargs)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _use_watched_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        _use_watched_pools(manager)
        return manager


def _use_watched_pools(manager: PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _WatchedHTTPPool, "https": _WatchedHTTPSPool}


class Session(requests.Session):
    """A pooled session that keeps no cookies, follows no redirect and reads the body of none by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.mount("https://", _WatchedAdapter())
        self.mount("http://", _WatchedAdapter())

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Say that there is none: requests would read a redirect's whole body to prepare the next call."""
        return


def read_limited(response: requests.Response, largest: int, *, piece: int = 64 * 1024) -> bytes:
    """Read the body of a streamed answer.

    :param largest: bytes that it may have at the most.
    :param piece: bytes to take from the wire at a time. A compressed body may unpack each to a thousand times
        that before it is counted.
    :raises UnreadableAnswerError: it has more; the rest is not read.
    """
    body = bytearray()
    for chunk in response.iter_content(piece):
        body += chunk
        if len(body) > largest:
            raise UnreadableAnswerError(f"has more than {largest} bytes")
    return bytes(body)
