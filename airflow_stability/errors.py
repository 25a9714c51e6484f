"""The errors of calls to the Stability API. This module imports nothing.

Callers have one question: may I call again? The tree's three branches answer it. Transient: yes, later.
Permanent: not until somebody changes something. Unknown outcome: not until somebody has checked, because the
call may have been charged::

    StabilityError
    ├── StabilityTransientError              may pass by itself: call again later
    │   ├── StabilityNetworkError            no connection, a reset, a TLS failure
    │   ├── StabilityTimeoutError            no complete response in time
    │   ├── StabilityRateLimitError          429: the key is locked out for a while
    │   ├── StabilityUnavailableError        408, 425, 5xx, or `temporary: true` in the body
    │   ├── StabilityJobPendingError         a job that was paid for is not finished
    │   ├── StabilityBudgetExhaustedError    a budget of the ledger has too little left for this call
    │   ├── StabilityLedgerUnavailableError  the ledger's database is out of reach
    │   ├── StabilityMalformedResponseError  a response that is not what the API documents
    │   └── StabilityBlockedError            a 403 that is not the API's own: a firewall's
    ├── StabilityPermanentError              will not pass until somebody changes something
    │   ├── StabilityConfigurationError      an unusable setting (also a ValueError)
    │   │   ├── StabilityConnectionNotFoundError  no such Airflow connection, or it cannot be read
    │   │   └── StabilityBudgetNotFoundError      no such budget in the ledger
    │   ├── StabilityAuthenticationError     401: the API key is missing or refused
    │   ├── StabilityPaymentRequiredError    402: not enough credits for this call
    │   ├── StabilityPermissionError         403: the key may not do this
    │   ├── StabilityNotFoundError           404, 410
    │   ├── StabilityRedirectError           3xx: never followed, or the key would go along
    │   ├── StabilityModeratedError          400, 403, 422: the prompt or an image is not allowed
    │   ├── StabilityContentFilteredError    200, but the picture is blurred
    │   └── StabilityRequestError            every other 4xx
    │       └── StabilityPayloadTooLargeError  413: the request has more than 10 MiB
    └── StabilityOutcomeUnknownError         a call may have been paid for, and its output is missing
"""

from __future__ import annotations

#: Where credits are bought, and where API keys are made.
CREDITS_URL = "https://platform.stability.ai/account/credits"
KEYS_URL = "https://platform.stability.ai/account/keys"


