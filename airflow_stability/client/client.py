"""StabilityClient: the account, the balance, and any other call of the Stability API."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar

import requests
from pydantic import BaseModel

from airflow_stability import __version__
from airflow_stability.client import options
from airflow_stability.client.api_key import check_api_key, fingerprint
from airflow_stability.client.api_versions import call_versions
from airflow_stability.client.attempt import ANY_ENDPOINT, SAFE_METHODS, USER_ENDPOINT, RequestSender
from airflow_stability.client.models import Account, Balance
from airflow_stability.client.responses import parse_response
from airflow_stability.client.retry import build_retrying
from airflow_stability.client.spend_recorder import LedgerSettings, Recorder, model_of, recorded
from airflow_stability.errors import StabilityConfigurationError
from airflow_stability.validation import DEFAULT_REQUEST_TIMEOUT, DEFAULT_RETRY_DEADLINE

if TYPE_CHECKING:
    # Loaded with the first call of generate().
    from upath import UPath

    from airflow_stability.client.durable_folder import Storage
    from airflow_stability.client.generate import Generation

DEFAULT_BASE_URL = "https://api.stability.ai"
DEFAULT_CLIENT_ID = "airflow-provider-stability"

_Model = TypeVar("_Model", bound=BaseModel)


class StabilityClient:
    """A client for the Stability API with one API key. Use it in one thread at a time, as a context manager.

    ``request_timeout`` limits connecting and each gap in the response; a whole attempt may take twice that.
    No attempt begins later than ``retry_deadline`` after the first. Only GET requests are retried. Redirects
    are never followed. The environment's proxy and CA settings apply, as requests reads them.

    :param api_key: the API key. Blanks around it are removed, and so is what is often copied with it:
        ``Bearer``, and the name of a header or of a setting.
    :param base_url: the address of the API. It may have a path, for gateways.
    :param api_version: ``v1alpha``, ``v1`` or ``auto``. ``auto`` calls v1alpha, and v1 if v1alpha refuses;
        the version that answered is called first from then on, in this process and for this base URL.
    :param organization: the id, such as ``org-123456``, that balances are read for if a call names none;
        None for the key's default organization.
    :param request_timeout: seconds for connecting, and for each gap in the response; at most 86400.
    :param retry_deadline: seconds that one call may spend on retries, at most 86400; 0 for a single attempt.
    :param client_id: the ``Stability-Client-ID`` header. v1alpha does not know it and never gets it.
    :param user_agent: a ``User-Agent`` header, instead of one with the name and version of this package.
    :param proxy: the URL of a proxy, instead of the environment's. A SOCKS proxy needs PySocks.
    :param ca_bundle: a file or folder of CA certificates, instead of the environment's.
    :param allow_http: whether plain http may be used to another host than loopback. The API key then travels
        in clear text.
    :raises StabilityConfigurationError: an argument is invalid; also a ValueError.
    """

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str = DEFAULT_BASE_URL,
        api_version: str = "auto",
        organization: str | None = None,
        request_timeout: float = DEFAULT_REQUEST_TIMEOUT,
        retry_deadline: float = DEFAULT_RETRY_DEADLINE,
        client_id: str = DEFAULT_CLIENT_ID,
        user_agent: str | None = None,
        proxy: str | None = None,
        ca_bundle: str | None = None,
        allow_http: bool = False,
    ) -> None:
        key = check_api_key(api_key)
        self.base_url = options.check_base_url(base_url, allow_http=allow_http)
        self.api_version = options.check_api_version(api_version)
        self.organization = options.check_organization(organization)
        self.request_timeout = options.check_seconds(request_timeout, argument="request_timeout")
        self.retry_deadline = options.check_seconds(
            retry_deadline, argument="retry_deadline", allow_zero=True
        )
        #: Whether ``generate`` always waits for asynchronous jobs in place. If not, it raises
        #: StabilityJobPendingError, if all calls so far were durable.
        self.waits_for_jobs = True
        #: The most seconds that an attempt of get_account or get_balance may take in total; None for twice
        #: ``request_timeout``.
        self.max_attempt_seconds: float | None = None
        #: Tells the API key from others in this process.
        self.key_fingerprint = fingerprint(api_key)
        #: Makes what ``generate`` opens URLs with; None for a client without Airflow.
        self.storage: Callable[[], Storage] | None = None
        #: Called with the endpoint and the model of a call that was paid for.
        self.on_paid: Callable[[str, str | None], None] | None = None
        #: What the connection says about its ledger; None without one.
        self.ledger: LedgerSettings | None = None
        #: Makes what writes down the calls that may be charged; None without a ledger.
        self.make_recorder: Callable[[], Recorder] | None = None
        #: The API version that returned the last account or balance of this client.
        self.answered_version: str | None = None
        if user_agent is None:
            user_agent = f"{DEFAULT_CLIENT_ID}/{__version__} {requests.utils.default_user_agent()}"
        self._sender = RequestSender(
            key,
            base_url=self.base_url,
            client_id=options.check_header("client_id", client_id),
            user_agent=options.check_header("user_agent", user_agent),
            proxy=None if proxy is None else options.check_proxy(proxy),
            ca_bundle=options.check_ca_bundle(ca_bundle),
            # Without allow_http, plain http goes to this machine only: never through another one.
            use_environment=allow_http or proxy is not None or not self.base_url.startswith("http:"),
        )

    def __repr__(self) -> str:
        return (
            f"StabilityClient(base_url={self._sender.shown_url!r}, api_version={self.api_version!r}, "
            f"organization={self.organization!r})"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def secrets(self) -> tuple[str, ...]:
        """The texts that logs must mask: the key and proxy passwords, as they are and as URLs have them."""
        return self._sender.secrets

    @property
    def maybe_paid(self) -> int:
        """How many calls of this client may have been paid for.

        Counts the calls, other than GET, HEAD and OPTIONS, with a 2xx response or an unknown outcome. A call
        that is under way, or was cut off, counts unless its request was certainly not sent.
        """
        return self._sender.maybe_paid

    @property
    def maybe_paid_durably(self) -> int:
        """How many of these calls were durable: made again, they do not pay again."""
        return self._sender.maybe_paid_durably

    @functools.cached_property
    def recorder(self) -> Recorder | None:
        """What writes down the calls that may be charged; None without a ledger."""
        return None if self.make_recorder is None else self.make_recorder()

    def close(self) -> None:
        """Close the pooled connections. The client can still be used and then opens new ones."""
        self._sender.close()

    def get_account(self) -> Account:
        """Return the account that the API key belongs to (``GET /user/account``). Costs no credits.

        :raises StabilityTransientError: no valid response within ``retry_deadline``; it may come later.
        :raises StabilityPermanentError: the API refuses; under ``auto``, both versions of it do.
        """
        return self._get("user/account", Account)

    def get_balance(self, organization: str | None = None) -> Balance:
        """Return the balance of an organization (``GET /user/balance``). Costs no credits.

        A top-up shows in it after 1 to 15 minutes.

        :param organization: an id such as ``org-123456``; None for the client's, else the key's default.
        :raises StabilityTransientError: no valid response within ``retry_deadline``; it may come later.
        :raises StabilityPermanentError: the API refuses; under ``auto``, both versions of it do.
        """
        organization = options.check_organization(organization) or self.organization
        return self._get("user/balance", Balance, organization)

    def request(
        self,
        method: str,
        path: str,
        *,
        timeout: float | None = None,
        headers: dict[str, str] | None = None,
        durable: bool = False,
        **kwargs: Any,
    ) -> requests.Response:
        """Call any path of the API with the same key, limits and errors. Only GET requests are retried.

        A call with another method than GET, HEAD and OPTIONS may cost credits. If its request was sent, or
        may have been, and no complete response came, StabilityOutcomeUnknownError is raised: repeating the
        call could pay twice. A gateway's 5xx, which has not the API's id and name, is no such response; only
        a 503 says that nothing was accepted. If the request was certainly not sent (no address, no
        connection, no TLS, no way through the proxy), the failure is transient. For GET, HEAD and OPTIONS it
        always is.

        :param method: an HTTP method such as ``POST``.
        :param path: a path such as ``/v2beta/stable-image/generate/core``.
        :param timeout: seconds, instead of ``request_timeout``: generating an image takes long.
        :param headers: more headers. The ``Organization`` header is sent only if it is among them.
        :param durable: whether your code makes sure that the same call, made again, does not pay again. A
            spending task may then run its function again.
        :param kwargs: arguments of ``requests.Request``: ``params``, ``data``, ``json``, ``files``.
        :returns: the response, with a status from 200 to 299 and its body of up to 256 MiB read.
        :raises StabilityPaymentRequiredError: 402, the organization has too few credits for this call.
        :raises StabilityOutcomeUnknownError: the call may have been accepted and paid for.
        :raises StabilityBudgetExhaustedError: with a ledger: its budget has too little left. Nothing was
            sent.
        :raises StabilityLedgerUnavailableError: with a ledger, it is out of reach. Nothing was sent.
        :raises StabilityTransientError: a later call may succeed.
        :raises StabilityPermanentError: the API refuses, or the arguments cannot be sent.
        """
        return self._request(method, path, timeout, headers, durable, None, kwargs)

    def post_durably(
        self, path: str, output: str, *, timeout: float, headers: dict[str, str], **kwargs: Any
    ) -> requests.Response:
        """Make a durable call with a POST; see :meth:`request`.

        :param output: where the output will be, so that a ledger knows it when the call is made again.
        """
        return self._request("POST", path, timeout, headers, True, output, kwargs)

    def _request(
        self,
        method: str,
        path: str,
        timeout: float | None,
        headers: dict[str, str] | None,
        durable: bool,
        output: str | None,
        kwargs: dict[str, Any],
    ) -> requests.Response:
        if not path.startswith("/"):
            raise StabilityConfigurationError(
                f"path must begin with / and is appended to {self._sender.shown_url}; got {path[:80]!r}."
            )
        method = method.upper()
        if not re.fullmatch("[A-Z]+", method):
            raise StabilityConfigurationError(
                f"method must be an HTTP method such as POST; got {method[:80]!r}."
            )
        version = "v1alpha" if path.startswith("/v1alpha/") else "v1"
        seconds = self.request_timeout
        if timeout is not None:
            seconds = options.check_seconds(timeout, argument="timeout")
        send = functools.partial(
            self._sender.send,
            method,
            path,
            version,
            seconds,
            ANY_ENDPOINT,
            durable=durable,
            headers=headers or {},
            arguments=kwargs,
        )
        if method == "GET":
            return build_retrying(self.retry_deadline)(send)
        if method in SAFE_METHODS:
            return send()
        endpoint, model = path.removeprefix("/v2beta/"), model_of(kwargs)
        if self.recorder is None:
            response = send()
        else:
            response = recorded(self.recorder, send, endpoint, model, output, 2 * seconds)
        if self.on_paid is not None:
            self.on_paid(endpoint, model)
        return response

    def generate(
        self,
        endpoint: str,
        *,
        to: str | os.PathLike[str] | UPath | None = None,
        name: str | None = None,
        conn_id: str | None = None,
        on_unknown: str = "fail",
        filtered: str = "fail",
        timeout: float = 120.0,
        **fields: Any,
    ) -> Generation:
        """Make an image, a model or a sound, and with ``to``, pay for it only once.

        With a folder, the call is durable. The file name is a hash of the endpoint, the fields and the
        content of files: the same call with the same folder returns the same output, and pays nothing. A
        marker is written before the request is sent, and removed when the output is there. A call that finds
        the marker of another call waits while that one may be under way: at most twice its ``timeout``, and
        ten seconds, from when it finds the marker. Then it raises StabilityOutcomeUnknownError, because the
        other call may have been paid for.

        Calls that start an asynchronous job wait for its result, at most an hour, and ask every 10 seconds.
        With a folder, the marker keeps the job's id: a later call asks for the result and pays nothing. In a
        deferrable spending task, such a call does not wait: it raises StabilityJobPendingError at once.

        :param endpoint: the path below ``/v2beta/``, such as ``stable-image/generate/core``.
        :param to: the folder: a path, a URL such as ``s3://bucket/images/``, or an ObjectStoragePath. None
            for a call without a folder, whose output is only in the returned object.
        :param name: the file name without its ending, instead of the hash. Then the name alone decides
            whether the output is there.
        :param conn_id: the Airflow connection for a URL.
        :param on_unknown: what to do after an earlier call of unknown outcome: ``fail`` raises
            StabilityOutcomeUnknownError, ``pay_again`` pays again. If the outcome of this call itself is
            unknown, the error is raised in both cases.
        :param filtered: ``keep`` to get a blurred image instead of StabilityContentFilteredError. With a
            folder, it is kept in both cases, as ``NAME.filtered.png``.
        :param timeout: seconds for connecting, and for each gap in the response.
        :param fields: the fields of the endpoint, such as ``prompt`` and ``seed``. Bytes, a Path and an
            ObjectStoragePath are sent as files. None leaves a field out.
        :raises StabilityOutcomeUnknownError: this call, or an earlier one of the same name, may have been
            paid for.
        :raises StabilityContentFilteredError: the image is blurred.
        :raises StabilityModeratedError: the API refuses the content.
        :raises StabilityPaymentRequiredError: 402, the organization has too few credits for this call.
        :raises StabilityJobPendingError: an asynchronous job is not finished.
        :raises StabilityTransientError: a later call may succeed.
        :raises StabilityPermanentError: the API refuses, an argument is unusable, or so is the folder.
        """
        from airflow_stability.client.generate import generate

        return generate(
            self,
            endpoint,
            to=to,
            name=name,
            conn_id=conn_id,
            on_unknown=on_unknown,
            filtered=filtered,
            timeout=timeout,
            fields=fields,
        )

    def _get(self, path: str, model: type[_Model], organization: str | None = None) -> _Model:
        headers = {"Accept": "application/json"}
        if organization:
            headers["Organization"] = organization

        def call(version: str) -> _Model:
            url = f"/{version}/{path}"
            response = self._sender.send(
                "GET",
                url,
                version,
                self.request_timeout,
                USER_ENDPOINT,
                max_seconds=self.max_attempt_seconds,
                headers=headers,
            )
            return parse_response(
                model, response.headers, response.content, call=f"GET {url}", secrets=self.secrets
            )

        ask = functools.partial(call_versions, call, self.base_url, self.api_version)
        self.answered_version, result = build_retrying(self.retry_deadline)(ask)
        return result
