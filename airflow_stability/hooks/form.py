"""The connection's form in Airflow's web pages: labels, help texts, what is hidden. Imports nothing.

One definition for all versions. Airflow 3.2 and later take it from the provider's metadata, and show each
field of the extra. Before, Airflow asks the hook, and the extra is a box for JSON; Airflow 2.11 shows an
example in it.
"""

from __future__ import annotations

from typing import Any

#: Standard fields of a connection that mean nothing here.
HIDDEN = ["login"]

#: What the other standard fields are called.
LABELS = {
    "password": "API key",
    "host": "API host",
    "schema": "Scheme",
}

#: What stands in empty fields, in grey: what is used then, or an example.
PLACEHOLDERS = {
    "password": "sk-...",
    "host": "https://api.stability.ai",
    "schema": "https",
    "port": "443",
}

#: What the box for the extra shows, where Airflow shows examples there: on 2.11.
EXAMPLE = '{"organization": "org-123456", "api_version": "v1", "request_timeout": 10, "retry_deadline": 120}'


def _field(label: str, description: str, kind: str = "string", **schema: Any) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": [kind, "null"], **schema}}


#: The fields of the extra. Empty means the default: none is filled in, or it would be stored, and a later
#: default of this package would not count. (The choice is never empty: a person should see what is chosen.)
FIELDS = {
    "organization": _field(
        "Organization",
        "Id of the organization whose balance is asked for, such as org-123456. Empty: the API key's default "
        "organization, which is also the one that image generation bills.",
    ),
    "api_version": _field(
        "API version",
        "auto asks v1alpha first, then v1, and stays with what answers. Choose v1 if the Test button says "
        "so: it saves a request in each process.",
        enum=["auto", "v1alpha", "v1"],
        default="auto",
    ),
    "request_timeout": _field(
        "Request timeout",
        "Seconds to connect, and seconds to wait for an answer. Empty: 10.",
        "number",
        minimum=0,
        maximum=86400,
    ),
    "retry_deadline": _field(
        "Retry deadline",
        "Seconds that one call of an operator may spend on retries; 0 for none. Empty: 120. Gates ask once, "
        "and again at their next look.",
        "number",
        minimum=0,
        maximum=86400,
    ),
    "client_id": _field(
        "Client id",
        "Name of your application, sent to Stability AI with each call. Empty: airflow-provider-stability.",
    ),
    "user_agent": _field("User agent", "Sent with each call, for gateways that ask for one."),
    "proxy": _field(
        "Proxy",
        "URL of a proxy, such as http://proxy.example.com:3128, with user and password if it asks for them. "
        "Empty: what the environment says.",
        format="password",
    ),
    "ca_bundle": _field(
        "CA bundle",
        "Path, on workers and triggerers, of the certificates that a gateway's own one is checked with. "
        "Empty: what the environment says, else the usual ones.",
    ),
    "allow_http": _field(
        "Allow plain http",
        "The API key then travels in clear. Only for a gateway inside your own network; a host on loopback "
        "does not need it.",
        "boolean",
    ),
}


def behaviour() -> dict[str, Any]:
    """Return what the hook tells Airflow up to 3.1 about its form."""
    return {
        "hidden_fields": HIDDEN,
        "relabeling": LABELS,
        "placeholders": {**PLACEHOLDERS, "extra": EXAMPLE},
    }


def metadata() -> dict[str, Any]:
    """Return what the provider's metadata says about the form, for Airflow 3.2 and later."""
    return {
        "conn-fields": FIELDS,
        "ui-field-behaviour": {
            "hidden-fields": HIDDEN,
            "relabeling": LABELS,
            "placeholders": PLACEHOLDERS,
        },
    }
