"""One attempt at a call: prepare the request, send it, read the body, and return the response or an error.

Knows which requests were certainly not sent, and which calls may have been paid for. Knows nothing of retries
and of choosing an API version.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote
from urllib.request import getproxies

import requests
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError

from airflow_stability import __version__, errors
from airflow_stability.client import options
from airflow_stability.client.masking import Secrets
from airflow_stability.client.responses import MAX_BODY_BYTES, clean, error_from_response, malformed
from airflow_stability.client.transport import SUCCESS, Session, TimeLimit, UnreadableBodyError, read_limited

#: Bytes that the output of a call may have: several times the largest output that the API makes.
MAX_OUTPUT_BYTES = 256 * 1024 * 1024

#: Methods that only read (RFC 9110, section 9.2.1): such a call costs nothing, and may be repeated if no
#: response came. TRACE is the fourth, but no API serves it.
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Expected(NamedTuple):
    """What a call accepts as a success. Compression is never requested, but may be accepted."""

    statuses: Container[int]
    max_bytes: int
    compressed: bool


USER_ENDPOINT = Expected(statuses=(200,), max_bytes=MAX_BODY_BYTES, compressed=False)
ANY_ENDPOINT = Expected(statuses=SUCCESS, max_bytes=MAX_OUTPUT_BYTES, compressed=True)


class RequestSender:
    """Sends requests to one API with one key. Each is sent once.

    :param api_key: the API key, checked, as are all arguments.
    :param use_environment: whether the environment's proxy and CA settings apply.
    """

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str,
        client_id: str,
        user_agent: str,
        proxy: str | None,
        ca_bundle: str | None,
        use_environment: bool,
    ) -> None:
        self._auth = {"v1alpha": _KeyAuth(api_key), "v1": _KeyAuth(f"Bearer {api_key}")}
        self._identity = {"Stability-Client-ID": client_id, "Stability-Client-Version": __version__}
        self._base_url = base_url
        self._proxies = {} if proxy is None else {"http": proxy, "https": proxy}
        self._ca_bundle = ca_bundle
        self._session = Session()
        self._session.headers["User-Agent"] = user_agent
        # Ask for no compression: a small compressed body can unpack to gigabytes.
        self._session.headers["Accept-Encoding"] = "identity"
        self._session.trust_env = use_environment
        keys = {api_key, quote(api_key), quote(api_key, safe="")}  # the Location of a redirect may quote it
        proxies = (proxy or "", *getproxies().values())
        #: The texts that no error and no log may show.
        self.secrets = Secrets([*keys, *(secret for url in proxies for secret in options.proxy_secrets(url))])
        #: The base URL as texts show it.
        self.shown_url = clean(base_url, self.secrets)
        #: The number of calls that may have been paid for, those under way among them.
        self.maybe_paid = 0
        #: The number of those that were durable.
        self.maybe_paid_durably = 0
        self._counting = threading.Lock()  # functions of tasks may call in several threads

    def close(self) -> None:
        """Close the pooled connections."""
        self._session.close()

    def send(
        self,
        method: str,
        path: str,
        version: str,
        timeout: float,
        expected: Expected,
        *,
        max_seconds: float | None = None,
        durable: bool = False,
        headers: Mapping[str, str] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> requests.Response:
        """Send a request once, and return the response with its body read.

        :param version: the API version whose form of the key and of the client's identity is sent.
        :param timeout: seconds for connecting, and for each gap in the response.
        :param max_seconds: seconds for the whole attempt; None for twice the timeout.
        :param durable: whether the same call, made again, does not pay again.
        :param arguments: more arguments of ``requests.Request``.
        :raises StabilityError: the response is not an expected one, or no complete one came.
        """
        prepared = self._prepare(method, path, version, headers or {}, arguments or {})
        organization = prepared.headers.get("Organization")
        whose = f" for organization {organization}" if organization else ""
        call = clean(f"{method} {path}{whose}", self.secrets)
        may_cost = method not in SAFE_METHODS
        if max_seconds is None:
            max_seconds = 2 * timeout
        timeout = min(timeout, max_seconds)
        limit = TimeLimit(min(2 * timeout, max_seconds))
        # It counts from the beginning: anything may end the exchange, such as Airflow's timeout of a task.
        if may_cost:
            self._count(1, durable)
        try:
            result = self._exchange(prepared, call, limit, timeout, expected)
        except BaseException:
            if may_cost and limit.unsent:
                self._count(-1, durable)
            raise
        if may_cost and not isinstance(result, requests.Response | errors.StabilityOutcomeUnknownError):
            self._count(-1, durable)
        if isinstance(result, errors.StabilityError):
            raise result
        return result

    def _count(self, calls: int, durable: bool) -> None:
        with self._counting:
            self.maybe_paid += calls
            self.maybe_paid_durably += calls if durable else 0

    def _prepare(
        self,
        method: str,
        path: str,
        version: str,
        headers: Mapping[str, str],
        arguments: Mapping[str, Any],
    ) -> requests.PreparedRequest:
        url, auth = self._base_url + path, self._auth[version]
        identity = {} if version == "v1alpha" else self._identity
        try:
            request = requests.Request(method, url, headers={**identity, **headers}, auth=auth, **arguments)
            prepared = self._session.prepare_request(request)
            for value in prepared.headers.values():
                if isinstance(value, str):
                    value.encode("latin-1")  # http.client would find it only while sending
            body = prepared.body
            if not isinstance(body, Iterable | None) and not hasattr(body, "read"):  # as would this
                raise TypeError(f"the body is of type {type(body).__name__}")
            return prepared
        except Exception as error:  # whatever requests makes of arguments of another type
            reason = clean(str(error) or type(error).__name__, self.secrets)
        shown = clean(path, self.secrets)[:80]
        raise errors.StabilityConfigurationError(f"{method} {shown!r} cannot be sent: {reason}.")

    def _exchange(
        self,
        prepared: requests.PreparedRequest,
        call: str,
        limit: TimeLimit,
        timeout: float,
        expected: Expected,
    ) -> requests.Response | errors.StabilityError:
        """Send a request, and return the response or the error that the attempt ends with.

        The error is made after the ``try`` statement and raised by the caller. If it were raised in there,
        its context would be an exception of requests, which holds the request and with it the API key:
        tools that collect tracebacks would get it.
        """
        safe = prepared.method in SAFE_METHODS
        response: requests.Response | None = None
        body, problem = b"", ""
        timed_out = unreadable = socks_is_missing = False
        handled = sys.exception()  # the caller may be handling an exception of its own
        with limit:
            try:
                response = self._session.send(
                    prepared,
                    timeout=timeout,
                    allow_redirects=False,
                    # In no variable: tools that show those of a traceback would show a proxy's password.
                    **self._session.merge_environment_settings(
                        prepared.url, dict(self._proxies), True, self._ca_bundle, None
                    ),
                )
                with response:
                    body = _read_body(response, expected)
            except UnreadableBodyError as error:
                unreadable, problem = True, f"the body {error}"
            except requests.exceptions.InvalidSchema:  # requests has not found PySocks
                socks_is_missing = True
            except (OSError, HTTPError, ValueError) as error:  # requests' exceptions are OSErrors
                timed_out, problem = self._describe(error, handled)

        if socks_is_missing:
            return errors.StabilityConfigurationError(f"{call} was not sent. {options.SOCKS_IS_MISSING}")
        timed_out = timed_out or limit.expired
        status: int | None = None
        if response is not None:
            status = response.status_code
            if status not in expected.statuses:  # it counts even if the body could not be read
                failure = error_from_response(status, response.headers, body, call=call, secrets=self.secrets)
                return failure if safe or _is_final(failure) else _outcome_unknown(failure)
            if not timed_out and not problem:
                return response
        if unreadable and safe and not timed_out:
            return malformed(f"{call} answered {status}, but {problem}", status)

        reason = f" from {self.shown_url}: {problem}"
        if timed_out:
            reason = f": it took longer than {timeout:g} s to connect or to respond"
        kind: type[errors.StabilityError] = errors.StabilityOutcomeUnknownError
        if safe or limit.unsent:
            kind = errors.StabilityTimeoutError if timed_out else errors.StabilityNetworkError
            status = None  # the failure is not the server's
        elif response is not None:
            reason += f"; its status was {status}"
        return kind(f"{call} got no complete response{reason}. {kind.advice}", status=status)

    def _describe(self, error: BaseException, handled: BaseException | None) -> tuple[bool, str]:
        """Return whether an exception is due to a timeout, and its text, both from its first cause.

        :param handled: the exception that the caller was handling before, which is no cause of this one.
        """
        while (cause := error.__cause__ or error.__context__) is not None and cause is not handled:
            error = cause
        text = clean(f"{type(error).__name__}: {error}", self.secrets).rstrip(".")
        return isinstance(error, TimeoutError | requests.Timeout), text


class _KeyAuth(AuthBase):
    """Sets the Authorization header. Keeps the key out of the session's headers, and out of every repr."""

    def __init__(self, value: str) -> None:
        self._value = value

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        """Set the header of a request that is being prepared."""
        r.headers["Authorization"] = self._value
        return r


