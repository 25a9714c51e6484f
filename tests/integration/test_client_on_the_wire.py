"""The client against servers that break HTTP, over real sockets.

No call outlives its limit, or holds more than a few MiB; and the key gets into no error, no log, to nobody
else.
"""

from __future__ import annotations

import contextlib
import datetime
import gzip
import ipaddress
import itertools
import logging
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest

from airflow_stability.client import StabilityClient
from airflow_stability.client.attempt import MAX_OUTPUT_BYTES
from airflow_stability.errors import (
    StabilityAuthenticationError,
    StabilityError,
    StabilityMalformedResponseError,
    StabilityNetworkError,
    StabilityOutcomeUnknownError,
    StabilityPaymentRequiredError,
    StabilityRateLimitError,
    StabilityRedirectError,
    StabilityRequestError,
    StabilityTimeoutError,
    StabilityUnavailableError,
)
from tests.leaks import forms_of
from tests.socks_proxy import SocksProxy

KEY = "sk-THIS0is0SECRET/0aBcDeFgHiJkLmN+oPqRsTuVwXyZ=0"  # a URL writes some of these in another way
TIMEOUT = 0.4  # seconds for each piece; a call as a whole may take twice that
PATIENT = 4.0  # the same, where something else than time is to end the call: machines stand still for a while
SOON = 3.5  # seconds after which a call held its caller
BUFFERS = 24 * 1024 * 1024  # bytes that may lie in the kernel's buffers between two sockets, generously
MEMORY = 8 * 1024 * 1024  # bytes that a failing call may hold at a time

BALANCE = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"credits": 5}'


class Server:
    """Accepts connections and lets a function talk on each of them, in a thread of its own."""

    def __init__(self, talk, *, tls: ssl.SSLContext | None = None) -> None:
        self._talk, self._tls = talk, tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.connections: list[socket.socket] = []
        self.bytes_sent = 0
        self.hung_up = threading.Event()
        self.closing = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection:
                self._talk(self, connection)

    def send(self, connection: socket.socket, *pieces: bytes) -> None:
        for piece in pieces:
            connection.sendall(piece)
            self.bytes_sent += len(piece)

    def drip(self, connection: socket.socket, piece: bytes) -> None:
        """Send a piece now and then for ever, each well within the client's timeout for one."""
        while not self.closing.wait(0.05):
            self.send(connection, piece)

    def was_visited(self) -> bool:
        """Tell whether anybody has connected before."""
        with socket.create_connection(("127.0.0.1", self.port)) as mine:
            while not self.connections:
                time.sleep(0.01)
            return self.connections[0].getpeername() != mine.getsockname()

    def close(self) -> None:
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()


