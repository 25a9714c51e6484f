"""How answers look: each API version's error body, and the picture that is sold. It knows no accounts."""

from __future__ import annotations

import hashlib
import struct
import uuid
import zlib
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse, Response

from airflow_stability.simulator.faults import NO_BODY

# Where the API's short name is not simply that of the HTTP status.
NAMES = {403: "permission_denied", 429: "rate_limit_exceeded", 500: "server_error"}
MAY_PASS = (408, 425, 429)
TIMEOUTS = (408, 504)
IMAGE_SIDE = 64


def version_of(path: str) -> str:
    """The first segment of a path, which names the API version."""
    return path.split("/")[1]


def error(
    path: str,
    status: int,
    message: str,
    *,
    temporary: bool | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error in the shape of the API version that was asked, with an id of its own.

    :param path: the path that was asked; outside v1alpha and v1 the shape is that of v2beta and of gateways.
    :param message: one sentence. It never repeats what the client sent: that may have been a key.
    :param temporary: the server's advice on retrying; None leaves it to the version and the status.
    """
    try:
        name = NAMES.get(status) or HTTPStatus(status).name.lower()
    except ValueError:
        name = "error"
    body: dict[str, Any] = {"id": uuid.uuid4().hex, "name": name}
    match version_of(path):
        case "v1alpha":
            body["message"] = message
            body["temporary"] = status in MAY_PASS or status >= 500
            body["timeout"] = status in TIMEOUTS
            body["fault"] = status >= 500
        case "v1":
            body["message"] = message
        case _:
            body["errors"] = [message]
    if temporary is not None:
        body["temporary"] = temporary
    if status in NO_BODY:
        return Response(status_code=status, headers=dict(headers or {}))
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))


def picture(prompt: str) -> tuple[bytes, int]:
    """A small PNG in one colour, and its seed: both follow from the prompt alone."""
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
    row = b"\x00" + digest[:3] * IMAGE_SIDE
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", IMAGE_SIDE, IMAGE_SIDE, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * IMAGE_SIDE)),
        (b"IEND", b""),
    )
    png = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        png += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png, int.from_bytes(digest[3:7], "big")
