"""One HTTP exchange with limits: a total time, a largest body, no redirects. Knows no Stability API.

The timeout of requests limits the wait for each piece of a response, but not the whole: a server that sends
one byte a second would hold a call for ever. Here a timer shuts the socket down when the time is up.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from http.cookiejar import DefaultCookiePolicy
from types import SimpleNamespace
from typing import Any, Self

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util.connection import create_connection

_current: ContextVar[TimeLimit] = ContextVar("stability_time_limit")


#: The statuses of a success.
SUCCESS = range(200, 300)

#: The port of a SOCKS proxy whose URL names none (RFC 1928).
SOCKS_PORT = 1080


class UnreadableBodyError(Exception):
    """A body that is not read, or not to its end. Its text completes "the body ..."."""


class TimeLimit:
    """A limit for the total time of an exchange, which must run inside ``with TimeLimit(seconds) as limit``.

    When the time is up, the exchange fails, or its response seems to end early: look at ``limit.expired``
    after both. Looking up a host name cannot be interrupted; the limits of the resolver apply to it.

    After a failure, ``limit.unsent`` is True if certainly no byte of the request was sent.

    :param seconds: how long the exchange may take in total.
    """

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self.unsent = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        self._timer.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._timer.cancel()
        with self._lock:
            # A timer that fires now must not shut down a connection that is in the pool again.
            self._forget()
        _current.reset(self._token)

    def watch(self, connected: socket.socket) -> None:
        """Remember the socket of the exchange, by a second descriptor.

        A TLS handshake detaches the first one from its socket object, and shutting a TLS socket down drops
        the state that its reader is using.
        """
        with self._lock:
            self._forget()
            self._socket = socket.fromfd(connected.fileno(), socket.AF_INET, socket.SOCK_STREAM)
        if self.expired:
            self._expire()

    def check(self) -> None:
        """Raise an error if the time is up: a socket that is shut down still returns what it had received."""
        if self.expired:
            raise TimeoutError("the exchange took too long")

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # it may be closed already
                    self._socket.shutdown(socket.SHUT_RDWR)


class _BoundedReader(io.BufferedReader):
    """Reads no endless line, and never "until the end", which a chunk of length -1 would ask for.

    Reads no body if the head is incomplete: http.client takes a closed connection for the end of a head.
    """

    line_incomplete = False
    head_incomplete = False

    def read(self, size: int | None = -1, /) -> bytes:
        _current.get().check()
        if self.head_incomplete:
            raise OSError("the response ended inside its head")
        if size is None or size < 0:
            raise OSError("the length of a chunk is negative")
        return super().read(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        _current.get().check()
        longest = 64 * 1024 if size is None or size < 0 else size
        line = super().readline(longest)
        self.line_incomplete = len(line) < longest and not line.endswith(b"\n")
        return line


class _BoundedResponse(http.client.HTTPResponse):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reader = _BoundedReader(self.fp.detach())  # nothing is buffered yet
        self.fp = self._reader

    def begin(self) -> None:
        super().begin()
        # http.client skips the interim response 100 only. It would take any other (RFC 9110, section 15.2)
        # for the final response, and the final response for that to the next request on this connection.
        while 102 <= self.status <= 199:
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()
        self._reader.head_incomplete = self._reader.line_incomplete
        # urllib3 would log header lines that could not be parsed as they are: they may contain the key.
        self.msg.defects.clear()
        self.msg.set_payload("")


class _WatchedHTTPConnection(HTTPConnection):
    """A connection that tells the time limit which socket it uses, and when it begins to send a request."""

    response_class = _BoundedResponse

    def _new_conn(self) -> socket.socket:
        connected = super()._new_conn()
        _current.get().watch(connected)
        return connected

    def _tunnel(self) -> None:
        super()._tunnel()
        _current.get().check()  # the head of a proxy's response seems complete even if it was cut

    def putrequest(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:
            _current.get().watch(self.sock)  # a connection from the pool
        super().putrequest(*args, **kwargs)

    def endheaders(self, *args: Any, **kwargs: Any) -> None:
        """Send the head of the request: no byte of the request was sent before.

        The CONNECT request to a proxy and the TLS handshake are sent by other methods.
        """
        if self.sock is None:
            self.connect()  # otherwise http.client connects and sends in one step
        limit = _current.get()
        limit.check()  # the socket may be shut down: do not begin to send
        limit.unsent = False
        super().endheaders(*args, **kwargs)


class _WatchedHTTPSConnection(_WatchedHTTPConnection, HTTPSConnection):
    pass


class _WatchedSocksConnection(_WatchedHTTPConnection):
    """A connection through a SOCKS proxy.

    urllib3's own shows its socket only after the proxy has let it through.
    """

    def __init__(self, _socks_options: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._socks_options = _socks_options

    def _new_conn(self) -> socket.socket:
        from airflow_stability.client.socks_tunnel import open_tunnel

        options = self._socks_options
        address = (options["proxy_host"], options["proxy_port"] or SOCKS_PORT)
        to_proxy = create_connection(address, self.timeout, socket_options=self.socket_options)
        _current.get().watch(to_proxy)
        return open_tunnel(to_proxy, self.host, self.port, timeout=self.timeout, **options)


class _WatchedSocksHTTPSConnection(_WatchedSocksConnection, HTTPSConnection):
    pass


class _WatchedHTTPPool(HTTPConnectionPool):
    ConnectionCls = _WatchedHTTPConnection


class _WatchedHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedHTTPSConnection


class _WatchedSocksHTTPPool(HTTPConnectionPool):
    ConnectionCls = _WatchedSocksConnection


class _WatchedSocksHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedSocksHTTPSConnection


_POOLS = {"http": _WatchedHTTPPool, "https": _WatchedHTTPSPool}
_SOCKS_POOLS = {"http": _WatchedSocksHTTPPool, "https": _WatchedSocksHTTPSPool}


class _WatchedAdapter(HTTPAdapter):
    """The adapter of requests, with watched connections.

    A request that it gets is unsent until its connection begins to send it. A request that something else
    gets, such as a replacement for the network in a test, counts as sent.
    """

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        _current.get().unsent = True  # this is the first step of requests with a request
        return super().get_connection_with_tls_context(*args, **kwargs)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        is_socks = "_socks_options" in manager.connection_pool_kw
        manager.pool_classes_by_scheme = _SOCKS_POOLS if is_socks else _POOLS
        return manager


class Session(requests.Session):
    """A pooled session that keeps no cookies and follows no redirects."""

    def __init__(self) -> None:
        super().__init__()
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.mount("https://", _WatchedAdapter())
        self.mount("http://", _WatchedAdapter())

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None: if there were a target, requests would read the whole body of the redirect."""


