"""What the fields of an Airflow connection of type ``stability`` mean. Makes a client of them.

For the hook, and for whatever reads the connection by itself: there is one way from a connection to a
client. Calls nothing of Airflow.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_stability.client.client import DEFAULT_BASE_URL, DEFAULT_CLIENT_ID, StabilityClient
from airflow_stability.errors import StabilityConfigurationError, StabilityError, StabilityTransientError
from airflow_stability.validation import safe_repr

if TYPE_CHECKING:
    from airflow_stability.compat import Connection


class ConnectionExtra(BaseModel):
    """The fields of the connection's extra. Numbers and booleans may be strings, as in a URI."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    organization: str | None = None
    api_version: str = "auto"
    request_timeout: float = 10.0
    retry_deadline: float = 120.0
    client_id: str = DEFAULT_CLIENT_ID
    user_agent: str | None = None
    proxy: str | None = Field(default=None, repr=False)  # it may hold a password
    ca_bundle: str | None = None
    allow_http: bool = False


def unknown_fields(connection: Connection) -> list[str]:
    """Return the names in the extra that mean nothing here: mistyped ones, most likely.

    :raises StabilityConfigurationError: the extra is no JSON object.
    """
    return sorted(set(_read_extra(connection)) - set(ConnectionExtra.model_fields))


def client_from_connection(connection: Connection, *, retry_deadline: float | None = None) -> StabilityClient:
    """Make the client that a connection describes.

    :param connection: of type ``stability``; its password is the API key.
    :param retry_deadline: seconds that one call may spend on retries, instead of the extra's.
    :raises StabilityConfigurationError: a field that cannot work. The text names the connection and the
        field, and shows no secret.
    """
    conn_id = connection.conn_id
    try:
        if connection.login and not connection.password:
            raise StabilityConfigurationError(
                "The API key is missing: set it as the password, not as the login, which means nothing here."
            )
        fields = ConnectionExtra.model_validate(_read_extra(connection))
        return StabilityClient(
            connection.password or "",
            base_url=_base_url(connection.host, connection.port, connection.schema),
            api_version=fields.api_version,
            organization=fields.organization,
            request_timeout=fields.request_timeout,
            retry_deadline=fields.retry_deadline if retry_deadline is None else retry_deadline,
            client_id=fields.client_id,
            user_agent=fields.user_agent,
            proxy=fields.proxy,
            ca_bundle=fields.ca_bundle,
            allow_http=fields.allow_http,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = str(first["loc"][0])
        got = "" if field == "proxy" else f", but is {safe_repr(_read_extra(connection)[field])}"
        problem = f"extra.{field}: {first['msg'].lower()}{got}."
    except StabilityConfigurationError as error:
        problem = str(error)
    # Some tools show the variables of a traceback's frames, and Airflow's Connection shows its password.
    connection = fields = None  # type: ignore[assignment]
    raise StabilityConfigurationError(f"Connection {conn_id!r}: {problem}")


#: The name of the error for a connection that is not there.
CONNECTION_NOT_FOUND = "connection_not_found"


def missing_connection(error: Exception) -> StabilityConfigurationError:
    """Return what a gate makes of Airflow's word that there is no such connection."""
    return StabilityConfigurationError(
        f"{error}. Make the connection, or correct stability_conn_id; if it is there, Airflow could not read "
        "it, and its log says why.",
        name=CONNECTION_NOT_FOUND,
    )


def connection_settings(connection: Connection) -> tuple[object, ...]:
    """Return all that a client is made of: two connections with the same are the same to us."""
    return (connection.password, connection.host, connection.port, connection.schema, connection.extra)


def reading_failure(conn_id: str, error: Exception) -> StabilityError:
    """Return what it means that Airflow could not hand out a connection, other than "there is none".

    The text names no more than the kind of error: the original may hold the key.
    """
    kind = type(error).__name__
    if isinstance(error, TypeError | ValueError):
        return StabilityConfigurationError(
            f"Connection {conn_id!r} is neither a connection URI nor the JSON of one ({kind})."
        )
    if isinstance(error, PermissionError):  # what Airflow 3 raises for a secrets backend that says no
        return StabilityConfigurationError(f"Connection {conn_id!r} may not be read from here ({kind}).")
    return StabilityTransientError(
        f"Connection {conn_id!r} could not be read just now ({kind}); the log of Airflow has more."
    )


def _read_extra(connection: Connection) -> dict[str, Any]:
    """Return the fields of the extra that are set.

    Not with Airflow's ``extra_dejson``, which takes an extra that is no JSON for none at all: another wallet
    than the one that was meant would be watched.
    """
    try:
        extra = json.loads(connection.extra or "{}")
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise StabilityConfigurationError("extra must be a JSON object, and is not.")
    # An emptied field of a form arrives as an empty string.
    return {name: value for name, value in extra.items() if value is not None and value != ""}


def _base_url(host: str | None, port: int | None, schema: str | None) -> str:
    """Put host, port and schema together; each has a default, and the host may be a whole URL."""
    host = (host or "").strip() or urlsplit(DEFAULT_BASE_URL).netloc
    schema = (schema or "").strip().lower()
    if "://" in host:
        given, host = host.split("://", 1)
        if schema and schema != given.lower():
            raise StabilityConfigurationError(
                f"host begins with {given}:// but schema says {schema}: remove one of them."
            )
        schema = given.lower()
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"  # a bare IPv6 address
    if port or port == 0:  # which the URL's check refuses: it would mean the default port
        address, slash, path = host.partition("/")
        host = f"{address}:{port}{slash}{path}"
    return f"{schema or 'https'}://{host}"
