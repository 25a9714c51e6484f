"""The error bodies of each API version. Knows no accounts."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse, Response

from airflow_stability.simulator.faults import NO_BODY

#: The API's short names, where they differ from that of the HTTP status.
NAMES = {403: "permission_denied", 429: "rate_limit_exceeded", 500: "server_error"}

#: Statuses below 500 that v1alpha calls temporary.
TEMPORARY = (408, 425, 429)
TIMEOUTS = (408, 504)


def version_of(path: str) -> str:
    """Return the first segment of a path, which names the API version."""
    return path.split("/")[1]


def error(
    path: str,
    status: int,
    message: str,
    *,
    temporary: bool | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return an error in the format of the API version that was called, with an id of its own.

    :param path: path of the request; outside v1alpha and v1 the format is that of v2beta and of gateways.
    :param status: the HTTP status.
    :param message: one sentence. It never repeats what the client sent: that may have been a key.
    :param temporary: the body's ``temporary``; None leaves it to the version and the status.
    :param headers: further headers of the response.
    """
    try:
        name = NAMES.get(status) or HTTPStatus(status).name.lower()
    except ValueError:
        name = "error"
    body: dict[str, Any] = {"id": uuid.uuid4().hex, "name": name}
    match version_of(path):
        case "v1alpha":
            body["message"] = message
            body["temporary"] = status in TEMPORARY or status >= 500
            body["timeout"] = status in TIMEOUTS
            body["fault"] = status >= 500
        case "v1":
            body["message"] = message
        case _:
            body["errors"] = [message]
    if temporary is not None:
        body["temporary"] = temporary
    if status in NO_BODY:
        return Response(status_code=status, headers=headers)
    return JSONResponse(body, status_code=status, headers=headers)
