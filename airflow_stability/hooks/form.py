"""The connection's form in Airflow's web pages: labels, help texts, hidden fields.

There is one definition for all versions. Airflow 3.2 and later take it from the provider's metadata, and show
each field of the extra. Earlier versions ask the hook and show the extra as a box for JSON. Airflow 2.11
shows an example in the box.
"""

from __future__ import annotations

from typing import Any

from airflow_stability.validation import (
    DEFAULT_REQUEST_TIMEOUT,
    DEFAULT_RETRY_DEADLINE,
    MAX_CLIENT_SECONDS,
    format_number,
)

_TIMEOUT, _DEADLINE = format_number(DEFAULT_REQUEST_TIMEOUT), format_number(DEFAULT_RETRY_DEADLINE)

#: Standard fields of a connection that have no meaning here.
HIDDEN = ["login"]

#: Labels of the other standard fields.
LABELS = {
    "password": "API key",
    "host": "API host",
    "schema": "Scheme",
}

#: Grey text in empty fields: the default, or an example.
PLACEHOLDERS = {
    "password": "sk-...",
    "host": "https://api.stability.ai",
    "schema": "https",
    "port": "443",
}

#: Grey text in the box for the extra, which only Airflow 2.11 shows.
EXAMPLE = (
    '{"organization": "org-123456", "api_version": "v1", '
    f'"request_timeout": {_TIMEOUT}, "retry_deadline": {_DEADLINE}}}'
)


def _field(label: str, description: str, kind: str = "string", **schema: Any) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": [kind, "null"], **schema}}


#: The fields of the extra. An empty field means the default. No default is filled in: Airflow would store it,
#: and a later default of this package would have no effect. (Only the API version shows its choice.)
FIELDS = {
    "organization": _field(
        "Organization",
        "Id of the organization whose balance is watched, such as org-123456. Empty: the API key's default "
        "organization, which is also the one that image generation bills.",
    ),
    "api_version": _field(
        "API version",
        "auto requests v1alpha first, then v1, and stays with the version that answers. Choose v1 if the "
        "Test button says so: it saves a request in each process.",
        enum=["auto", "v1alpha", "v1"],
        default="auto",
    ),
    "request_timeout": _field(
        "Request timeout",
        f"Seconds to connect, and seconds to wait for each part of the response. Empty: {_TIMEOUT}.",
        "number",
        minimum=0,
        maximum=int(MAX_CLIENT_SECONDS),
    ),
    "retry_deadline": _field(
        "Retry deadline",
        "Seconds that one call of an operator may spend on retries; 0 for none. Gates do not use it: their "
        f"next poll is the retry. Empty: {_DEADLINE}.",
        "number",
        minimum=0,
        maximum=int(MAX_CLIENT_SECONDS),
    ),
    "client_id": _field(
        "Client id",
        "Name of your application, sent to Stability AI with each call. Empty: airflow-provider-stability.",
    ),
    "user_agent": _field("User agent", "Sent with each call, for gateways that require one."),
    "proxy": _field(
        "Proxy",
        "URL of a proxy, such as http://proxy.example.com:3128, with user and password if it requires them. "
        "socks5h://... needs the extra socks. Empty: the environment's proxy settings.",
        format="password",
    ),
    "ca_bundle": _field(
        "CA bundle",
        "Path, on workers and triggerers, of the CA certificates for a gateway with its own certificate. "
        "Empty: the environment's CA settings, else the usual certificates.",
    ),
    "allow_http": _field(
        "Allow plain http",
        "The API key then travels unencrypted. Only for a gateway inside your own network; a host on "
        "loopback does not need it.",
        "boolean",
    ),
    "ledger_conn_id": _field(
        "Ledger's connection",
        "Id of a connection to a database, where all that is spent is written down. Empty: no ledger.",
    ),
    "budget": _field(
        "Budget",
        "The ledger's budget for tasks that name none. Empty: they spend without a budget.",
    ),
    "prices": _field(
        "Prices",
        'Your own prices in credits, as a JSON object such as {"stable-image/generate/core": 3.5}. They come '
        "before the list that this release has.",
    ),
}


def behaviour() -> dict[str, Any]:
    """Return the form for Airflow up to 3.1, which asks the hook."""
    return {
        "hidden_fields": HIDDEN,
        "relabeling": LABELS,
        "placeholders": {**PLACEHOLDERS, "extra": EXAMPLE},
    }


def metadata() -> dict[str, Any]:
    """Return the form for Airflow 3.2 and later, which reads the provider's metadata."""
    return {
        "conn-fields": FIELDS,
        "ui-field-behaviour": {
            "hidden-fields": HIDDEN,
            "relabeling": LABELS,
            "placeholders": PLACEHOLDERS,
        },
    }
