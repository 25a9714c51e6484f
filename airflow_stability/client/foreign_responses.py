"""check_response: the errors of this package for responses to requests that others sent."""

from __future__ import annotations

import contextlib
import re
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError

from airflow_stability.client.masking import Secrets
from airflow_stability.client.responses import MAX_BODY_BYTES, clean, error_from_response
from airflow_stability.client.transport import SUCCESS, UnreadableBodyError, read_limited
from airflow_stability.errors import StabilityError


def check_response(response: requests.Response) -> requests.Response:
    """Return a response that was received with one's own requests code, or raise the error it stands for.

    ::

        response = check_response(requests.post(url, headers={"authorization": f"Bearer {key}"}, files=form))

    The text of the error contains neither the ``Authorization`` header of the request nor its query string.

    :param response: the response. With a 2xx status it is returned as it is, its body unread. With another
        status, up to 1 MiB of a streamed body is read, with the read timeout of the request, and the response
        is closed.
    :raises StabilityError: the status is not from 200 to 299, a redirect for example. The error has the kind
        and the facts of the one that :class:`StabilityClient` raises for such a response. (What requests
        raises if no response came is not covered: whether such a call may be repeated cannot be known here.)
    """
    if response.status_code in SUCCESS:
        return response
    raise _error_from(response)


def _error_from(response: requests.Response) -> StabilityError:
    """Return the error for a response, and close it."""
    secrets = Secrets(_authorizations(response))
    body = b""
    # RuntimeError: it was streamed and has been read before.
    with contextlib.suppress(UnreadableBodyError, OSError, HTTPError, ValueError, RuntimeError):
        if not response.is_redirect:
            body = read_limited(response, MAX_BODY_BYTES, compressed=True)
    if response.raw is not None:
        response.close()
    status = response.status_code or 0  # a response made by hand may have none
    call = clean(_describe_call(response), secrets)
    return error_from_response(status, response.headers, body, call=call, secrets=secrets)


def _authorizations(response: requests.Response) -> set[str]:
    """Return the Authorization headers of a request and its redirects, without their scheme."""
    found: set[str] = set()
    for one in (*response.history, response):
        for name, value in (getattr(one.request, "headers", None) or {}).items():
            if str(name).lower() == "authorization":
                sent = (value.decode("latin-1") if isinstance(value, bytes) else str(value)).strip()
                found.add(re.sub(r"^\S+\s+", "", sent))  # a part with "Bearer" would mask that word
    return found - {""}


def _describe_call(response: requests.Response) -> str:
    """Return the method and the path of a request, without the query string: it may hold secrets."""
    method = getattr(response.request, "method", None)
    url = getattr(response.request, "url", None) or response.url
    try:
        path = urlsplit(url).path if isinstance(url, str) else ""
    except ValueError:
        path = ""
    return " ".join(part for part in (method, path) if isinstance(part, str) and part) or "The call"