def read_request(connection: socket.socket) -> bytes:
    """Return the head of one request; raise once there is none."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = connection.recv(1)
        if not piece:
            raise ConnectionResetError
        head += piece
    return head


@pytest.fixture(autouse=True)
def _no_proxies_of_this_machine(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def hold_no_key(*texts: object) -> None:
    said = "\n".join(map(str, texts)).encode()
    assert not [name for name, form in forms_of(KEY).items() if form in said]


@pytest.fixture(autouse=True)
def _no_log_holds_the_key(caplog):
    caplog.set_level(logging.DEBUG)
    yield
    hold_no_key(*map(logging.Formatter().format, caplog.get_records("call")))


@contextlib.contextmanager
def failing(
    kind: type[StabilityError], memory: int = MEMORY, soon: float = SOON
) -> Iterator[pytest.ExceptionInfo[StabilityError]]:
    """Expect that a call fails: with this error, in time and memory, and without a word of the key."""
    began = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(kind) as failure:
            yield failure
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < soon
    error = failure.value
    assert kind in (type(error), StabilityError)
    assert (error.__cause__, error.__context__) == (None, None)
    hold_no_key(error, repr(error), vars(error), "".join(traceback.format_exception(error)))


@pytest.fixture
def serve():
    with contextlib.ExitStack() as stack:

        def serve(talk, **kwargs) -> Server:
            server = Server(talk, **kwargs)
            stack.callback(server.close)
            return server

        yield serve


@pytest.fixture
def answer(serve):
    """Return a function that starts a server which answers every request with these bytes, then hangs up."""

    def answer(*pieces: bytes) -> Server:
        def talk(server, connection):
            read_request(connection)
            server.send(connection, *pieces)
            connection.shutdown(socket.SHUT_WR)
            server.hung_up.set()
            connection.recv(1)

        return serve(talk)

    return answer


def client_of(url: str, **kwargs) -> StabilityClient:
    return StabilityClient(
        KEY,
        **{"base_url": url, "api_version": "v1", "request_timeout": TIMEOUT, "retry_deadline": 0, **kwargs},
    )


def failure_of(
    server: Server,
    kind: type[StabilityError],
    call=StabilityClient.get_balance,
    *,
    memory: int = MEMORY,
    soon: float = SOON,
    **kwargs,
) -> StabilityError:
    """Make a call that fails, and return its error."""
    if kind not in (StabilityTimeoutError, StabilityOutcomeUnknownError):
        kwargs.setdefault("request_timeout", PATIENT)
    url = kwargs.pop("url", server.url)
    with client_of(url, **kwargs) as client, failing(kind, memory, soon) as failure:
        call(client)
    return failure.value


def get(client: StabilityClient) -> object:
    return client.request("GET", "/v1/x")


def post(client: StabilityClient) -> object:
    return client.request("POST", "/v1/x", data=b"")


# Dripping


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (b"", b"H"),  # cut before a complete status line
        (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    ],
    ids=[
        "status",
        "header",
        "headers",
        "length",
        "no-length",
        "chunks",
        "chunk-size",
        "trailers",
        "continue",
        "early-hints",
    ],
)
def test_a_server_that_drips_does_not_hold_a_call(serve, begin, piece):
    def talk(server, connection):
        read_request(connection)
        server.send(connection, begin)
        server.drip(connection, piece)

    failure = failure_of(serve(talk), StabilityTimeoutError)
    said = f"GET /v1/user/balance got no complete response: it took longer than {TIMEOUT:g} s"
    assert str(failure).startswith(said)


def test_the_answer_to_any_other_call_does_not_hold_it_either(serve):
    def talk(server, connection):
        read_request(connection)
        server.send(connection, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        server.drip(connection, b" ")

    failure_of(serve(talk), StabilityOutcomeUnknownError, post)


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{",
        b'HTTP/1.0 200 OK\r\n\r\n{"credits": 5}',  # whose end only hanging up would tell
    ],
)
def test_a_server_that_says_nothing_more_is_a_timeout(serve, begin):
    def talk(server, connection):
        read_request(connection)
        server.send(connection, begin)
        server.closing.wait()

    failure_of(serve(talk), StabilityTimeoutError)


def test_a_tls_handshake_that_drips_does_not_hold_a_call(serve):
    def talk(server, connection):
        server.send(connection, b"\x16\x03\x03\x40\x00\x02\x00\x3f\xf0")  # the head of a long ServerHello
        server.drip(connection, b"\x00")

    server = serve(talk)
    failure_of(server, StabilityTimeoutError, url=f"https://127.0.0.1:{server.port}")


def test_a_proxy_that_drips_does_not_hold_a_call(serve):
    def talk(server, connection):
        assert read_request(connection).startswith(b"CONNECT stability.example:443 ")
        server.send(connection, b"HTTP/1.1 200 OK\r\nX: ")
        server.drip(connection, b"y")

    server = serve(talk)
    failure_of(
        server,
        StabilityTimeoutError,
        url="https://stability.example",
        proxy=f"http://u:pw@127.0.0.1:{server.port}",
    )


def test_a_server_that_takes_a_body_slowly_does_not_hold_a_call(serve):
    def talk(server, connection):
        while connection.recv(1024) and not server.closing.wait(0.02):
            pass

    def upload(client):
        client.request("POST", "/v1/x", data=(b"x" * 65536 for _ in itertools.count()))

    failure_of(serve(talk), StabilityOutcomeUnknownError, upload)  # it may do with what it has


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> str:
    """Return the path of a certificate for 127.0.0.1 with its private key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private_key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name)
        .public_key(private_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private_key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return str(path)


@pytest.fixture
def tls(certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_an_answer_over_tls_is_read_and_one_that_drips_is_cut(serve, tls, certificate):
    def talk(server, connection):
        read_request(connection)
        server.send(connection, BALANCE)
        read_request(connection)
        server.send(connection, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        server.drip(connection, b" ")

    server = serve(talk, tls=tls)
    with client_of(server.url, ca_bundle=certificate) as client:
        assert client.get_balance().credits == 5
        with failing(StabilityTimeoutError):
            client.get_balance()
    assert len(server.connections) == 1


def test_a_certificate_that_nobody_vouches_for_is_refused(serve, tls):
    server = serve(lambda server, connection: read_request(connection), tls=tls)
    assert "certificate verify failed" in str(failure_of(server, StabilityNetworkError))


# Breaking


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{", b"HTTP/1.1 200"])
def test_a_reset_is_a_network_error(serve, begin):
    def talk(server, connection):
        read_request(connection)
        server.send(connection, begin)
        time.sleep(0.05)  # let it be read: a reset overtakes what is on its way
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    failure_of(serve(talk), StabilityNetworkError)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b'{"credits": 5}',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\ne\r\n{"credits": 5}\r\n',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x00" * 100,
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 99 OK\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
        *(
            b"HTTP/1.1 200",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Le",
            b"HTTP/1.1 200 OK\r\nX: 1\r\n",
        ),
        b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\nContent-Length: 9\r\n\r\n{"credits": 5}',
    ],
)
def test_what_is_no_complete_http_answer_is_a_network_error(answer, sent):
    failure_of(answer(sent), StabilityNetworkError)


@pytest.mark.parametrize(
    "sent",
    [
        b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"credits": 5}',
        b'HTTP/1.1 200 OK\r\n\r\n{"credits": ',
        b'HTTP/1.1 200 OK\r\n\r\n{"credits": 5, "x": "\xff"}',
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ],
)
def test_a_complete_answer_without_a_complete_balance_is_malformed(answer, sent):
    failure_of(answer(sent), StabilityMalformedResponseError)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, StabilityAuthenticationError),
        (402, StabilityPaymentRequiredError),
        (429, StabilityRateLimitError),
    ],
)
@pytest.mark.parametrize("rest", [b"\r\nContent-Length: 100\r\n\r\n{", b"\r\nContent-Le", b""])
@pytest.mark.parametrize("call", [StabilityClient.get_balance, post])
def test_a_status_counts_even_if_what_follows_breaks_off(answer, status, kind, rest, call):
    failure = failure_of(answer(b"HTTP/1.1 %d No" % status + rest), kind, call)
    assert failure.retry_after == (60 if status == 429 else None)


