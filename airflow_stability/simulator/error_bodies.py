"""The errors of each API version: their names and bodies. Knows no accounts."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from airflow_stability.simulator.faults import NO_BODY

#: The API's short names, where they differ from that of the HTTP status.
NAMES = {
    403: "permission_denied",
    413: "payload_too_large",
    429: "rate_limit_exceeded",
    500: "internal_error",
}
#: The same in v1alpha and v1, where they differ from those of v2beta.
OLDER_NAMES = {500: "server_error"}

#: Statuses below 500 that v1alpha calls temporary.
TEMPORARY = (408, 425, 429)
TIMEOUTS = (408, 504)


class ApiError(HTTPException):
    """Ends a request with an error in the format of the API version that was called.

    :param status: the HTTP status.
    :param messages: one or more.
    :param name: the API's short name; None is the usual one of the status.
    """

    def __init__(self, status: int, *messages: str, name: str | None = None) -> None:
        super().__init__(status, messages[0])
        self.messages = messages
        self.name = name


def version_of(path: str) -> str:
    """Return the first segment of a path, which names the API version."""
    return path.split("/")[1]


def error_name(version: str, status: int) -> str:
    """Return the API's short name of an error."""
    older = OLDER_NAMES if version in ("v1alpha", "v1") else {}
    try:
        return older.get(status) or NAMES.get(status) or HTTPStatus(status).name.lower()
    except ValueError:
        return "error"


def error(
    path: str,
    status: int,
    *messages: str,
    name: str | None = None,
    temporary: bool | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return an error in the format of the API version that was called, with an id of its own.

    :param path: path of the request; outside v1alpha and v1 the format is that of v2beta and of gateways.
    :param status: the HTTP status.
    :param messages: one or more sentences. They never repeat what the client sent, which may have been a key,
        unless the simulator was told to repeat keys.
    :param name: the API's short name; None is the usual one of the status.
    :param temporary: the body's ``temporary``; None leaves it to the version and the status.
    :param headers: further headers of the response.
    """
    version = version_of(path)
    # The real API, too, sends this name as the id of its 429.
    identifier = "rate_limit_exceeded" if status == 429 else uuid.uuid4().hex
    body: dict[str, Any] = {"id": identifier, "name": name or error_name(version, status)}
    match version:
        case "v1alpha":
            body["message"] = "; ".join(messages)
            body["temporary"] = status in TEMPORARY or status >= 500
            body["timeout"] = status in TIMEOUTS
            body["fault"] = status >= 500
        case "v1":
            body["message"] = "; ".join(messages)
        case _:
            body["errors"] = list(messages)
    if temporary is not None:
        body["temporary"] = temporary
    if status in NO_BODY:
        return Response(status_code=status, headers=headers)
    return JSONResponse(body, status_code=status, headers=headers)
