"""The forms that clients send: how they are read, and what is wrong with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from fastapi import Request

from airflow_stability.simulator.endpoints import ASPECT_RATIOS, MAX_PROMPT, MAX_SEED, Endpoint
from airflow_stability.simulator.error_bodies import ApiError

#: The largest body, in bytes.
MAX_BODY = 10 * 1024 * 1024


@dataclass(frozen=True)
class Form:
    """A form, read to its end.

    :param texts: the fields that are text.
    :param files: the content of the fields that are files.
    :param digest: 32 bytes. Equal forms to one path have equal digests, in whatever order their fields come.
    """

    texts: dict[str, str]
    files: dict[str, bytes]
    digest: bytes

    @property
    def prompts(self) -> list[str]:
        """What the client wants to see."""
        return [
            text for name, text in self.texts.items() if name.endswith("prompt") and name != "negative_prompt"
        ]

    @property
    def seed(self) -> int:
        """The seed; 0 leaves the choice to the API."""
        return int(self.texts.get("seed", 0))


async def read_form(request: Request) -> Form:
    """Return the form of a request.

    :raises ApiError: 413 for a body that is too large, 400 for one that is not a multipart form.
    """
    if len(await request.body()) > MAX_BODY:
        raise ApiError(413, "body: payloads cannot be larger than 10MiB in size")
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(400, "content-type: must be multipart/form-data")
    texts: dict[str, str] = {}
    files: dict[str, bytes] = {}
    parts: list[tuple[str, bytes]] = []
    async with request.form() as form:
        for name, value in form.multi_items():
            if isinstance(value, str):
                texts[name] = value
                parts.append((name, value.encode("utf-8", "surrogatepass")))
            else:
                files[name] = await value.read()
                parts.append((name, files[name]))
    return Form(texts, files, digest_of(request.url.path, parts))


def digest_of(path: str, parts: Iterable[tuple[str, bytes]]) -> bytes:
    """Return the digest of a request: 32 bytes.

    :param parts: its fields and files, by name, in any order.
    """
    hashed = sorted((name, hashlib.sha256(content).hexdigest()) for name, content in parts)
    return hashlib.sha256(json.dumps([path, hashed]).encode()).digest()


def problems_of(form: Form, endpoint: Endpoint) -> list[str]:
    """Return what is wrong with a form, one sentence for each field."""
    problems = [f"{name}: is required" for name in endpoint.texts if not form.texts.get(name, "").strip()]
    problems += [f"{name}: is required" for name in endpoint.files if not form.files.get(name)]
    if endpoint.one_of and not any(form.texts.get(name) or form.files.get(name) for name in endpoint.one_of):
        problems.append(f"{endpoint.one_of[0]}: at least one of {', '.join(endpoint.one_of)} is required")
    problems += [
        f"{name}: cannot be longer than {MAX_PROMPT} characters"
        for name, text in form.texts.items()
        if name.endswith("prompt") and len(text) > MAX_PROMPT
    ]
    choices = {"output_format": endpoint.formats, "aspect_ratio": ASPECT_RATIOS, "model": endpoint.models}
    problems += [
        f"{name}: must be one of {', '.join(allowed)}"
        for name, allowed in choices.items()
        if allowed and form.texts.get(name, allowed[0]) not in allowed
    ]
    if not is_seed(form.texts.get("seed", "0")):
        problems.append(f"seed: must be a whole number from 0 to {MAX_SEED}")
    return problems


def is_seed(text: str) -> bool:
    """Tell whether a seed is valid."""
    # Ten digits at most: Python refuses to read numbers of thousands of digits.
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_SEED
