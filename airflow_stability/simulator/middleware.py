"""The ASGI application that every request passes first: the request log, the rate limit, faults, and API
versions that are switched off.

Also the uvicorn protocol that gives it the connection itself.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi.responses import Response
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from airflow_stability.simulator.api import create_api
from airflow_stability.simulator.authentication import read_authorization
from airflow_stability.simulator.controls import create_controls
from airflow_stability.simulator.error_bodies import error, version_of
from airflow_stability.simulator.faults import Fault, retry_after_header
from airflow_stability.simulator.rate_limit import RateLimit
from airflow_stability.simulator.request_log import LoggedRequest, RequestRecord
from airflow_stability.simulator.state import REDIRECTS, SWITCHABLE_VERSIONS, ApiKey, SimulatorState

#: Name of the ASGI extension that holds the connection.
TRANSPORT = "airflow_stability.transport"


class TransportProtocol(H11Protocol):
    """HTTP that gives the application the connection itself, to reset it or to send half a response."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Prepare a new connection. Called by asyncio."""
        super().connection_made(transport)
        # uvicorn's access log shows paths as they came, and one may contain a key. Its setting for this is
        # undone by whoever configures logging afterwards, as Airflow does.
        self.access_log = False
        application: Any = self.app

        async def with_transport(scope: Any, receive: Any, send: Any) -> None:
            scope.setdefault("extensions", {})[TRANSPORT] = transport
            await application(scope, receive, send)

        self.app = with_transport


class SimulatorMiddleware:
    """The ASGI application that uvicorn serves.

    The controls under ``/_simulator`` are neither logged nor limited.
    """

    def __init__(self, state: SimulatorState) -> None:
        self._api: ASGIApp = create_api(state)
        self._controls: ASGIApp = create_controls(state)
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI defines it."""
        if version_of(scope["path"]) == "_simulator":
            await self._controls(scope, receive, send)
            return
        headers = Headers(scope=scope)
        form, sent_key = read_authorization(headers.get("authorization"))
        key = self._state.find_key(sent_key)

        def header(name: str) -> str | None:
            value = headers.get(name)
            return None if value is None else self._state.redact(value)

        logged = self._state.log_request(
            RequestRecord(
                at=time.time(),
                monotonic=time.monotonic(),
                method=scope["method"],
                path=self._state.redact(scope["path"]),
                authorization=form,
                key_label="unknown" if key is None else key.label,
                organization=header("organization"),
                client_id=header("stability-client-id"),
                client_version=header("stability-client-version"),
                user_agent=header("user-agent"),
            )
        )

        async def logged_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                logged.set_status(message["status"])
            await send(message)

        try:
            await self._serve(scope, receive, logged_send, logged, key)
        finally:
            logged.write_line()

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, logged: LoggedRequest, key: ApiKey | None
    ) -> None:
        # A key that is not valid has no rate limit.
        limit = None if key is None or key.revoked else key.limiter.exceeded(time.monotonic())
        times_cleared = self._state.times_faults_cleared
        fault = self._state.take_fault(scope["path"], logged.record.key_label)
        # Read the request to its end first: the next message from the client is then its disconnect.
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            return
        respond = partial(self._respond, scope, body, limit)
        if fault is None:
            await respond(send)
            return
        connection: asyncio.Transport = scope["extensions"][TRANSPORT]
        work_first = fault.after_work or fault.kind in ("drip", "truncated")
        kept = await _keep(respond) if work_first else None
        disconnected = asyncio.ensure_future(_disconnect(receive))
        try:
            match fault.kind:
                case "reset":
                    _reset(connection)
                    await disconnected
                case "hang":
                    # Polled: faults are cleared from other threads, which know no event loop.
                    while not disconnected.done() and self._state.times_faults_cleared == times_cleared:
                        await asyncio.wait({disconnected}, timeout=0.05)
                case "slow":
                    await asyncio.wait({disconnected}, timeout=fault.seconds)
                case "drip" | "truncated" if kept is not None:
                    logged.set_status(kept[0]["status"])
                    await _send_raw(connection, fault, kept, disconnected)
            if disconnected.done():
                return
        finally:
            disconnected.cancel()
        if kept is not None:
            for message in kept:
                await send(message)
        elif fault.kind in ("hang", "slow"):
            await respond(send)
        else:
            await _fault_response(scope["path"], fault)(scope, receive, send)

    async def _respond(self, scope: Scope, body: bytes, limit: RateLimit | None, send: Send) -> None:
        """Send the response without a fault.

        :param limit: the rate limit that refuses the request; None if it is admitted.
        """
        path = scope["path"]
        version = version_of(path)
        application = self._api
        if limit is not None:
            application = error(
                path,
                429,
                f"You have exceeded the rate limit of {limit.requests} requests within a "
                f"{limit.window:g} second period, and have been timed out for {limit.lockout:g} seconds.",
                headers=dict(retry_after_header(limit.retry_after)),
            )
        elif off := self._state.switched_off(version):
            status, location = off
            if status in REDIRECTS:
                other = next(name for name in SWITCHABLE_VERSIONS if name != version)
                headers = {"location": location or path.replace(version, other, 1)}
                application = Response(status_code=status, headers=headers)
            else:
                application = error(path, status, f"{version} was switched off.")

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        await application(scope, receive, send)


async def _keep(respond: Callable[[Send], Awaitable[None]]) -> list[Message]:
    """Return the messages of a response instead of sending them."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    await respond(send)
    return messages


def _fault_response(path: str, fault: Fault) -> Response:
    if fault.kind == "error":
        message = f"The simulator was told to respond with {fault.code}."
        return error(path, fault.code, message, temporary=fault.temporary, headers=dict(fault.headers))
    return Response(fault.content, status_code=fault.code, headers=dict(fault.headers))


def _reset(connection: asyncio.Transport) -> None:
    # Closing with a linger of zero seconds is what makes TCP send RST instead of FIN.
    connection.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    connection.abort()


async def _send_raw(
    connection: asyncio.Transport, fault: Fault, messages: list[Message], disconnected: asyncio.Future[None]
) -> None:
    """Drip or truncate a response and close the connection, past h11, which allows neither."""
    status: int = messages[0]["status"]
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
    lines += [name + b": " + value for name, value in messages[0]["headers"]]
    head = b"\r\n".join([*lines, b"connection: close", b"", b""])
    content = b"".join(message.get("body", b"") for message in messages[1:])
    if fault.kind == "truncated":
        connection.write(head + content[: len(content) // 2])
    else:
        quick, slow, rest = (b"", head, content) if fault.part == "headers" else (head, content, b"")
        connection.write(quick)
        for index in range(len(slow)):
            if disconnected.done():
                return
            connection.write(slow[index : index + 1])
            await asyncio.wait({disconnected}, timeout=fault.seconds)
        connection.write(rest)
    connection.close()
    await disconnected


async def _disconnect(receive: Receive) -> None:
    """Return when the client, or the server in stopping, has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