def test_a_port_where_nobody_listens_is_a_network_error():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # nobody else can have it meanwhile
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with client_of(url, request_timeout=PATIENT) as client, failing(StabilityNetworkError) as failure:
            client.get_balance()
    assert "refused" in str(failure.value)


# Too much

FLOOD = [b"x" * 65536] * 1600  # 100 MB


@pytest.mark.parametrize(
    ("begin", "kind"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n", StabilityMalformedResponseError),
        (b"HTTP/1.1 200 OK\r\n\r\n", StabilityMalformedResponseError),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6400000\r\n",
            StabilityMalformedResponseError,
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", StabilityNetworkError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", StabilityNetworkError),
        (b"HTTP/1.1 401 No\r\nContent-Length: 104857600\r\n\r\n", StabilityAuthenticationError),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 104857600\r\n\r\n", StabilityRedirectError),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 104857600\r\n\r\n", StabilityRedirectError),
        (b"HTTP/1.1 999 Odd\r\nContent-Length: 104857600\r\n\r\n", StabilityMalformedResponseError),
        (b"HTTP/1.1 200 OK\r\nX: ", StabilityNetworkError),
        (b"", StabilityNetworkError),
    ],
    ids=[
        "length",
        "no-length",
        "chunk",
        "chunk-1",
        "chunk-size",
        "401",
        "redirect",
        "302",
        "999",
        "header",
        "status",
    ],
)
def test_a_hundred_megabytes_are_not_read(answer, begin, kind):
    server = answer(begin, *FLOOD)
    failure_of(server, kind)
    assert server.bytes_sent < BUFFERS


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"302 Found\r\nLocation: /x", StabilityRedirectError),
        (b"300 Choose", StabilityRedirectError),
        (b"401 No", StabilityAuthenticationError),
        (b"999 Odd", StabilityMalformedResponseError),
    ],
)
def test_a_flood_that_is_no_success_is_not_read_for_any_other_call_either(answer, head, kind):
    server = answer(b"HTTP/1.1 " + head + b"\r\nContent-Length: 104857600\r\n\r\n", *FLOOD)
    failure_of(server, kind, post)
    assert server.bytes_sent < BUFFERS


def test_endless_header_lines_end_the_call(answer):
    server = answer(b"HTTP/1.1 200 OK\r\n", *[b"X-Line: y\r\n" * 5000] * 1600)
    assert "100 headers" in str(failure_of(server, StabilityNetworkError))
    assert server.bytes_sent < BUFFERS


@pytest.mark.parametrize("status", [b"100 Continue", b"103 Early Hints"])
def test_endless_answers_that_are_not_the_last_word_end_the_call(serve, status):
    def talk(server, connection):
        read_request(connection)
        while True:
            server.send(connection, b"HTTP/1.1 " + status + b"\r\n\r\n")

    failure_of(serve(talk), StabilityTimeoutError)


def test_a_body_in_tiny_chunks_takes_no_more_memory_than_its_bytes(answer):
    server = answer(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\n{ \r\n" * 150_000, b"0\r\n\r\n"
    )
    failure_of(server, StabilityMalformedResponseError, soon=UNPACKING, request_timeout=UNPACKING)


BOMB = gzip.compress(b" " * 20_000_000)
#: Of 256 MiB, which a success may have, and of which it is made in memory.
LARGE_BOMB, LARGE_MEMORY = gzip.compress(b" " * 1_000_000) * 300, 300 * 1024 * 1024
#: Seconds for unpacking that much: a machine that runs other tests beside it takes several times five.
UNPACKING = 60.0
PACKED = b"\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize(
    ("status", "kind", "call"),
    [
        (b"200 OK", StabilityMalformedResponseError, StabilityClient.get_balance),
        (b"401 No", StabilityAuthenticationError, StabilityClient.get_balance),
        (b"402 No", StabilityPaymentRequiredError, post),
        (b"503 No", StabilityUnavailableError, get),
    ],
)
def test_a_bomb_is_not_unpacked(answer, status, kind, call):
    failure = failure_of(answer(b"HTTP/1.1 " + status + PACKED % (b"gzip", len(BOMB)), BOMB), kind, call)
    assert kind is not StabilityMalformedResponseError or "compressed" in str(failure)


OTHER_CALLS = pytest.mark.parametrize(
    ("call", "kind"), [(get, StabilityMalformedResponseError), (post, StabilityOutcomeUnknownError)]
)


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"\r\nContent-Length: 314572800\r\n\r\n", FLOOD * 3),
        (b"\r\n\r\n", FLOOD * 3),
        (PACKED % (b"gzip", len(LARGE_BOMB)), [LARGE_BOMB]),
    ],
    ids=["length", "no-length", "bomb"],
)
@OTHER_CALLS
def test_an_output_beyond_the_limit_is_not_read(answer, head, body, call, kind):
    server = answer(b"HTTP/1.1 200 OK" + head, *body)
    failure = failure_of(
        server, kind, call, memory=LARGE_MEMORY, soon=UNPACKING, request_timeout=UNPACKING / 2
    )
    assert "the body has more than 268435456 bytes" in str(failure)
    assert failure.status == 200
    assert server.bytes_sent < MAX_OUTPUT_BYTES + BUFFERS


