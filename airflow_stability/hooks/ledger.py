"""The ledger behind an Airflow connection to a database: PostgreSQL, MySQL or SQLite.

It is opened through the database's own hook, so everything works that this type of connection offers.
SQLAlchemy comes with Airflow.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

from airflow_stability.compat import BaseHook
from airflow_stability.errors import (
    StabilityConfigurationError,
    StabilityConnectionNotFoundError,
    StabilityError,
    StabilityLedgerUnavailableError,
    StabilityTransientError,
)
from airflow_stability.hooks.connection import client_from_connection, reading_failure
from airflow_stability.ledger.database import Database, adapt, engine_arguments
from airflow_stability.ledger.ledger import Ledger

if TYPE_CHECKING:
    from airflow_stability.compat import Connection

#: SQLAlchemy's names of the databases that can hold a ledger, by the type of the connection.
DIALECTS = {"postgres": "postgresql", "mysql": "mysql", "sqlite": "sqlite"}

#: The ledgers of this process, by connection, with a hash of the settings that they were opened with.
_open: dict[str, tuple[bytes, Ledger]] = {}


def _leave_to_parent() -> None:
    """Use none of the parent's database connections in a process that was forked."""
    for _, ledger in _open.values():
        ledger.database.engine.dispose(close=False)
    _open.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


def ledger_conn_id_of(stability_conn_id: str) -> str:
    """Return the id of the ledger's connection, which the extra of a Stability connection names.

    :param stability_conn_id: a connection of type ``stability``.
    :raises StabilityConnectionNotFoundError: there is no such connection.
    :raises StabilityConfigurationError: its extra names no ledger, or the connection is unusable.
    :raises StabilityTransientError: the connection could not be read just now.
    """
    hint = ", or name that connection with --ledger-conn-id"
    return ledger_conn_id_in(_read(stability_conn_id), hint=hint)


def ledger_conn_id_in(connection: Connection, *, hint: str = "") -> str:
    """Return the id of the ledger's connection that a Stability connection names.

    :param hint: more advice for the error text, if the connection names no ledger.
    :raises StabilityConfigurationError: see :func:`ledger_conn_id_of`.
    """
    with client_from_connection(connection) as client:
        if client.ledger is not None:
            return client.ledger.conn_id
    raise StabilityConfigurationError(
        f"Connection {connection.conn_id!r} names no ledger: set ledger_conn_id in its extra to the id of a "
        f"connection to a database{hint}."
    )


def open_ledger(conn_id: str) -> Ledger:
    """Return the ledger of a connection. The connection is read each time, the engine is kept.

    :param conn_id: a connection to a database.
    :raises StabilityConnectionNotFoundError: there is no such connection.
    :raises StabilityConfigurationError: its database cannot hold a ledger, or a provider is missing for it.
    :raises StabilityTransientError: the connection could not be read just now.
    """
    return ledger_of(_read(conn_id))


def unread_failure(error: StabilityError) -> StabilityError:
    """Return the error of a task whose ledger could not be opened: it waits if that may pass.

    Airflow also says "not found" if it could not ask its own API server or a secrets backend.
    """
    if isinstance(error, StabilityConnectionNotFoundError | StabilityTransientError):
        return StabilityLedgerUnavailableError(f"The ledger's connection cannot be read: {error}")
    return error


def ledger_of(connection: Connection) -> Ledger:
    """Return the ledger of a connection that has been read.

    On an event loop, use :func:`~airflow_stability.compat.call_in_thread`.

    :raises StabilityConfigurationError: see :func:`open_ledger`.
    """
    settings = hashlib.sha256(repr((connection.get_uri(), connection.extra)).encode()).digest()
    known = _open.get(connection.conn_id)
    if known is not None and known[0] == settings:
        return known[1]
    ledger = _make(connection)
    _open[connection.conn_id] = settings, ledger
    if known is not None:
        known[1].database.engine.dispose()
    return ledger


def _read(conn_id: str) -> Connection:
    try:
        return BaseHook.get_connection(conn_id)
    except Exception as error:
        failure = reading_failure(conn_id, error)
    raise failure


def _make(connection: Connection) -> Ledger:
    name = f"connection {connection.conn_id!r}"
    dialect = DIALECTS.get(connection.conn_type or "")
    if dialect is None:
        raise StabilityConfigurationError(
            f"The ledger's {name} is of type {connection.conn_type!r}, and a ledger needs a database: name "
            f"a connection of one of the types {', '.join(DIALECTS)}."
        )
    secrets = tuple(filter(None, [connection.password]))
    try:
        hook: Any = connection.get_hook()  # type: ignore[no-untyped-call]  # Airflow's
        # Some hooks read their connection again, which must not happen in a thread of a triggerer.
        hook.get_connection = lambda _conn_id: connection
        engine = hook.get_sqlalchemy_engine(engine_kwargs=engine_arguments(dialect))
        return Ledger(Database(adapt(engine), name, secrets))
    except ImportError as error:
        problem = f"{type(error).__name__}: {error}. Install the provider of its database, and its driver"
    except StabilityError:
        raise
    except Exception as error:  # whatever a provider's hook raises
        problem = type(error).__name__
    # Some tools show the variables of a traceback's frames.
    connection = secrets = hook = None  # type: ignore[assignment]
    raise StabilityConfigurationError(f"The ledger's {name} cannot be used ({problem}).")
