"""An S3 server for tests: the protocol over a real socket, with a log of requests.

A test can have a client killed at a chosen request. The server is moto's, in a thread of the test's process.
What it holds is gone when it stops.
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self
from urllib.parse import unquote

import psutil
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.exceptions import ClientDisconnected
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wsgi import get_input_stream

#: What moto takes for the account of every client.
ACCOUNT = "123456789012"
REGION = "us-east-1"
#: Seconds that a killed process gets to be gone.
PATIENCE = 10


@dataclass(frozen=True)
class Request:
    """A request that reached the server. The `key` is empty for one about the bucket itself."""

    method: str
    key: str
    query: str
    if_none_match: str | None
    #: None if the client was killed before the request was executed.
    status: int | None


@dataclass(frozen=True)
class _Kill:
    method: str
    key_suffix: str
    when: Literal["before", "after"]

    def fits(self, method: str, key: str) -> bool:
        return method == self.method and key.endswith(self.key_suffix)


class S3Server:
    """An S3 server with one empty bucket. The `with` block stops it."""

    def __init__(self, bucket: str = "bucket") -> None:
        self.bucket = bucket
        self.requests: list[Request] = []
        #: The processes that were killed.
        self.killed: list[int] = []
        self._kills: list[_Kill] = []
        self._moto = DomainDispatcherApplication(create_backend_app)
        # One request at a time: moto looks for an object and writes it in two steps, real S3 in one.
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Silent)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._backend.create_bucket(self.bucket, REGION)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._backend.reset()

    @property
    def url(self) -> str:
        """The server's URL."""
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self._server.port

    @property
    def connection(self) -> str:
        """A connection of Airflow to this server, as JSON: for AIRFLOW_CONN_AWS_DEFAULT."""
        extra = {"endpoint_url": self.url, "region_name": REGION}
        fields = {"conn_type": "aws", "login": "a-key-id", "password": "a-secret-key", "extra": extra}
        return json.dumps(fields)

    def kill_at(self, method: str, key_suffix: str, when: Literal["before", "after"] = "before") -> None:
        """Kill the client of the next request that fits, once: before it is executed, or after.

        The client never gets an answer. It must be another process than the test's.
        """
        self._kills.append(_Kill(method, key_suffix, when))

    def objects(self) -> dict[str, bytes]:
        """Return what the bucket holds, by key."""
        with self._lock:
            keys = self._backend.buckets[self.bucket].keys
            return {name: key.value for name, key in keys.items()}

    def put(self, key: str, content: bytes) -> None:
        """Write an object as some other client would, without a request in the log."""
        with self._lock:
            self._backend.put_object(self.bucket, key, content)

    @property
    def _backend(self) -> Any:
        return s3_backends[ACCOUNT]["aws"]

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request as moto does, unless its client is to be killed first."""
        method = environ["REQUEST_METHOD"]
        path = unquote(environ["PATH_INFO"]).lstrip("/")
        key = path.removeprefix(self.bucket).lstrip("/")
        try:
            # Before the lock, since a client may be slow, or vanish in the middle.
            environ["wsgi.input"] = io.BytesIO(get_input_stream(environ).read())
        except ClientDisconnected as refusal:
            return refusal(environ, start_response)
        with self._lock:
            kill = next((kill for kill in self._kills if kill.fits(method, key)), None)
            if kill:
                self._kills.remove(kill)
            if kill and kill.when == "before":
                self._note(environ, key, None)
                self._kill_client(environ)
                start_response("503 Service Unavailable", [("Content-Length", "0")])
                return [b""]
            answer = _Answer(self._moto, environ)
            self._note(environ, key, answer.status)
            if kill:
                self._kill_client(environ)
        start_response(*answer.head)
        return [answer.body]

    def _note(self, environ: dict[str, Any], key: str, status: int | None) -> None:
        condition = environ.get("HTTP_IF_NONE_MATCH")
        query = environ.get("QUERY_STRING", "")
        self.requests.append(Request(environ["REQUEST_METHOD"], key, query, condition, status))

    def _kill_client(self, environ: dict[str, Any]) -> None:
        """Kill the process at the other end of a connection, and return once it is gone."""
        process = _process_at(int(environ["REMOTE_PORT"]), self._server.port)
        process.kill()
        # Its parent may be slow to take note of it: a zombie sends nothing either.
        _wait_until_dead(process)
        self.killed.append(process.pid)


class _Answer:
    """What an application answers, read whole."""

    head: tuple[str, list[tuple[str, str]]]

    def __init__(self, application: Callable[..., Iterable[bytes]], environ: dict[str, Any]) -> None:
        self.body = b"".join(application(environ, self._start))
        self.status = int(self.head[0].split()[0])

    def _start(self, status: str, headers: list[tuple[str, str]], *error: object) -> None:
        self.head = (status, headers)


class _Silent(WSGIRequestHandler):
    """A handler that logs nothing: the server has a log of its own."""

    def log(self, type: str, message: str, *args: object) -> None:  # noqa: A002 - werkzeug's name
        pass


def _process_at(port: int, server_port: int) -> psutil.Process:
    """Return the process that has connected to the server from this port.

    :raises LookupError: there is none, or it is this process.
    """
    for connection in psutil.net_connections(kind="tcp"):
        ends = (connection.laddr, connection.raddr)
        if all(ends) and [end.port for end in ends] == [port, server_port] and connection.pid:
            if connection.pid == os.getpid():
                raise LookupError("The client to be killed is the test itself.")
            return psutil.Process(connection.pid)
    raise LookupError(f"No process has connected from port {port}.")


def _wait_until_dead(process: psutil.Process) -> None:
    """Return once a killed process is gone, or is a zombie.

    :raises TimeoutError: it is not.
    """
    for _ in range(PATIENCE * 100):
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return
        threading.Event().wait(0.01)
    raise TimeoutError(f"Process {process.pid} survived SIGKILL for {PATIENCE} s.")
