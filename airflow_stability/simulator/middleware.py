"""What every request to the API meets first: the journal, the rate limit, faults, versions that are switched
off.

An ASGI application around the API's, and the uvicorn protocol that hands it the connection. It knows no
accounts.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi.responses import Response
from starlette.datastructures import Headers
from uvicorn.protocols.http.h11_impl import H11Protocol

from airflow_stability.simulator.api import read_authorization
from airflow_stability.simulator.error_bodies import error, version_of
from airflow_stability.simulator.faults import Fault, FaultQueue, retry_after_header
from airflow_stability.simulator.request_log import Entry, Journal, RequestRecord
from airflow_stability.simulator.state import REDIRECTS, SWITCHABLE_VERSIONS, World

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

TRANSPORT = "airflow_stability.transport"


class TransportProtocol(H11Protocol):
    """Hands the application the connection itself: a reset, half an answer or one byte a second is nothing
    that an HTTP server would send of its own accord.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio, once per connection."""
        super().connection_made(transport)
        # uvicorn's access log shows paths as they came, and one may hold a key. Its setting for this is
        # undone by whoever configures logging afterwards, as Airflow does.
        self.access_log = False
        application: Any = self.app

        async def with_transport(scope: Any, receive: Any, send: Any) -> None:
            scope.setdefault("extensions", {})[TRANSPORT] = transport
            await application(scope, receive, send)

        self.app = with_transport


class Front:
    """The ASGI application that uvicorn serves.

    :param api: answers what gets through.
    :param controls: answers everything under `/_simulator`, which meets none of this.
    """

    def __init__(
        self, api: ASGIApp, controls: ASGIApp, world: World, faults: FaultQueue, journal: Journal
    ) -> None:
        self._api = api
        self._controls = controls
        self._world = world
        self._faults = faults
        self._journal = journal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, as ASGI has it."""
        if version_of(scope["path"]) == "_simulator":
            await self._controls(scope, receive, send)
            return
        entry, key = self._written_down(scope)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.answered(message["status"])
            await send(message)

        try:
            await self._serve(scope, receive, answer, entry, key)
        finally:
            entry.finished()

    def _written_down(self, scope: Scope) -> tuple[Entry, str]:
        headers = Headers(scope=scope)
        form, key = read_authorization(headers.get("authorization"))

        def header(name: str) -> str | None:
            value = headers.get(name)
            return None if value is None else self._world.redact(value)

        record = RequestRecord(
            at=time.time(),
            monotonic=time.monotonic(),
            method=scope["method"],
            path=self._world.redact(scope["path"]),
            authorization=form,
            key_label=self._world.label(key),
            organization=header("organization"),
            client_id=header("stability-client-id"),
            client_version=header("stability-client-version"),
            user_agent=header("user-agent"),
        )
        return self._journal.begin(record), key

    async def _serve(self, scope: Scope, receive: Receive, send: Send, entry: Entry, key: str) -> None:
        admitted = self._world.admit(key)
        clearings = self._faults.clearings
        fault = self._faults.take(scope["path"], key)
        # The request is read to its end first: what comes from the client after that is its farewell.
        body = await _read(receive)
        if body is None:
            return
        if fault is None:
            await self._normal(scope, _replay(body), send, admitted)
            return
        connection: asyncio.Transport = scope["extensions"][TRANSPORT]
        done = await self._captured(scope, body, admitted) if fault.after_work else None
        with _departure(receive) as left:
            match fault.kind:
                case "reset":
                    _reset(connection)
                    await left
                case "hang":
                    # Looked at now and then: faults are cleared from other threads, which know no event loop.
                    while not left.done() and self._faults.clearings == clearings:
                        await asyncio.wait({left}, timeout=0.05)
                case "slow":
                    await asyncio.wait({left}, timeout=fault.seconds)
                case "drip" | "truncated":
                    status, head, content = _on_the_wire(await self._captured(scope, body, admitted))
                    entry.answered(status)
                    await _send_raw(connection, fault, head, content, left)
            if left.done():
                return
        if done is not None:
            for message in done:
                await send(message)
        elif fault.kind in ("hang", "slow"):
            await self._normal(scope, _replay(body), send, admitted)
        else:
            await _faulty(scope["path"], fault)(scope, receive, send)

    async def _normal(self, scope: Scope, receive: Receive, send: Send, admitted: bool) -> None:
        """The answer as it is without a fault."""
        path = scope["path"]
        version = version_of(path)
        application = self._api
        if not admitted:
            limit = self._world.rate_limit
            application = error(
                path,
                429,
                f"More than {limit.requests} requests in {limit.window:g} seconds: locked out for "
                f"{limit.lockout:g} seconds.",
                headers=dict(retry_after_header(limit.retry_after)),
            )
        elif off := self._world.switched_off(version):
            if off.status in REDIRECTS:
                other = next(name for name in SWITCHABLE_VERSIONS if name != version)
                location = off.location or path.replace(version, other, 1)
                application = Response(status_code=off.status, headers={"location": location})
            else:
                application = error(path, off.status, f"{version} was switched off.")
        await application(scope, receive, send)

    async def _captured(self, scope: Scope, body: bytes, admitted: bool) -> list[Message]:
        """The answer without a fault, kept instead of sent."""
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await self._normal(scope, _replay(body), keep, admitted)
        return messages


def _on_the_wire(messages: list[Message]) -> tuple[int, bytes, bytes]:
    """An answer's status, head and body as they would stand on the wire."""
    status: int = messages[0]["status"]
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
    lines += [name + b": " + value for name, value in messages[0]["headers"]]
    lines += [b"connection: close", b"", b""]
    return status, b"\r\n".join(lines), b"".join(message.get("body", b"") for message in messages[1:])


def _faulty(path: str, fault: Fault) -> Response:
    if fault.kind == "error":
        message = f"The simulator was told to answer {fault.code}."
        return error(path, fault.code, message, temporary=fault.temporary, headers=dict(fault.headers))
    return Response(fault.content, status_code=fault.code, headers=dict(fault.headers))


def _reset(connection: asyncio.Transport) -> None:
    # Closing with a linger of zero seconds is what makes TCP send RST instead of FIN.
    connection.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    connection.abort()


async def _send_raw(
    connection: asyncio.Transport, fault: Fault, head: bytes, content: bytes, left: asyncio.Future[None]
) -> None:
    """Sends an answer past h11, which would not let it through, and closes the connection."""
    if fault.kind == "truncated":
        connection.write(head + content[: len(content) // 2])
    else:
        quick, slow, rest = (b"", head, content) if fault.part == "headers" else (head, content, b"")
        connection.write(quick)
        for index in range(len(slow)):
            if left.done():
                return
            connection.write(slow[index : index + 1])
            await asyncio.wait({left}, timeout=fault.seconds)
        connection.write(rest)
    connection.close()
    await left


async def _read(receive: Receive) -> bytes | None:
    """The body of a request, or None when the client left before its end."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


@contextlib.contextmanager
def _departure(receive: Receive) -> Iterator[asyncio.Future[None]]:
    """A future that is done when the client, or the server in stopping, has closed the connection."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    watching = asyncio.ensure_future(watch())
    try:
        yield watching
    finally:
        watching.cancel()