class StabilityError(Exception):
    """Any failure of a call to the Stability API. Its text never holds the API key.

    :param text: the failure, the path, the error id, and what to do about it.
    :param status: HTTP status of the response; None where there was none.
    :param error_id: the vendor's identifier of this failure, which their support asks for.
    :param name: the vendor's short name of the failure, such as ``rate_limit_exceeded``.
    :param message: the vendor's own message, cut at 500 characters and without control characters.
    :param retry_after: seconds before which another attempt makes no sense; None if unknown.
    :param temporary: the server's own advice on trying again; None where it gave none.
    """

    #: What a person can do about it; the last sentence of the text.
    advice = ""

    def __init__(
        self,
        text: str,
        *,
        status: int | None = None,
        error_id: str | None = None,
        name: str | None = None,
        message: str | None = None,
        retry_after: float | None = None,
        temporary: bool | None = None,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.error_id = error_id
        self.name = name
        self.message = message
        self.retry_after = retry_after
        self.temporary = temporary


class StabilityTransientError(StabilityError):
    """A failure that may pass by itself. It says nothing about the key or the balance."""


class StabilityNetworkError(StabilityTransientError):
    """The API could not be reached, or the connection broke.

    A second call does no harm: either nothing was sent, or the call changes nothing (a GET).
    """

    advice = "If it goes on, check host, port and schema, then the network, the proxy and the CA settings."


class StabilityTimeoutError(StabilityTransientError):
    """The API did not send a complete response in time.

    A second call does no harm: either nothing was sent, or the call changes nothing (a GET).
    """

    advice = "Raise request_timeout if the API is only slow."


class StabilityRateLimitError(StabilityTransientError):
    """Status 429. The vendor locks the key out for 60 seconds after 150 requests in 10 seconds."""

    advice = "The key is locked out for a while: call less often, or use one key per deployment."


class StabilityUnavailableError(StabilityTransientError):
    """The server cannot serve the call now: 408, 425, 5xx, or a response that calls the failure temporary."""

    advice = "This usually passes; send the error id to the vendor's support if it goes on."


class StabilityJobPendingError(StabilityTransientError):
    """An asynchronous job is not finished. It has been paid for; asking for its result costs nothing."""

    advice = (
        "With a folder, the same call asks for this job again, and pays nothing. Without a folder, the same "
        "call would pay again: send a GET to the error's result_path instead, at most every 10 s."
    )

    #: The id of the job, and the path of its result.
    job_id: str | None = None
    result_path: str | None = None


class StabilityBudgetExhaustedError(StabilityTransientError):
    """A budget of the ledger has too few credits left for a call. Nothing was sent."""

    advice = (
        "It passes when the budget renews, when its limit is raised, or when others give back what they hold."
    )


class StabilityLedgerUnavailableError(StabilityTransientError):
    """The ledger's database is out of reach. No call is sent unless it is written down first."""

    advice = "No call is sent unless it is written down first. Check the database and its connection."


class StabilityMalformedResponseError(StabilityTransientError):
    """The response is not what the API documents: cut short, HTML, or a value of the wrong type."""

    advice = "Something between here and the API may be answering in its place: check proxy and host."


class StabilityBlockedError(StabilityTransientError):
    """A 403 without the API's error body: a firewall or gateway refused the call, not the API."""

    advice = "A firewall or gateway refused the request, not the API: check the route to the host."


class StabilityPermanentError(StabilityError):
    """A failure that stays until somebody changes something."""


class StabilityConfigurationError(StabilityPermanentError, ValueError):
    """An unusable setting, found before anything was sent."""


class StabilityConnectionNotFoundError(StabilityConfigurationError):
    """There is no such Airflow connection, or Airflow could not read it. Airflow reports both alike."""

    advice = (
        "Make the connection, or name another one; if it is there, Airflow could not read it, and "
        "its log says why."
    )


class StabilityBudgetNotFoundError(StabilityConfigurationError):
    """There is no such budget in the ledger."""

    advice = "Make it with `airflow stability budget set`, or name another one."


class StabilityAuthenticationError(StabilityPermanentError):
    """Status 401: the API key is missing, mistyped, revoked or not known to this API version."""

    advice = f"Check the API key; keys are made at {KEYS_URL}."


class StabilityPaymentRequiredError(StabilityPermanentError):
    """Status 402: the organization has too few credits for this call."""

    advice = f"Buy credits at {CREDITS_URL}."


class StabilityPermissionError(StabilityPermanentError):
    """Status 403 from the API itself: the key may not do this."""

    advice = "Check that the key's account is a member of the organization and may do this."


class StabilityNotFoundError(StabilityPermanentError):
    """Status 404 or 410: this host does not have the resource, or no longer has it."""

    advice = "Check host and api_version, and the organization id if one is set."


class StabilityRedirectError(StabilityPermanentError):
    """A redirect. It is not followed, because the API key would be sent along."""

    advice = "Redirects are not followed, the key would go along: set host to the API's real address."


class StabilityModeratedError(StabilityPermanentError):
    """The API refuses the content: 403 ``content_moderation``, 422 ``public_figure``, ``invalid_language``.

    v1 answers 400 ``invalid_prompts``. The refusal is about the prompt or an image, not about the key.
    ``message`` is the server's text, which may say whether the call was charged.
    """

    advice = "Change the prompt or the image: the same request is refused each time."


class StabilityContentFilteredError(StabilityPermanentError):
    """A 200 whose picture is blurred (``finish-reason: CONTENT_FILTERED``). It may have been charged."""

    advice = 'Change the prompt or the image, or set filtered="keep" to get such pictures.'

    #: Where the blurred picture is kept; None if the call named no folder.
    path: str | None = None


class StabilityRequestError(StabilityPermanentError):
    """Any other 4xx: the API does not accept this request as it is."""

    advice = "Check the arguments of the call."


class StabilityPayloadTooLargeError(StabilityRequestError):
    """Status 413: the request is larger than the API accepts, which is 10 MiB."""

    advice = "Send smaller files: a request may have 10 MiB."


class StabilityOutcomeUnknownError(StabilityError):
    """A call that may cost credits was sent, or may have been, and its output is missing.

    Either no complete response came, or the response had no output, or the output could not be stored, or a
    marker in the folder says that an earlier call may have been paid for. A gateway's 5xx is no response of
    the API. Only a 503 says that nothing was accepted.

    This error belongs to neither of the other branches. No rule may repeat such a call, because it could be
    charged twice. No rule may call it failed, because the image may have been made. ``status`` is None if no
    status was received. A 2xx says that the call was accepted.
    """

    advice = (
        "The call may have been accepted and paid for: look at the balance, or for its output, "
        "before you call again."
    )
