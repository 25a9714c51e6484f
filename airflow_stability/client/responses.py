"""What an answer of the Stability API means: a model or an error. Pure functions, no network.

Every text of the other side passes through :func:`clean` before it gets into ours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from airflow_stability.client.retry import LOCKOUT_SECONDS, parse_retry_after
from airflow_stability.errors import (
    StabilityAuthenticationError,
    StabilityBlockedError,
    StabilityError,
    StabilityMalformedResponseError,
    StabilityNotFoundError,
    StabilityPaymentRequiredError,
    StabilityPermissionError,
    StabilityRateLimitError,
    StabilityRedirectError,
    StabilityRequestError,
    StabilityUnavailableError,
)

#: Characters of foreign text that an error carries at the most.
LONGEST_FOREIGN_TEXT = 500

# Controls, line separators, marks that turn text around on a terminal, halves of surrogate pairs (JSON can
# hold those, UTF-8 logs cannot).
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]+"
)

_Model = TypeVar("_Model", bound=BaseModel)


class Secrets(tuple[str, ...]):
    """What no text may hold. Shows none of it itself: some tools show the variables of a traceback."""

    def __repr__(self) -> str:
        return f"<{len(self)} secrets>"


@dataclass(frozen=True)
class ErrorBody:
    """What an error body says, of all four shapes: v1alpha's, v1's, v2beta's, and text of a proxy.

    ``from_api`` tells whether it has the API's shape: an id and a name.
    """

    error_id: str | None = None
    name: str | None = None
    message: str | None = None
    temporary: bool | None = None
    from_api: bool = False


def clean(text: str, secrets: Collection[str]) -> str:
    """Make foreign text fit for a log line: no control characters, no secret, at most 500 characters."""
    text = _UNPRINTABLE.sub(" ", text).strip()
    for secret in sorted(secrets, key=len, reverse=True):  # one may be a part of another
        text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)  # a host is shown in lower case
    return text if len(text) <= LONGEST_FOREIGN_TEXT else text[: LONGEST_FOREIGN_TEXT - 1] + "…"


def parse_error_body(body: bytes, secrets: Collection[str]) -> ErrorBody:
    """Read the body of an answer with an error status, whatever it is."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        return ErrorBody(message=clean(body.decode("utf-8", "replace"), secrets) or None)

    def text_of(key: str) -> str | None:
        value = fields.get(key)
        return (clean(value, secrets) or None) if isinstance(value, str) else None

    message = text_of("message")
    if message is None and isinstance(fields.get("errors"), list):
        words = "; ".join(part for part in fields["errors"] if isinstance(part, str))
        message = clean(words, secrets) or None
    temporary = fields.get("temporary")
    error_id, name = text_of("id"), text_of("name")
    return ErrorBody(
        error_id=error_id,
        name=name,
        message=message,
        temporary=temporary if isinstance(temporary, bool) else None,
        from_api=error_id is not None and name is not None,
    )


def error_from_answer(
    status: int, headers: Mapping[str, str], body: bytes, *, call: str, secrets: Collection[str]
) -> StabilityError:
    """Return the error that an answer other than 2xx stands for.

    :param call: what was asked, for the text: ``GET /v1/user/balance``.
    :param secrets: what no text may hold.
    """
    said = parse_error_body(body, secrets)
    kind = _kind(status, said)
    told = parse_retry_after(headers.get("Retry-After"), now=_server_time(headers))
    if told is None and kind is StabilityRateLimitError:
        told = LOCKOUT_SECONDS

    text = f"{call} answered {status}"
    if said.name:
        text += f" {said.name}"
    if kind is StabilityRedirectError and "Location" in headers:
        text += f" to {clean(headers['Location'], secrets)}"
    elif said.message:
        text += f": {said.message.rstrip('.')}"
    if said.error_id:
        text += f" (error id {said.error_id})"
    text += "."
    if told is not None:
        text += f" It allows no new attempt for {math.ceil(told)} s."
    return kind(
        f"{text} {kind.advice}".rstrip(),
        status=status,
        error_id=said.error_id,
        name=said.name,
        message=said.message,
        retry_after=told,
        temporary=said.temporary,
    )


def parse_answer(
    model: type[_Model], headers: Mapping[str, str], body: bytes, *, call: str, secrets: Collection[str]
) -> _Model:
    """Return the model that the body of a 200 holds.

    :raises StabilityMalformedResponseError: it holds something else. The text names the fields, not their
        values: an account's e-mail address must not get into a log.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
    what = clean("; ".join(problems), secrets)
    sent_as = clean(headers.get("Content-Type") or "no content type", secrets)
    raise malformed(
        f"{call} answered 200, but the body ({sent_as}) is no {model.__name__}: {what}", status=200
    )


def malformed(text: str, *, status: int | None) -> StabilityMalformedResponseError:
    """Return the error for an answer that is not what the API documents."""
    return StabilityMalformedResponseError(f"{text}. {StabilityMalformedResponseError.advice}", status=status)


def _kind(status: int, said: ErrorBody) -> type[StabilityError]:
    if status == 402:  # before `temporary`: whoever spends must learn that credit is what is missing
        return StabilityPaymentRequiredError
    if status == 429:
        return StabilityRateLimitError
    if status in (408, 425) or 500 <= status <= 599 or (status >= 400 and said.temporary):
        return StabilityUnavailableError
    if status == 403 and not said.from_api:
        return StabilityBlockedError
    if 300 <= status <= 399:
        return StabilityRedirectError
    if 400 <= status <= 499:
        return _PERMANENT.get(status, StabilityRequestError)
    return StabilityMalformedResponseError


_PERMANENT: dict[int, type[StabilityError]] = {
    401: StabilityAuthenticationError,
    403: StabilityPermissionError,
    404: StabilityNotFoundError,
    410: StabilityNotFoundError,
}


def _server_time(headers: Mapping[str, Any]) -> datetime:
    """Return the server's own clock: an HTTP date in ``Retry-After`` was reckoned with that one."""
    try:
        moment = parsedate_to_datetime(headers.get("Date", ""))
    except (TypeError, ValueError, OverflowError, IndexError):
        return datetime.now(UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
