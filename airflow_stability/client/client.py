"""StabilityClient: the two calls of the Stability user API, and a way to the rest of it.

And :func:`check_response` for those who have a way of their own: the same errors for their answers.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

import requests
from pydantic import BaseModel
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError

from airflow_stability import __version__
from airflow_stability.client import options
from airflow_stability.client.models import Account, Balance
from airflow_stability.client.responses import Secrets, clean, error_from_answer, malformed, parse_answer
from airflow_stability.client.retry import build_retrying
from airflow_stability.client.transport import Session, TimeLimit, UnreadableAnswerError, read_limited
from airflow_stability.errors import (
    StabilityConfigurationError,
    StabilityError,
    StabilityNetworkError,
    StabilityNotFoundError,
    StabilityOutcomeUnknownError,
    StabilityPermanentError,
    StabilityRedirectError,
    StabilityTimeoutError,
    StabilityTransientError,
)

if TYPE_CHECKING:
    from types import TracebackType

DEFAULT_BASE_URL = "https://api.stability.ai"
DEFAULT_CLIENT_ID = "airflow-provider-stability"

#: Bytes that an answer of the user endpoints, or an error, may have. Real ones have a few hundred.
LARGEST_ANSWER = 1024 * 1024

#: Bytes that a success of any other call may have: several times the largest output that the API makes.
LARGEST_OUTPUT = 256 * 1024 * 1024

#: Methods that ask for nothing to be done (RFC 9110, section 9.2.1): such a call costs nothing, and one
#: without an answer may be made again. TRACE, the fourth of them, no API answers.
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

# base URL -> the API version that answered there last, for all clients of the process.
_answering: dict[str, str] = {}

_Model = TypeVar("_Model", bound=BaseModel)
_Error = TypeVar("_Error", bound=StabilityError)


class StabilityClient:
    """Calls the Stability API with one API key. For one thread at a time; use it as a context manager.

    Every attempt has an end: connecting may take ``request_timeout``, each silence while the answer comes as
    much, and the whole twice that. Repeated attempts together take ``retry_deadline`` plus the last one. Only
    GET is ever repeated. Redirects are never followed. The environment's proxy and CA settings count, as
    requests reads them.

    :param api_key: the API key. Surrounding blanks and what was copied in front are dropped: ``Bearer``, and
        the name of a header or of a setting.
    :param base_url: where the API is; a path in front of the API's own is kept, for gateways.
    :param api_version: ``v1alpha`` or ``v1``, or ``auto``: v1alpha first, and v1 where v1alpha refuses;
        the one that answered is asked first from then on, in this process and for this base URL.
    :param organization: id such as ``org-123456`` for every balance that names none; None for the key's
        default organization.
    :param request_timeout: seconds for connecting, and for each silence while the answer comes.
    :param retry_deadline: seconds that one call may spend on retries; 0 for a single attempt.
    :param client_id: sent as ``Stability-Client-ID``, except to v1alpha, which knows no such header.
    :param user_agent: replaces the ``User-Agent``, which otherwise names this package and its version.
    :param proxy: URL of a proxy; counts before the environment's.
    :param ca_bundle: file or folder of CA certificates; counts before the environment's.
    :param allow_http: plain http to another host than loopback is refused without it, since the key would
        travel in clear.
    :raises StabilityConfigurationError: an argument that cannot work; also a ValueError.
    """

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str = DEFAULT_BASE_URL,
        api_version: str = "auto",
        organization: str | None = None,
        request_timeout: float = 10.0,
        retry_deadline: float = 120.0,
        client_id: str = DEFAULT_CLIENT_ID,
        user_agent: str | None = None,
        proxy: str | None = None,
        ca_bundle: str | None = None,
        allow_http: bool = False,
    ) -> None:
        key = options.check_api_key(api_key)
        self._keys = {"v1alpha": _KeyAuth(key), "v1": _KeyAuth(f"Bearer {key}")}
        self.base_url = options.check_base_url(base_url, allow_http=allow_http)
        self.api_version = options.check_api_version(api_version)
        self.organization = options.check_organization(organization)
        self.request_timeout = options.check_seconds("request_timeout", request_timeout)
        self.retry_deadline = options.check_seconds("retry_deadline", retry_deadline, zero=True)
        #: The API version that the last account or balance of this client came from.
        self.answered_version: str | None = None
        #: How many calls of this client, other than GET, HEAD and OPTIONS, may have been paid for: those that
        #: were answered with 2xx, and those whose outcome is unknown.
        self.maybe_paid = 0
        self._client_headers = {
            "Stability-Client-ID": options.check_header("client_id", client_id),
            "Stability-Client-Version": __version__,
        }
        if user_agent is None:
            user_agent = f"airflow-provider-stability/{__version__} {requests.utils.default_user_agent()}"
        self._session = Session()
        self._session.headers["User-Agent"] = options.check_header("user_agent", user_agent)
        # An answer that unpacks to gigabytes has to be asked for; so it is not.
        self._session.headers["Accept-Encoding"] = "identity"
        self._proxies: dict[str, str] = {}
        if proxy is not None:
            options.check_proxy(proxy)
            self._proxies = {"http": proxy, "https": proxy}
        elif self.base_url.startswith("http:") and not allow_http:
            # It is this machine that is asked, in clear: not by way of another.
            self._session.trust_env = False
        proxies = (proxy or "", *getproxies().values())
        keys = {key, quote(key), quote(key, safe="")}  # as a redirect's address may repeat it
        self._secrets = Secrets(
            [*keys, *(secret for url in proxies for secret in options.proxy_secrets(url))]
        )
        self._shown_url = clean(self.base_url, self._secrets)
        self._ca_bundle = options.check_ca_bundle(ca_bundle)

    def __repr__(self) -> str:
        return (
            f"StabilityClient(base_url={self._shown_url!r}, api_version={self.api_version!r}, "
            f"organization={self.organization!r})"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must be masked wherever texts are logged: the key, and a proxy's password if there is one.

        Each as it is, and as a URL holds it.
        """
        return self._secrets

    def close(self) -> None:
        """Close the pooled connections. The client can still be used and then opens new ones."""
        self._session.close()

    def get_account(self) -> Account:
        """Return the account that the key belongs to (``GET /user/account``). Costs no credits.

        :raises StabilityTransientError: no answer within ``retry_deadline``; it may pass.
        :raises StabilityPermanentError: the API refuses; under ``auto``, both versions of it.
        """
        return self._get("user/account", Account, {})

    def get_balance(self, organization: str | None = None) -> Balance:
        """Return an organization's balance (``GET /user/balance``). Costs no credits.

        A top-up takes 1 to 15 minutes to show in it.

        :param organization: id such as ``org-123456``; None for the client's, else the key's default.
        :raises StabilityTransientError: no answer within ``retry_deadline``; it may pass.
        :raises StabilityPermanentError: the API refuses; under ``auto``, both versions of it.
        """
        organization = options.check_organization(organization) or self.organization
        return self._get("user/balance", Balance, {"Organization": organization} if organization else {})

    def request(
        self,
        method: str,
        path: str,
        *,
        timeout: float | None = None,
        headers: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> requests.Response:
        """Call any other path of the API with the same key, limits and errors. Only GET is repeated.

        A call with another method than GET, HEAD and OPTIONS may be paid for. One that was sent, or may have
        been, and got no complete answer raises StabilityOutcomeUnknownError: whoever made it again might pay
        twice. Those three only ask, so that theirs is a transient failure; and so it is for every method
        where nothing was sent for certain: no address, no connection, no TLS, no way through the proxy.

        :param method: HTTP method, such as ``POST``.
        :param path: path such as ``/v2beta/stable-image/generate/core``.
        :param timeout: seconds instead of ``request_timeout`` for this call: generating takes longer than
            reading a balance.
        :param headers: further headers. The ``Organization`` header is not sent unless named here.
        :param kwargs: what ``requests.Request`` takes: ``params``, ``data``, ``json``, ``files``.
        :returns: the answer, its body of up to 256 MiB read, with a status from 200 to 299.
        :raises StabilityPaymentRequiredError: 402, the organization has too few credits for this call.
        :raises StabilityOutcomeUnknownError: the call may have been accepted and paid for.
        :raises StabilityTransientError: it may pass.
        :raises StabilityPermanentError: the API refuses, or the arguments cannot be sent.
        """
        if not path.startswith("/"):
            raise StabilityConfigurationError(
                f"path must begin with / and is appended to {self._shown_url}; got {path[:80]!r}."
            )
        method = method.upper()
        if not re.fullmatch("[A-Z]+", method):
            raise StabilityConfigurationError(
                f"method must be one of HTTP's, such as POST; got {method[:80]!r}."
            )
        version = "v1alpha" if path.startswith("/v1alpha/") else "v1"
        seconds = self.request_timeout if timeout is None else options.check_seconds("timeout", timeout)

        def attempt() -> requests.Response:
            response, _ = self._send(
                method, path, version=version, timeout=seconds, headers=headers or {}, **kwargs
            )
            return response

        if method != "GET":
            return attempt()
        return build_retrying(self.retry_deadline)(attempt)

    def _get(self, path: str, model: type[_Model], headers: dict[str, str]) -> _Model:
        return build_retrying(self.retry_deadline)(lambda: self._ask_versions(path, model, headers))

    def _ask_versions(self, path: str, model: type[_Model], headers: dict[str, str]) -> _Model:
        """Ask the one API version that is set, or both until one does not refuse."""
        refusals: list[StabilityPermanentError] = []
        for version in self._versions():
            call = f"/{version}/{path}"
            try:
                response, body = self._send(
                    "GET",
                    call,
                    version=version,
                    timeout=self.request_timeout,
                    headers={"Accept": "application/json", **headers},
                    largest=LARGEST_ANSWER,
                )
                answer = parse_answer(
                    model, response.headers, body, call=f"GET {call}", secrets=self._secrets
                )
            except StabilityPermanentError as refusal:
                refusals.append(refusal)
            except StabilityTransientError as failure:
                if not refusals:
                    raise
                # Begin with this version next time, unless one is known to answer: that one key was refused
                # there says nothing about the version.
                _answering.setdefault(self.base_url, version)
                what = "One API version refused, the other may answer later."
                raise _joined(what, failure, [*refusals, failure]) from None
            else:
                if self.api_version == "auto":
                    _answering[self.base_url] = version
                self.answered_version = version
                return answer
        raise refusals[0] if len(refusals) == 1 else _both_refused(refusals)

    def _versions(self) -> tuple[str, ...]:
        if self.api_version != "auto":
            return (self.api_version,)
        first = _answering.get(self.base_url, options.API_VERSIONS[0])
        return (first, *(version for version in options.API_VERSIONS if version != first))

    def _send(
        self,
        method: str,
        path: str,
        *,
        version: str,
        timeout: float,
        headers: dict[str, str],
        largest: int | None = None,
        **kwargs: Any,
    ) -> tuple[requests.Response, bytes]:
        """Make one attempt, and return a 2xx answer with its body.

        :param version: which form the key and the client's identity are sent in.
        :param largest: bytes that the body may have and, where it is set, that only 200 will do.
        """
        if version != "v1alpha":
            headers = {**self._client_headers, **headers}
        whose = f" for organization {headers['Organization']}" if headers.get("Organization") else ""
        call = clean(f"{method} {path}{whose}", self._secrets)
        prepared = self._prepare(method, path, headers=headers, auth=self._keys[version], **kwargs)
        # Whatever is raised here is raised after the block: an exception of requests that came along as
        # its context would carry the request, and with it the key, to whoever collects tracebacks.
        failure: StabilityError | None = None
        response: requests.Response | None = None
        body, broken = b"", ""
        handled = sys.exception()  # the caller's own, if this is called while one is handled
        with TimeLimit(2 * timeout) as limit:
            try:
                response = self._session.send(
                    prepared,
                    timeout=timeout,
                    allow_redirects=False,
                    # Not in a variable: a proxy's password would be shown where tracebacks show those.
                    **self._session.merge_environment_settings(
                        prepared.url, dict(self._proxies), True, self._ca_bundle, None
                    ),
                )
                if method not in SAFE_METHODS and _succeeded(response, user_endpoint=False):
                    self.maybe_paid += 1  # before the body is read: nothing that happens there can undo it
                with response:
                    body = _read(response, largest)
            except UnreadableAnswerError as unreadable:
                assert response is not None
                if method in SAFE_METHODS:
                    status = response.status_code
                    failure = malformed(f"{call} answered {status}, but the body {unreadable}", status=status)
                else:
                    broken = f"the body {unreadable}"
            except (OSError, HTTPError, ValueError) as error:  # OSError: requests' exceptions are among them
                timed_out, broken = self._reason(error, handled)
                limit.expired |= timed_out
        if response is not None and not _succeeded(response, user_endpoint=largest is not None):
            # What the status says counts, whatever became of the body.
            failure = error_from_answer(
                response.status_code, response.headers, body, call=call, secrets=self._secrets
            )
        elif limit.expired or broken:
            what = f" from {self._shown_url}: {broken}"
            if limit.expired:
                what = f": it took longer than {timeout:g} s to connect or to answer"
            failure = _no_answer(
                f"{call} got no complete answer{what}",
                timed_out=limit.expired,
                harmless=limit.unsent or method in SAFE_METHODS,
                status=response.status_code if response is not None else None,
            )
        if isinstance(failure, StabilityOutcomeUnknownError) and response is None:
            self.maybe_paid += 1
        if failure is not None:
            raise failure
        assert response is not None
        return response, body

    def _reason(self, error: BaseException, handled: BaseException | None) -> tuple[bool, str]:
        """Return whether an exchange failed for want of time, and what is to be told of it."""
        reason = _innermost(error, handled)
        told = clean(f"{type(reason).__name__}: {reason}", self._secrets).rstrip(".")
        return isinstance(reason, TimeoutError | requests.Timeout), told

    def _prepare(self, method: str, path: str, **kwargs: Any) -> requests.PreparedRequest:
        try:
            request = requests.Request(method, self.base_url + path, **kwargs)
            prepared = self._session.prepare_request(request)
            for value in prepared.headers.values():
                if isinstance(value, str):
                    value.encode("latin-1")  # as http.client will, too late to call it a wrong argument
            return prepared
        except (ValueError, UnicodeError, requests.RequestException) as error:
            reason = clean(str(error), self._secrets)
        shown = clean(path, self._secrets)[:80]
        raise StabilityConfigurationError(f"{method} {shown!r} cannot be sent: {reason}.")


def check_response(response: requests.Response) -> requests.Response:
    """Return an answer that was got with one's own requests code, or raise the error that it stands for.

    ::

        answer = check_response(requests.post(url, headers={"authorization": f"Bearer {key}"}, files=form))

    The error's text holds neither what the request sent as its ``Authorization`` nor its query string.

    :param response: the answer. A 2xx comes back as it is: nothing of its body is read here. Of any other
        that was streamed up to 1 MiB is read, under the read timeout that it was asked for with, and it is
        closed.
    :raises StabilityError: any status but 200 to 299, redirects included: of the same kind and with the same
        facts as if :class:`StabilityClient` had got that answer. (What requests raises where no answer came
        is not for this function: whether such a call may be made again, it could not tell.)
    """
    if response.status_code is not None and _succeeded(response, user_endpoint=False):
        return response
    raise _foreign_error(response)


class _KeyAuth(AuthBase):
    """Sets the Authorization header. Keeps the key out of the session's headers, and out of every repr."""

    def __init__(self, value: str) -> None:
        self._value = value

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        """Set the header on a request that is being prepared."""
        r.headers["Authorization"] = self._value
        return r


def _succeeded(response: requests.Response, *, user_endpoint: bool) -> bool:
    return response.status_code == 200 if user_endpoint else 200 <= response.status_code <= 299


def _no_answer(what: str, *, timed_out: bool, harmless: bool, status: int | None) -> StabilityError:
    """Return the error for a call that was not refused and has no complete answer.

    :param harmless: whether the call may be made again by rule.
    :param status: the 2xx after which the answer broke off.
    """
    if harmless:
        kind = StabilityTimeoutError if timed_out else StabilityNetworkError
        return kind(f"{what}. {kind.advice}")
    if status is not None:
        what += f"; its status was {status}"
    return StabilityOutcomeUnknownError(f"{what}. {StabilityOutcomeUnknownError.advice}", status=status)


def _innermost(error: BaseException, handled: BaseException | None) -> BaseException:
    """Return the exception that all began with: it says it in the fewest words."""
    while (cause := error.__cause__ or error.__context__) is not None and cause is not handled:
        error = cause
    return error


def _read(response: requests.Response, largest: int | None) -> bytes:
    if response.is_redirect:
        return b""  # where it points to is in its header
    if largest is None and _succeeded(response, user_endpoint=False):
        response._content = _read_packed(response, LARGEST_OUTPUT)
        return response._content
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise UnreadableAnswerError("is compressed, which was not asked for")
    return read_limited(response, largest or LARGEST_ANSWER)


def _read_packed(response: requests.Response, largest: int) -> bytes:
    """Read a body that may be compressed, though this client asks for none that is."""
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    # `_content`: requests has no other word for "read already"; those bytes are unpacked.
    if not isinstance(response._content, bytes) and ("," in encoding or encoding in ("br", "zstd")):
        raise UnreadableAnswerError("is compressed in a way that has no bounds")
    return read_limited(response, largest, piece=64 * 1024 if encoding == "identity" else 1024)


def _foreign_error(response: requests.Response) -> StabilityError:
    """Return the error that an answer of others stands for, and close it."""
    secrets = Secrets(_authorizations(response))
    body = b""
    with contextlib.suppress(UnreadableAnswerError, OSError, HTTPError, ValueError):
        body = _read_foreign(response)
    if response.raw is not None:
        response.close()
    status = response.status_code or 0  # one made by hand may have none
    call = clean(_call_of(response), secrets)
    return error_from_answer(status, response.headers, body, call=call, secrets=secrets)


def _read_foreign(response: requests.Response) -> bytes:
    """Read an error's body. Unlike those that this client asks for, it may well be compressed."""
    if response.is_redirect:
        return b""
    if response.raw is None:  # made by hand, or it was pickled
        return response.content or b""
    return _read_packed(response, LARGEST_ANSWER)


def _authorizations(response: requests.Response) -> set[str]:
    """Return what the request of an answer, and of the redirects before it, sent as Authorization.

    As it was sent, and without the scheme in front.
    """
    found: set[str] = set()
    for one in (*response.history, response):
        for name, value in (getattr(one.request, "headers", None) or {}).items():
            if str(name).lower() == "authorization":
                sent = (value.decode("latin-1") if isinstance(value, bytes) else str(value)).strip()
                found |= {sent, re.sub(r"^\S+\s+", "", sent)}
    return found - {""}


def _call_of(response: requests.Response) -> str:
    """Return what was asked, for a text: ``POST /v2beta/x``. Without the query, which may hold anything."""
    method = getattr(response.request, "method", None)
    url = getattr(response.request, "url", None) or response.url
    try:
        path = urlsplit(url).path if isinstance(url, str) else ""
    except ValueError:
        path = ""
    return " ".join(part for part in (method, path) if isinstance(part, str) and part) or "The call"


def _both_refused(refusals: list[StabilityPermanentError]) -> StabilityPermanentError:
    """Join what both API versions answered into one error of the kind that tells more.

    "Not found" and a redirect only say that this version is not served there; the other answer is then
    about the key. Between two equals the later version counts: keys work there today.
    """
    refusals.sort(key=lambda refusal: isinstance(refusal, StabilityNotFoundError | StabilityRedirectError))
    telling = refusals[0]
    if all(type(refusal) is type(telling) for refusal in refusals):
        telling = refusals[-1]
    return _joined("Both API versions refused.", telling, refusals)


def _joined(what: str, telling: _Error, errors: Sequence[StabilityError]) -> _Error:
    """Return an error like the one that tells most, with a text that tells what all of them say."""
    facts = [str(error).removesuffix(error.advice).rstrip() for error in errors]
    return type(telling)(
        f"{what} {' '.join(facts)} {telling.advice}",
        status=telling.status,
        error_id=telling.error_id,
        name=telling.name,
        message=telling.message,
        retry_after=telling.retry_after,
        temporary=telling.temporary,
    )
