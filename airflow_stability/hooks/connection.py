"""The fields of an Airflow connection of type ``stability``, and the function that makes a client from them.

The hook uses this module, and so does the feed in a triggerer, which reads connections by itself.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from airflow_stability import metrics
from airflow_stability.client.client import DEFAULT_BASE_URL, DEFAULT_CLIENT_ID, StabilityClient
from airflow_stability.client.spend_recorder import LedgerSettings
from airflow_stability.compat import AirflowNotFoundException
from airflow_stability.errors import (
    StabilityConfigurationError,
    StabilityConnectionNotFoundError,
    StabilityError,
    StabilityTransientError,
)
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.validation import DEFAULT_REQUEST_TIMEOUT, DEFAULT_RETRY_DEADLINE, safe_repr

if TYPE_CHECKING:
    from airflow_stability.client.durable_folder import Storage
    from airflow_stability.client.spend_recorder import Recorder
    from airflow_stability.compat import Connection


class ConnectionExtra(BaseModel):
    """The fields of the connection's extra. Numbers and booleans may be strings, as in a URI."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    organization: str | None = None
    api_version: str = "auto"
    request_timeout: float = DEFAULT_REQUEST_TIMEOUT
    retry_deadline: float = DEFAULT_RETRY_DEADLINE
    client_id: str = DEFAULT_CLIENT_ID
    user_agent: str | None = None
    proxy: str | None = Field(default=None, repr=False)  # it may hold a password
    ca_bundle: str | None = None
    allow_http: bool = False
    ledger_conn_id: str | None = None
    budget: str | None = None
    prices: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None

    @field_validator("prices", mode="before")
    @classmethod
    def _read_prices(cls, value: object) -> object:
        """Take a JSON object as a string, too: a form has no other field for one."""
        return json.loads(value) if isinstance(value, str) else value


def unknown_fields(connection: Connection) -> list[str]:
    """Return the names in the extra that have no meaning here, most likely typing errors.

    :raises StabilityConfigurationError: the extra is not a JSON object.
    """
    return sorted(set(_read_extra(connection)) - set(ConnectionExtra.model_fields))


def client_from_connection(connection: Connection, *, retry_deadline: float | None = None) -> StabilityClient:
    """Return the client that a connection describes.

    :param connection: of type ``stability``; its password is the API key.
    :param retry_deadline: seconds that one call may spend on retries; None for the extra's value.
    :raises StabilityConfigurationError: the connection is of another type, or a field is unusable. The text
        names the connection and the field, and shows no secret.
    """
    conn_id = connection.conn_id
    try:
        _check_type(connection.conn_type)
        if connection.login and not connection.password:
            raise StabilityConfigurationError(
                "The API key is missing: set it as the password, not as the login, which means nothing here."
            )
        fields = ConnectionExtra.model_validate(_read_extra(connection))
        if retry_deadline is not None:
            fields = fields.model_copy(update={"retry_deadline": retry_deadline})
        client = StabilityClient(
            connection.password or "",
            base_url=_base_url(connection.host, connection.port, connection.schema),
            **fields.model_dump(exclude={"ledger_conn_id", "budget", "prices"}),
        )
        client.storage = _storage
        client.on_paid = functools.partial(_count_credits, connection.conn_id, fields.prices or {})
        if (ledger := _ledger(fields)) is not None:
            client.ledger = ledger
            client.make_recorder = _recorder(connection.conn_id, fields, ledger)
        return client
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


def connection_settings(connection: Connection) -> tuple[object, ...]:
    """Return everything that a client is made from, to tell whether a connection has changed."""
    where = (connection.host, connection.port, connection.schema)
    return (connection.password, *where, connection.extra, connection.conn_type)


def reading_failure(conn_id: str, error: Exception) -> StabilityError:
    """Return our error for one that Airflow's database, API or secrets backend raised for a connection.

    Raise it outside the handler. The original's text or context may hold the key, so our text names only its
    class.
    """
    if isinstance(error, AirflowNotFoundException):  # its text is the connection's id
        return StabilityConnectionNotFoundError(f"{error}. {StabilityConnectionNotFoundError.advice}")
    kind = type(error).__name__
    if isinstance(error, TypeError | ValueError):
        return StabilityConfigurationError(
            f"Connection {conn_id!r} is neither a connection URI nor the JSON of one ({kind})."
        )
    if isinstance(error, PermissionError):  # what Airflow 3 raises if a secrets backend refuses
        return StabilityConfigurationError(f"Connection {conn_id!r} may not be read from here ({kind}).")
    return StabilityTransientError(
        f"Connection {conn_id!r} could not be read just now ({kind}); the log of Airflow has more."
    )


def _check_type(conn_type: str | None) -> None:
    """Refuse the connection of another service: its password must not be sent to an API that it is not for.

    A connection without a type may be another service's, too.
    """
    if conn_type != StabilityHook.conn_type:
        has = f"is of the type {conn_type!r}" if conn_type else "has no type"
        raise StabilityConfigurationError(
            f"it {has}, so its password is sent nowhere: name a connection of the type "
            f"{StabilityHook.conn_type!r}, or give this one that type if its password is an API key."
        )


def _count_credits(conn_id: str, prices: dict[str, float], endpoint: str, model: str | None) -> None:
    """Count the credits of a call that was paid for, if its price is known."""
    from airflow_stability.prices import price_if_known

    credits = price_if_known(endpoint, model, prices)
    if credits is not None:
        metrics.spent(conn_id, _storage().caller(), endpoint, credits)


def _ledger(fields: ConnectionExtra) -> LedgerSettings | None:
    if fields.ledger_conn_id is not None:
        return LedgerSettings(fields.ledger_conn_id, fields.budget)
    if fields.budget is not None:
        raise StabilityConfigurationError(
            f"extra.budget is {safe_repr(fields.budget)}, and a budget needs a ledger: set "
            "extra.ledger_conn_id to a connection to its database, or leave budget out."
        )
    return None


def _recorder(conn_id: str, fields: ConnectionExtra, ledger: LedgerSettings) -> Callable[[], Recorder]:
    def make() -> Recorder:
        from airflow_stability.hooks.spend_recorder import LedgerRecorder

        return LedgerRecorder(
            ledger,
            conn_id=conn_id,
            organization=fields.organization,
            prices=fields.prices or {},
        )

    return make


def _storage() -> Storage:
    from airflow_stability.hooks.durable_folder import AirflowStorage

    return AirflowStorage()


def _read_extra(connection: Connection) -> dict[str, Any]:
    """Return the fields of the extra that are set.

    Airflow's ``extra_dejson`` is not used. It treats an extra that is not JSON as empty, and then the balance
    of the wrong organization would be watched.
    """
    try:
        extra = json.loads(connection.extra or "{}")
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise StabilityConfigurationError("extra must be a JSON object, and is not.")
    # A form sends an empty string for a field that was emptied.
    return {name: value for name, value in extra.items() if value is not None and value != ""}


def _base_url(host: str | None, port: int | None, schema: str | None) -> str:
    """Return the URL made of host, port and schema. Each has a default, and the host may be a whole URL."""
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
    if port or port == 0:  # the URL's check refuses 0; left out, it would mean the default port
        address, slash, path = host.partition("/")
        host = f"{address}:{port}{slash}{path}"
    return f"{schema or 'https'}://{host}"