@OTHER_CALLS
def test_an_output_that_is_a_bomb_in_a_bomb_is_not_unpacked(answer, call, kind):
    body = gzip.compress(BOMB)
    server = answer(b"HTTP/1.1 200 OK" + PACKED % (b"gzip, gzip", len(body)), body)
    failure = failure_of(server, kind, call, request_timeout=PATIENT)
    assert "the body is compressed in a way that cannot be unpacked in pieces" in str(failure)
    assert failure.status == 200


def test_unpacking_does_not_hold_a_call(answer):
    server = answer(b"HTTP/1.1 200 OK" + PACKED % (b"gzip", len(LARGE_BOMB)), LARGE_BOMB)
    failure = failure_of(server, StabilityOutcomeUnknownError, post, memory=LARGE_MEMORY)
    assert f"it took longer than {TIMEOUT:g} s" in str(failure)


# Odd, but right


@pytest.mark.parametrize(
    "sent",
    [
        b'HTTP/1.0 200 OK\r\n\r\n{"credits": 5}',
        b'HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 14\r\n\r\n{"credits": 5}',
        b'HTTP/1.1 200\r\nContent-Length: 14\r\n\r\n{"credits": 5}',
        b"HTTP/1.1 100 Continue\r\n\r\n" + BALANCE,
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + BALANCE,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" * 200 + BALANCE,
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'7\r\n{"credi\r\n7;x=y\r\nts": 5}\r\n0\r\nT: v\r\n\r\n'
        ),
        b'HTTP/1.1 200 OK\nContent-Length: 14\n\n{"credits": 5}',
        BALANCE + b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n" + b'{"credits": 9}',
        b'HTTP/1.1 200 \xff\xc3\r\nX: \xfe\r\nContent-Type: \xff\r\nContent-Length: 14\r\n\r\n{"credits": 5}',
        *(
            b'HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n{"credits": 5}' % length
            for length in (b"-5", b"many", b"9" * 5000, b"14, 14")
        ),
    ],
    ids=[
        *("http-1.0", "keep-alive", "no-reason", "continue", "early-hints", "many", "chunked", "newlines"),
        *("two-answers", "no-utf-8", "negative", "no-number", "digits", "twice"),
    ],
)
def test_an_odd_answer_is_read_all_the_same(answer, sent):
    server = answer(sent)
    with client_of(server.url) as client:
        assert client.get_balance().credits == 5
        assert server.hung_up.wait(5)
        assert client.get_balance().credits == 5  # on another connection: nothing is left of the first


def test_an_empty_success_is_a_success_of_request(answer):
    with client_of(answer(b"HTTP/1.1 204 No Content\r\n\r\n").url) as client:
        assert client.request("DELETE", "/v1/x").content == b""


def test_words_that_no_text_can_hold_are_told_as_far_as_they_go(answer):
    server = answer(
        b"HTTP/1.1 429 \xff\xc3\r\nRetry-After: \xb2\xff\r\nContent-Type: \xfe\r\n\r\ncaf\xe9 \xff\x1b[2J"
    )
    failure = failure_of(server, StabilityRateLimitError)
    assert (failure.retry_after, failure.message) == (60, "caf\ufffd \ufffd [2J")


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (b"90", 90),
        (b"90\r\nRetry-After: 120", 120),
        (b"90\r\nRetry-After: soon", 60),
        (b"86399", 86399),
        (b"31536000", 86400),
        (b"9" * 60_000, 86400),
        (b"Fri, 01 May 2026 12:01:30 GMT\r\nDate: Fri, 01 May 2026 12:00:00 GMT", 90),
        (b"Fri, 31 Dec 9999 23:59:59 GMT", 86400),
        *((odd, 60) for odd in (b"", b"-5", b"soon", b"1e400", b"NaN", b"Infinity", b"\xff", b"{}")),
    ],
)
def test_a_lockout_is_as_long_as_the_header_says_where_it_says_it(answer, written, seconds):
    server = answer(b"HTTP/1.1 429 No\r\nRetry-After: " + written + b"\r\nContent-Length: 0\r\n\r\n")
    failure = failure_of(server, StabilityRateLimitError, retry_deadline=50)
    assert failure.retry_after == seconds
    assert len(server.connections) == 1  # no wait of them fits into the deadline: none is begun


NESTED = [b"[" * 10_000 + b"]" * 10_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000]
DIGITS = [b"9" * 10_000, b"-" + b"9" * 10_000]


def beginning(body):
    return body[:20].decode()


@pytest.mark.parametrize(
    ("written", "credits"),
    [(b"-0", 0), (b"-0.0", 0), (b"1e-400", 0), (b'9, "credits": 5', 5), (b'5, "x": [[], {}, 1e400]', 5)],
)
def test_a_balance_in_odd_json_is_read(answer, written, credits):
    with client_of(answer(b'HTTP/1.1 200 OK\r\n\r\n{"credits": %s}' % written).url) as client:
        assert client.get_balance().credits == credits


@pytest.mark.parametrize(
    "written",
    [b"1e400", b"-1e400", b"NaN", b"Infinity", b"-Infinity", *DIGITS, *NESTED, b'5, "x": ' + NESTED[0]],
    ids=beginning,
)
def test_json_that_is_no_balance_is_malformed(answer, written):
    server = answer(b'HTTP/1.1 200 OK\r\n\r\n{"credits": %s}' % written)
    assert len(str(failure_of(server, StabilityMalformedResponseError))) < 1000


