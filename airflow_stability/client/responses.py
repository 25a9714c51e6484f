"""What a response of the Stability API means: a model or an error. Pure functions, no network.

:func:`clean` is applied to every text of a server before it becomes part of an error.
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

from airflow_stability import errors
from airflow_stability.client.masking import Secrets
from airflow_stability.client.retry import LOCKOUT_SECONDS, parse_retry_after
from airflow_stability.validation import in_utc

#: Bytes that the body of an error, or of the user API, may have. Real ones have a few hundred.
MAX_BODY_BYTES = 1024 * 1024

#: Characters of a server's text that an error contains at most.
MAX_TEXT_LENGTH = 500

#: Characters of a server's text that are searched for secrets. The rest is dropped.
MAX_SEARCHED = 64 * 1024

# Control characters, line separators, marks that change the direction of text on a terminal, and halves of
# surrogate pairs, which JSON can contain and UTF-8 logs cannot.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]+"
)

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class ErrorBody:
    """The facts in the body of an error: v1alpha's, v1's, v2beta's, or the text of a proxy."""

    error_id: str | None = None
    name: str | None = None
    message: str | None = None
    temporary: bool | None = None

    @property
    def from_api(self) -> bool:
        """Whether the body has the API's own fields."""
        return self.error_id is not None and self.name is not None


def clean(text: str, secrets: Collection[str]) -> str:
    """Make a server's text fit for a log line: no control characters, no secrets, at most 500 characters.

    :param secrets: :meth:`Secrets.mask` says which parts and forms of them are masked, too.
    """
    secrets = secrets if isinstance(secrets, Secrets) else Secrets(secrets)
    text = _UNPRINTABLE.sub(" ", secrets.mask(text[:MAX_SEARCHED])).strip()
    return text if len(text) <= MAX_TEXT_LENGTH else text[: MAX_TEXT_LENGTH - 1] + "…"


def parse_error_body(body: bytes, secrets: Collection[str]) -> ErrorBody:
    """Read the body of a response with an error status, of whatever form."""
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
        errors = "; ".join(error for error in fields["errors"] if isinstance(error, str))
        message = clean(errors, secrets) or None
    temporary = fields["temporary"] if isinstance(fields.get("temporary"), bool) else None
    return ErrorBody(text_of("id"), text_of("name"), message, temporary)


def error_from_response(
    status: int, headers: Mapping[str, str], body: bytes, *, call: str, secrets: Collection[str]
) -> errors.StabilityError:
    """Return the error that a response without a success status stands for.

    :param call: the call, for the text: ``GET /v1/user/balance``.
    :param secrets: what the text must not contain.
    """
    facts = parse_error_body(body, secrets)
    kind = _kind(status, facts)
    retry_after = parse_retry_after(headers.get("Retry-After"), now=_server_time(headers))
    if retry_after is None and kind is errors.StabilityRateLimitError:
        retry_after = LOCKOUT_SECONDS

    text = f"{call} answered {status}"
    if facts.name:
        text += f" {facts.name}"
    if kind is errors.StabilityRedirectError and "Location" in headers:
        text += f" to {clean(headers['Location'], secrets)}"
    elif facts.message:
        text += f": {facts.message.rstrip('.')}"
    if facts.error_id:
        text += f" (error id {facts.error_id})"
    text += "."
    if retry_after is not None:
        text += f" The server allows no new attempt for {math.ceil(retry_after)} s."
    return kind(f"{text} {kind.advice}".rstrip(), status=status, retry_after=retry_after, **vars(facts))


def parse_response(
    model: type[_Model], headers: Mapping[str, str], body: bytes, *, call: str, secrets: Collection[str]
) -> _Model:
    """Return the model in the body of a 200 response.

    :raises StabilityMalformedResponseError: the body is something else. The text names the fields, not their
        values: an account's e-mail address must not get into a log.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
    content_type = clean(headers.get("Content-Type") or "no content type", secrets)
    what = f"{call} answered 200, but the body ({content_type}) is not a valid {model.__name__}"
    raise malformed(f"{what}: {clean('; '.join(problems), secrets)}", 200)


def malformed(text: str, status: int | None) -> errors.StabilityError:
    """Return the error for a response that is not what the API documents."""
    kind = errors.StabilityMalformedResponseError
    return kind(f"{text}. {kind.advice}", status=status)


def _kind(status: int, facts: ErrorBody) -> type[errors.StabilityError]:
    if status in (402, 429):  # before `temporary`: a task that spends must learn that credits are missing
        return _REFUSALS[status]
    if status in (408, 425) or 500 <= status <= 599 or (status >= 400 and facts.temporary):
        return errors.StabilityUnavailableError
    if facts.name in _MODERATION.get(status, ()):  # which may come without an id
        return errors.StabilityModeratedError
    if status == 403 and not facts.from_api:
        return errors.StabilityBlockedError
    if 300 <= status <= 399:
        return errors.StabilityRedirectError
    if 400 <= status <= 499:
        return _REFUSALS.get(status, errors.StabilityRequestError)
    return errors.StabilityMalformedResponseError


#: The names of refusals that are about the content of a request, by status.
_MODERATION = {
    400: ("invalid_prompts",),
    403: ("content_moderation",),
    422: ("public_figure", "invalid_language"),
}

_REFUSALS: dict[int, type[errors.StabilityError]] = {
    401: errors.StabilityAuthenticationError,
    402: errors.StabilityPaymentRequiredError,
    403: errors.StabilityPermissionError,
    404: errors.StabilityNotFoundError,
    410: errors.StabilityNotFoundError,
    413: errors.StabilityPayloadTooLargeError,
    429: errors.StabilityRateLimitError,
}


def _server_time(headers: Mapping[str, Any]) -> datetime:
    """Return the time of the server's clock, by which it computed an HTTP date in ``Retry-After``."""
    try:
        return in_utc(parsedate_to_datetime(headers.get("Date", "")))
    except (TypeError, ValueError, OverflowError, IndexError):
        return datetime.now(UTC)
