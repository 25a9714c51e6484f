"""What the fields of an Airflow connection of type ``stability`` mean. Makes a client of them.

For the hook, and for whatever reads the connection by itself: there is one way from a connection to a
client. Calls nothing of Airflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_stability.client.client import DEFAULT_BASE_URL, DEFAULT_CLIENT_ID, StabilityClient
from airflow_stability.errors import StabilityConfigurationError

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
    proxy: str | None = None
    ca_bundle: str | None = None
    allow_http: bool = False


def unknown_fields(extra: Mapping[str, Any]) -> list[str]:
    """Return the names in the extra that mean nothing here: mistyped ones, most likely."""
    return sorted(set(extra) - set(ConnectionExtra.model_fields))


def client_from_connection(
    connection: Connection, extra: Mapping[str, Any], *, retry_deadline: float | None = None
) -> StabilityClient:
    """Make the client that a connection describes.

    :param connection: of type ``stability``; its password is the API key.
    :param extra: its extra, parsed. Passed along, because reading it calls Airflow, which not every
        thread may do.
    :param retry_deadline: seconds that one call may spend on retries, instead of the extra's.
    :raises StabilityConfigurationError: a field that cannot work. The text names the connection and the
        field, and shows no secret.
    """
    try:
        fields = ConnectionExtra.model_validate(
            # An emptied field of a form arrives as an empty string: nothing was set.
            {name: value for name, value in extra.items() if value is not None and value != ""}
        )
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
        problem = f"extra.{first['loc'][0]} cannot be used: {first['msg'].lower()}."
    except StabilityConfigurationError as error:
        problem = str(error)
    raise StabilityConfigurationError(f"Connection {connection.conn_id!r}: {problem}")


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
    if port:
        address, slash, path = host.partition("/")
        host = f"{address}:{port}{slash}{path}"
    return f"{schema or 'https'}://{host}"