@pytest.mark.parametrize(
    "body",
    [*DIGITS, *NESTED, b'{"message": %s}' % NESTED[0], b'{"id": %s}' % DIGITS[0]],
    ids=beginning,
)
def test_an_error_in_odd_json_is_told(answer, body):
    server = answer(b"HTTP/1.1 400 No\r\nContent-Length: %d\r\n\r\n" % len(body), body)
    assert len(str(failure_of(server, StabilityRequestError))) < 1000


# The key


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", [StabilityClient.get_balance, StabilityClient.get_account, get, post])
@pytest.mark.parametrize(
    "target", ["http://{}/v1/user/balance", "http://user:pw@{}/", "//{}/", "http:{}", "HTTP:\\\\{}\\"]
)
def test_a_redirect_is_told_and_nobody_goes_there(answer, serve, status, call, target):
    elsewhere = serve(keep_answering)
    location = target.format(f"127.0.0.1:{elsewhere.port}")
    server = answer(f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())
    failure = failure_of(server, StabilityRedirectError, call)
    assert (failure.status, len(server.connections)) == (status, 1)
    assert f"answered {status} to {location}. Redirects are not followed" in str(failure)
    assert not elsewhere.was_visited()


@pytest.mark.parametrize("scheme", ["http", "HTTP"])
def test_what_goes_to_this_machine_in_clear_does_not_go_by_way_of_a_proxy(serve, monkeypatch, scheme):
    proxy, server = serve(keep_answering), serve(keep_answering)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    with client_of(server.url.replace("http", scheme)) as client:
        assert client.get_balance().credits == 5
    assert len(server.connections) == 1
    assert not proxy.was_visited()


@pytest.mark.parametrize(
    "form",
    [
        KEY,
        quote(KEY),
        quote(KEY, safe=""),
        KEY[: len(KEY) // 2],
        b64encode(f"Bearer {KEY}".encode()).decode(),
    ],
)
@pytest.mark.parametrize(
    "sent",
    [
        "{}\r\n\r\n",
        "HTTP/1.1 {}\r\n\r\n",
        "HTTP/1.1 401 {}\r\n\r\nBearer {}",
        "HTTP/1.1 302 Found\r\nLocation: https://login.example/?key={}\r\n\r\n",
        "HTTP/1.1 429 No\r\nRetry-After: {}\r\nDate: {}\r\n\r\n",
        "HTTP/1.1 200 OK\r\n {}\r\nX: y\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno header, but {}\r\nX: y\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Type: multipart/mixed; boundary={}\r\n\r\n--{}",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: {}\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Encoding: {}\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: {}\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}\r\n",
        "HTTP/1.1 100 {}\r\n{}: {}\r\n\r\n",
    ],
)
def test_a_server_that_repeats_the_key_does_not_get_it_into_a_text_or_a_log(answer, sent, form):
    with client_of(answer(sent.replace("{}", form).encode()).url) as client, failing(StabilityError):
        client.get_balance()


# One connection


def keep_answering(server, connection):
    while True:
        read_request(connection)
        server.send(connection, BALANCE)


def test_calls_share_one_connection(serve):
    server = serve(keep_answering)
    with client_of(server.url) as client:
        for _ in range(5):
            client.get_balance()
    assert len(server.connections) == 1


def test_the_limit_of_a_call_does_not_cut_a_later_one(serve):
    def talk(server, connection):
        read_request(connection)
        server.send(connection, BALANCE)
        read_request(connection)
        time.sleep(0.3)  # the limit of the first call passes meanwhile
        server.send(connection, BALANCE)

    server = serve(talk)
    with client_of(server.url, request_timeout=TIMEOUT) as client:
        client.get_balance()
        time.sleep(0.25)
        assert client.request("GET", "/v1/x", timeout=5).json() == {"credits": 5}
    assert len(server.connections) == 1


def test_the_limit_of_a_call_does_not_cut_one_of_another_thread(serve):
    def drip(server, connection):
        read_request(connection)
        server.drip(connection, b"H")

    def late(server, connection):
        read_request(connection)
        time.sleep(0.7)
        server.send(connection, BALANCE)

    dripping, slow = client_of(serve(drip).url), client_of(serve(late).url, request_timeout=2)
    with dripping, slow, ThreadPoolExecutor(2) as threads:
        cut, whole = threads.submit(dripping.get_balance), threads.submit(slow.get_balance)
        with failing(StabilityTimeoutError):
            cut.result(5)
        assert whole.result(5).credits == 5


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(answer):
    server = answer(BALANCE)
    with client_of(server.url) as client:
        client.get_balance()
        time.sleep(0.05)
        client.get_balance()
    assert len(server.connections) == 2


def test_no_thread_and_no_connection_is_left_behind(serve):
    server = serve(keep_answering)
    before = threading.active_count()
    client = client_of(server.url, request_timeout=60)
    client.get_balance()
    client.close()
    until = time.monotonic() + 2
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before


# Calls that may be paid for

PAID_FOR = b"a lighthouse"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"


def hang_up(server, connection):
    """End the connection in good order."""


def reset(server, connection):
    time.sleep(0.05)  # let what was sent be read: a reset overtakes it
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def reset_the_handshake(server, connection):
    # Not before it begins: Python 3.12 forgets to close a socket that is reset just before.
    connection.recv(1)
    reset(server, connection)


def say_nothing_more(server, connection):
    server.closing.wait()


def drip(server, connection):
    server.drip(connection, b" ")