def read_limited(response: requests.Response, max_bytes: int, *, compressed: bool) -> bytes:
    """Read the body of a streamed response. It is the ``content`` of the response from then on.

    A body that was read before, or that has no stream, is returned as it is.

    :param max_bytes: the largest body that is read.
    :param compressed: whether a compressed body is read, if it can be unpacked in small pieces.
    :raises UnreadableBodyError: the body is larger, or compressed otherwise. Its rest is not read.
    """
    raw, encoding = response.raw, response.headers.get("Content-Encoding", "identity").lower()

    def stream(amount: int, decode_content: bool) -> Iterator[bytes]:
        if encoding != "identity":
            if not compressed:
                raise UnreadableBodyError("is compressed, which was not requested")
            if "," in encoding or encoding in ("br", "zstd"):
                raise UnreadableBodyError("is compressed in a way that cannot be unpacked in pieces")
        amount = 64 * 1024 if encoding == "identity" else 1024  # which may unpack to a thousand times that
        if hasattr(raw, "stream"):
            pieces = raw.stream(amount, decode_content=decode_content)
        else:
            pieces = iter(lambda: raw.read(amount), b"")  # a file, in a response made by hand
        body = bytearray()
        for piece in pieces:
            body += piece
            if len(body) > max_bytes:
                raise UnreadableBodyError(f"has more than {max_bytes} bytes")
        yield bytes(body)  # one piece: requests collects the pieces, and tiny ones take many times their size

    if raw is not None:
        response.raw = SimpleNamespace(stream=stream)  # requests reads the content from it
    try:
        return response.content or b""
    finally:
        response.raw = raw