def _is_final(error: errors.StabilityError) -> bool:
    """Tell whether an error says that a call was not accepted.

    The API's own 5xx, which has an id and a name, is a generation that failed, and is not charged. Any other
    comes from a gateway, and the API behind it may go on. A 503 says that nothing was accepted, unless it
    speaks of a connection to the API that broke, as Envoy's does.
    """
    if error.error_id is not None and error.name is not None:
        return True
    if error.status == 503:
        return not re.search("reset|disconnect|terminat", error.message or "")
    return not 500 <= (error.status or 0) <= 599


def _outcome_unknown(answer: errors.StabilityError) -> errors.StabilityError:
    """Return the error for a call that a gateway has answered, not the API. Its text quotes the answer."""
    kind = errors.StabilityOutcomeUnknownError
    text = str(answer).removesuffix(answer.advice).rstrip()
    facts = {name: getattr(answer, name) for name in ("error_id", "name", "message", "retry_after")}
    return kind(
        f"{text} A gateway has answered, not the API. {kind.advice}",
        status=answer.status,
        temporary=answer.temporary,
        **facts,
    )


def _read_body(response: requests.Response, expected: Expected) -> bytes:
    if response.status_code in expected.statuses:
        return read_limited(response, expected.max_bytes, compressed=expected.compressed)
    if response.is_redirect:
        return b""  # its target is in the Location header
    return read_limited(response, MAX_BODY_BYTES, compressed=False)