def speak_ssh(server, connection):
    server.send(connection, b"SSH-2.0-OpenSSH_9.6\r\n")
    connection.recv(1024)


class Till:
    """A server that notes every request that reaches it, begins to answer, and does not get to the end."""

    def __init__(self, serve, end, begin: bytes = b"", **kwargs) -> None:
        self.heads: list[bytes] = []

        def talk(server, connection):
            head = read_request(connection)
            self.heads.append(head)
            if head.startswith(b"POST "):
                # To its end: whoever closes with something unread resets, and takes back what was sent.
                unread = len(PAID_FOR)
                while unread:
                    unread -= len(connection.recv(unread))
            server.send(connection, begin)
            end(server, connection)

        self.server = serve(talk, **kwargs)


def outcome_of_a_post(url: str, kind: type[StabilityError], **kwargs) -> tuple[StabilityError, int]:
    """Make a POST that fails, and return its error and how many calls its client says may be paid for."""
    with client_of(url, retry_deadline=60, **kwargs) as client:
        with failing(kind) as failure:
            client.request("POST", "/v1/x", data=PAID_FOR)
        return failure.value, client.maybe_paid


@pytest.mark.parametrize("end", [hang_up, reset, say_nothing_more, drip])
@pytest.mark.parametrize(
    ("begin", "status"),
    [
        (b"", None),
        (b"HTTP/1.1 2", None),
        (HEAD, 200),
        (HEAD + b"half an image", 200),
        (b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", 202),
    ],
    ids=["nothing", "status", "head", "length", "chunks"],
)
def test_the_outcome_of_a_post_without_a_complete_answer_is_unknown(serve, end, begin, status):
    till = Till(serve, end, begin)
    failure, maybe_paid = outcome_of_a_post(till.server.url, StabilityOutcomeUnknownError)
    assert str(failure).startswith("POST /v1/x got no complete response")
    assert (f"; its status was {status}. " in str(failure)) is (status is not None)
    assert str(failure).endswith(StabilityOutcomeUnknownError.advice)
    assert failure.status == status
    assert maybe_paid == 1
    assert len(till.heads) == 1
    assert till.heads[0].startswith(b"POST /v1/x HTTP/1.1\r\n")


@pytest.mark.parametrize("begin", [b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Le"])
def test_a_post_whose_answer_ends_inside_its_head_has_no_empty_output(serve, begin):
    till = Till(serve, hang_up, begin)
    failure, maybe_paid = outcome_of_a_post(till.server.url, StabilityOutcomeUnknownError)
    assert (failure.status, maybe_paid) == (200, 1)


@pytest.mark.parametrize("end", [hang_up, reset, say_nothing_more])
def test_the_outcome_of_a_post_over_tls_is_unknown_too(serve, tls, certificate, end):
    till = Till(serve, end, HEAD, tls=tls)
    _, maybe_paid = outcome_of_a_post(till.server.url, StabilityOutcomeUnknownError, ca_bundle=certificate)
    assert (maybe_paid, len(till.heads)) == (1, 1)


def test_the_outcome_of_a_post_on_a_connection_that_was_used_before_is_unknown(serve):
    heads = []

    def talk(server, connection):
        read_request(connection)
        server.send(connection, BALANCE)
        heads.append(read_request(connection))

    server = serve(talk)
    with client_of(server.url) as client:
        client.get_balance()
        with failing(StabilityOutcomeUnknownError):
            post(client)
        assert client.maybe_paid == 1
    assert (len(heads), len(server.connections)) == (1, 1)


@pytest.mark.parametrize("status", [400, 402, 500, 502, 504])
def test_an_error_status_is_an_answer_whatever_becomes_of_its_body(serve, status):
    kinds = {400: StabilityRequestError, 402: StabilityPaymentRequiredError}
    till = Till(serve, hang_up, b"HTTP/1.1 %d No\r\nContent-Length: 100\r\n\r\n{" % status)
    # Of a 5xx, only the body tells whether it is the API's.
    failure, maybe_paid = outcome_of_a_post(till.server.url, kinds.get(status, StabilityOutcomeUnknownError))
    assert (failure.status, maybe_paid, len(till.heads)) == (status, int(status >= 500), 1)


class Interrupted(BaseException):
    """What Airflow raises in the middle of anything when the time of a task is over."""


@pytest.fixture
def interrupted():
    """Interrupt the main thread after a moment."""

    def interrupt(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_post_that_is_cut_off_counts_once_it_may_have_been_sent(serve, interrupted):
    till = Till(serve, say_nothing_more)
    with client_of(till.server.url, request_timeout=30) as client:
        with pytest.raises(Interrupted):
            client.request("POST", "/v1/x", data=PAID_FOR)
        assert (client.maybe_paid, len(till.heads)) == (1, 1)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize(
    ("end", "kind"), [(reset, StabilityNetworkError), (say_nothing_more, StabilityTimeoutError)]
)
def test_a_lost_answer_to_a_call_that_only_asks_is_a_transient_failure(serve, method, end, kind):
    failure_of(Till(serve, end).server, kind, lambda client: client.request(method, "/v1/x"))


def test_a_post_to_a_port_where_nobody_listens_was_not_sent(serve):
    server = serve(hang_up)
    server.close()
    failure, _ = outcome_of_a_post(server.url, StabilityNetworkError)
    assert "refused" in str(failure)


def test_a_post_to_a_name_that_nobody_knows_was_not_sent(monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    failure, _ = outcome_of_a_post("https://stability.example", StabilityNetworkError)
    assert "Name or service not known" in str(failure)


def test_a_post_that_gets_no_connection_in_time_was_not_sent():
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # what comes after these is neither accepted nor refused
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        outcome_of_a_post(f"http://127.0.0.1:{full.getsockname()[1]}", StabilityTimeoutError)


def test_a_post_whose_time_was_up_before_there_was_a_connection_was_not_sent(serve, monkeypatch):
    till = Till(serve, hang_up)
    resolve = socket.getaddrinfo

    def resolve_slowly(*args, **kwargs):
        time.sleep(3 * TIMEOUT)
        return resolve(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_slowly)
    outcome_of_a_post(till.server.url, StabilityTimeoutError)
    till.server.close()
    assert till.heads == []


def test_a_post_to_a_server_that_nobody_vouches_for_was_not_sent(serve, tls):
    till = Till(serve, hang_up, tls=tls)
    failure, _ = outcome_of_a_post(till.server.url, StabilityNetworkError)
    assert "certificate verify failed" in str(failure)
    till.server.close()
    assert till.heads == []


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (hang_up, StabilityNetworkError),
        (reset_the_handshake, StabilityNetworkError),
        (say_nothing_more, StabilityTimeoutError),
        (speak_ssh, StabilityNetworkError),
    ],
)
def test_a_post_that_does_not_get_through_the_handshake_was_not_sent(serve, end, kind):
    server = serve(end)
    outcome_of_a_post(f"https://127.0.0.1:{server.port}", kind)


@pytest.mark.parametrize("url", ["https://stability.example", "http://stability.example"])
def test_a_post_by_way_of_a_proxy_that_cannot_be_reached_was_not_sent(serve, url):
    proxy = serve(hang_up)
    proxy.close()
    failure, _ = outcome_of_a_post(
        url, StabilityNetworkError, proxy=f"http://u:pw@127.0.0.1:{proxy.port}", allow_http=True
    )
    assert "refused" in str(failure)


@pytest.mark.parametrize(
    ("begin", "end", "kind"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", hang_up, StabilityNetworkError),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", hang_up, StabilityNetworkError),
        (b"", hang_up, StabilityNetworkError),
        (b"", reset, StabilityNetworkError),
        (b"", say_nothing_more, StabilityTimeoutError),
        (b"HTTP/1.1 200 OK\r\nX: ", drip, StabilityTimeoutError),
        (b"HTTP/1.1 200 OK\r\n\r\n", reset_the_handshake, StabilityNetworkError),
    ],
)
def test_a_post_that_gets_no_tunnel_through_a_proxy_was_not_sent(serve, begin, end, kind):
    proxy = Till(serve, end, begin)
    outcome_of_a_post("https://stability.example", kind, proxy=f"http://u:pw@127.0.0.1:{proxy.server.port}")
    assert len(proxy.heads) == 1
    assert proxy.heads[0].startswith(b"CONNECT stability.example:443 ")


def test_the_outcome_of_a_post_that_a_proxy_took_to_pass_it_on_is_unknown(serve):
    proxy = Till(serve, reset)
    outcome_of_a_post(
        "http://stability.example",
        StabilityOutcomeUnknownError,
        proxy=f"http://u:pw@127.0.0.1:{proxy.server.port}",
        allow_http=True,
    )
    assert len(proxy.heads) == 1
    assert proxy.heads[0].startswith(b"POST http://stability.example/v1/x ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTPS_PROXY", "odd://u:pw@proxy.example"),
        ("HTTPS_PROXY", "http://u:pw@proxy.example:99999"),
        ("REQUESTS_CA_BUNDLE", "/no/such/file"),
    ],
)
def test_a_post_that_fails_before_there_is_anything_to_connect_to_was_not_sent(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    outcome_of_a_post("https://stability.example", StabilityNetworkError)


# SOCKS proxies

LOGIN = ("someone", "the-password-of-the-proxy")
ONLY_THE_PROXY_KNOWS = "stability.example"
#: What a proxy says before it passes on: no login wanted, and the connection is there.
LET_THROUGH = b"\x05\x00", b"\x05\x00\x00\x01" + bytes(6)


@pytest.fixture
def socks(serve):
    """Return a function that starts a SOCKS proxy and returns it, with its URL."""

    def socks(scheme="socks5h", login=None, sends=LOGIN, **kwargs) -> tuple[SocksProxy, str]:
        proxy = SocksProxy(login, **kwargs)
        user = f"{sends[0]}:{sends[1]}@" if login else ""
        return proxy, f"{scheme}://{user}127.0.0.1:{serve(proxy).port}"

    return socks


@pytest.mark.parametrize("login", [None, LOGIN])
@pytest.mark.parametrize("variable", [None, "ALL_PROXY", "HTTP_PROXY"])
def test_calls_go_through_a_socks_proxy_that_looks_up_the_host(serve, socks, monkeypatch, login, variable):
    server = serve(keep_answering)
    proxy, url = socks(login=login, hosts={ONLY_THE_PROXY_KNOWS: "127.0.0.1"})
    kwargs = {} if variable else {"proxy": url}
    if variable:
        monkeypatch.setenv(variable, url)
    api = f"http://{ONLY_THE_PROXY_KNOWS}:{server.port}"
    with client_of(api, allow_http=True, request_timeout=PATIENT, **kwargs) as client:
        assert [client.get_balance().credits for _ in range(2)] == [5, 5]
    assert proxy.asked == [(ONLY_THE_PROXY_KNOWS, server.port)]


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_tls_goes_through_a_socks_proxy_to_the_server_itself(serve, socks, tls, certificate, scheme):
    server = serve(keep_answering, tls=tls)
    proxy, url = socks(scheme, LOGIN)
    with client_of(server.url, proxy=url, ca_bundle=certificate, request_timeout=PATIENT) as client:
        assert client.get_balance().credits == 5
    assert proxy.asked == [("127.0.0.1", server.port)]


def test_with_socks5_the_client_looks_up_the_host(serve, socks):
    server = serve(keep_answering)
    proxy, url = socks("socks5")
    client = client_of(f"http://localhost:{server.port}", proxy=url, request_timeout=PATIENT)
    # PySocks takes the first address, which may be one that this server does not listen on.
    with client, contextlib.suppress(StabilityNetworkError):
        client.get_balance()
    ((host, port),) = proxy.asked
    assert ipaddress.ip_address(host).is_loopback
    assert port == server.port


def test_a_socks_proxy_with_another_password_refuses_and_neither_is_shown(socks, caplog):
    _, url = socks(login=LOGIN, sends=("someone", "a-wrong-password"))
    failure, maybe_paid = outcome_of_a_post("https://stability.example", StabilityNetworkError, proxy=url)
    assert "SOCKS5 authentication failed" in str(failure)
    assert maybe_paid == 0
    assert "password-of" not in f"{failure!r}{caplog.text}"
    assert "wrong" not in f"{failure!r}{caplog.text}"


@pytest.mark.parametrize(
    ("host", "said"),
    [("stability.example", "Host unreachable"), ("127.0.0.1:1", "Connection refused")],
)
def test_a_post_to_where_a_socks_proxy_gets_no_connection_was_not_sent(socks, host, said):
    _, url = socks()
    failure, maybe_paid = outcome_of_a_post(f"https://{host}", StabilityNetworkError, proxy=url)
    assert said in str(failure)
    assert maybe_paid == 0


def test_a_post_by_way_of_a_socks_proxy_that_cannot_be_reached_was_not_sent(serve):
    proxy = serve(hang_up)
    proxy.close()
    url = f"socks5h://u:pw@127.0.0.1:{proxy.port}"
    failure, maybe_paid = outcome_of_a_post("https://stability.example", StabilityNetworkError, proxy=url)
    assert "refused" in str(failure)
    assert maybe_paid == 0


@pytest.mark.parametrize("scheme", ["socks5h", "socks4a"])
@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (hang_up, StabilityNetworkError),
        (reset, StabilityNetworkError),
        (say_nothing_more, StabilityTimeoutError),
        (speak_ssh, StabilityNetworkError),
    ],
)
@pytest.mark.parametrize("answers", [0, 1])
def test_a_post_that_a_socks_proxy_does_not_let_through_was_not_sent(serve, scheme, end, kind, answers):
    def talk(server, connection):
        for answer in LET_THROUGH[:answers]:
            connection.recv(1)
            server.send(connection, answer)
        end(server, connection)

    url = f"{scheme}://127.0.0.1:{serve(talk).port}"
    _, maybe_paid = outcome_of_a_post("https://stability.example", kind, proxy=url)
    assert maybe_paid == 0


def test_a_socks_proxy_that_drips_does_not_hold_a_call(serve):
    def talk(server, connection):
        server.send(connection, LET_THROUGH[0])
        server.send(connection, b"\x05\x00\x00\x03\xff")  # an address of 255 bytes follows
        server.drip(connection, b"x")

    proxy = serve(talk)
    url = f"socks5h://127.0.0.1:{proxy.port}"
    _, maybe_paid = outcome_of_a_post("https://stability.example", StabilityTimeoutError, proxy=url)
    assert maybe_paid == 0


@pytest.mark.parametrize("end", [reset, drip])
def test_the_outcome_of_a_post_that_went_through_a_socks_proxy_is_unknown(serve, socks, end):
    till = Till(serve, end)
    _, url = socks()
    _, maybe_paid = outcome_of_a_post(till.server.url, StabilityOutcomeUnknownError, proxy=url)
    assert (maybe_paid, len(till.heads)) == (1, 1)


@pytest.mark.parametrize("where", ["argument", "environment"])
def test_without_pysocks_one_sentence_says_what_to_install(where, monkeypatch):
    script = """
import sys
sys.modules["socks"] = None  # as if it were not installed
from airflow_stability.client import StabilityClient
from airflow_stability.errors import StabilityPermanentError
proxy = {"proxy": sys.argv[1]} if sys.argv[1] else {}
try:
    StabilityClient("sk-1", base_url="https://127.0.0.1:1", **proxy).get_balance()
except StabilityPermanentError as error:
    print(type(error).__name__, error)
"""
    url = "socks5h://u:pw-SECRET@127.0.0.1:1"
    if where == "environment":
        monkeypatch.setenv("ALL_PROXY", url)
    command = [sys.executable, "-c", script, url if where == "argument" else ""]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    call = "GET /v1alpha/user/balance was not sent. " if where == "environment" else ""
    assert done.stdout == (
        f"StabilityConfigurationError {call}A SOCKS proxy needs the extra socks: pip install "
        "'airflow-provider-stability[socks]', on each machine.\n"
    )
    assert "SECRET" not in done.stdout + done.stderr
