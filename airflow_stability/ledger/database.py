"""The database of the ledger: its transactions, which are tried again; its clock; and its errors, made ours.

The times in the tables are the database's, because the clocks of workers differ. Asking for the time would
cost each transaction a round trip. So this process compares its clock with the database's from time to time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import event, inspect, select, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from airflow_stability.errors import StabilityConfigurationError, StabilityLedgerUnavailableError
from airflow_stability.ledger import schema
from airflow_stability.ledger.postgresql_watchdog import Watchdog

_log = logging.getLogger(__name__)

#: How often a transaction is tried. The database may abort one because of another.
TRIES = 4

#: Seconds to pause after the first try. After the second, the pause is twice as long, and so on.
PAUSE = 0.05

#: Seconds after which the clocks are compared again.
CLOCK_SECONDS = 600.0

#: Seconds for connecting, and for a transaction.
TIMEOUT = 15

_Result = TypeVar("_Result")

_TIME_OF = {
    "postgresql": "SELECT clock_timestamp() AT TIME ZONE 'UTC'",
    "mysql": "SELECT UTC_TIMESTAMP(6)",
}


def engine_arguments(dialect: str) -> dict[str, Any]:
    """Return the arguments of an engine on which nothing hangs for long.

    :param dialect: SQLAlchemy's name of the kind of database.
    """
    connect: dict[str, Any] = {}
    more: dict[str, Any] = {}
    if dialect == "postgresql":
        # No timeouts of the server's own: PgBouncer refuses a connection with such options.
        connect = {"connect_timeout": TIMEOUT}
    elif dialect == "mysql":
        connect = {"connect_timeout": TIMEOUT}
        # By default, a transaction would not see what others have held since it began.
        more = {"isolation_level": "READ COMMITTED"}
    elif dialect == "sqlite":
        connect = {"timeout": TIMEOUT, "check_same_thread": False}
    # No pool_pre_ping: it would cost each transaction a ping. A broken pooled connection costs only one try.
    return {"future": True, "connect_args": connect, **more}


def adapt(engine: Engine) -> Engine:
    """Adapt a new engine to what the ledger needs, and return it.

    On SQLite, each transaction begins as a writer. If it became one later, another writer could come first.
    On MySQL, the client gives up on a server that does not answer. On PostgreSQL, the watchdog does that.
    """
    if engine.dialect.name == "mysql" and engine.dialect.driver in ("mysqldb", "pymysql"):

        @event.listens_for(engine, "do_connect")
        def limit(_dialect: Any, _record: Any, _arguments: Any, more: dict[str, Any]) -> None:
            more |= {"read_timeout": TIMEOUT, "write_timeout": TIMEOUT}

    if engine.dialect.name != "sqlite":
        return engine

    @event.listens_for(engine, "connect")
    def leave_transactions_alone(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


class DatabaseClock:
    """The database's clock, which this process compares with its own from time to time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ahead: timedelta | None = None
        self._compared_at = 0.0
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """Return the database's time in UTC, without a time zone."""
        with self._lock:
            if self._ahead is None or time.monotonic() - self._compared_at > CLOCK_SECONDS:
                self._ahead = self._compare()
            return datetime.min + self._ahead + timedelta(seconds=time.monotonic())

    def _compare(self) -> timedelta:
        """Return by how much the database's clock is ahead of this process's monotonic one."""
        query = _TIME_OF.get(self._engine.dialect.name)
        before = time.monotonic()
        if query is None:  # SQLite's clock is this machine's
            theirs = datetime.now(UTC).replace(tzinfo=None)
        else:
            with self._engine.connect() as connection:
                before = time.monotonic()
                theirs = connection.execute(text(query)).scalar_one()
        self._compared_at = time.monotonic()
        return theirs - datetime.min - timedelta(seconds=(before + self._compared_at) / 2)


class Database:
    """The ledger's database, behind a SQLAlchemy engine.

    :param engine: made with :func:`engine_arguments` and adapted by :func:`adapt`.
    :param name: how texts name the database, such as by the id of its connection.
    :param secrets: texts that no error may show.
    :param clock: returns the time in UTC, without a time zone; default: the database's.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        secrets: tuple[str, ...] = (),
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self.engine = engine
        self.name = name
        self._secrets = secrets
        self._clock = clock or DatabaseClock(engine).now
        self._checked = False
        self._watchdog = Watchdog(engine)

    def now(self) -> datetime:
        """Return the database's time in UTC, without a time zone.

        :raises StabilityLedgerUnavailableError: the database cannot be reached.
        """
        return self._try(self._clock)

    def run(self, work: Callable[[Connection, datetime], _Result]) -> _Result:
        """Run a transaction.

        It is run again if the database has aborted it, or the connection broke. So it must have the same
        effect even if an earlier try was committed after all.

        :param work: gets the connection and the database's time, without a time zone.
        :raises StabilityLedgerUnavailableError: the database cannot be reached, or did not answer in time.
        :raises StabilityConfigurationError: the tables are missing, or of another version.
        """
        if not self._checked:
            self.check_version()
        return self._try(lambda: self._transaction(work))

    def check_version(self) -> None:
        """Check that the tables are there and that this release knows them.

        :raises StabilityLedgerUnavailableError: the database cannot be reached.
        :raises StabilityConfigurationError: the tables are missing, or of another version.
        """
        version = self._try(self.version)
        if version is None:
            raise StabilityConfigurationError(
                f"The ledger has no tables in {self.name}: run `airflow stability ledger init` once."
            )
        if version < schema.VERSION:
            raise StabilityConfigurationError(
                f"The ledger's tables in {self.name} have version {version}, and this release needs "
                f"{schema.VERSION}: run `airflow stability ledger init` once."
            )
        if version > schema.VERSION:
            raise StabilityConfigurationError(
                f"The ledger's tables in {self.name} have version {version}, and this release knows up to "
                f"{schema.VERSION}: install a later release of airflow-provider-stability here."
            )
        self._checked = True

    def version(self) -> int | None:
        """Return the version of the tables; None if there are none."""
        with self.engine.connect() as connection:
            if not inspect(connection).has_table(schema.versions.name):
                return None
            found: int | None = connection.execute(select(schema.versions.c.version)).scalar()
            return found

    def init(self) -> int:
        """Make the tables if they are missing, and return their version.

        :raises StabilityConfigurationError: this is Airflow's own database, or the tables are too new.
        """

        def make() -> None:
            made_at = self._clock()
            with self.engine.begin() as connection:
                if inspect(connection).has_table("task_instance"):
                    raise StabilityConfigurationError(
                        f"{self.name} is Airflow's own database, which a ledger must not share: tasks may "
                        "not reach it, and Airflow's upgrades change it. Name another database or schema."
                    )
                schema.metadata.create_all(connection)
                if connection.execute(select(schema.versions.c.version)).scalar() is None:
                    row = {"version": schema.VERSION, "made_at": made_at}
                    connection.execute(schema.versions.insert().values(row))

        try:
            self._try(make)
        except IntegrityError:  # somebody has just made them
            self._try(make)
        self.check_version()
        return schema.VERSION

    def _transaction(self, work: Callable[[Connection, datetime], _Result]) -> _Result:
        now = self._clock()
        with self.engine.begin() as connection:
            return work(connection, now)

    def _try(self, work: Callable[[], _Result]) -> _Result:
        failure = None
        for number in range(1, TRIES + 1):
            try:
                with self._watchdog.limit(TIMEOUT) as use:
                    return work()
            except IntegrityError:
                raise  # the caller handles it
            except SQLAlchemyError as error:
                failure = "it does not answer" if use.was_cut else self._describe(error)
                if number == TRIES or not isinstance(error, DBAPIError):
                    break
            time.sleep(PAUSE * number)
        # Raised outside the handler, so that it is not chained to the original, which may hold a password.
        raise StabilityLedgerUnavailableError(
            f"The ledger in {self.name} is out of reach: {failure}. {StabilityLedgerUnavailableError.advice}"
        )

    def _describe(self, error: SQLAlchemyError) -> str:
        original = getattr(error, "orig", None) or error
        words = f"{type(original).__name__}: {original}".split()
        shown = " ".join(words).rstrip(".")
        for secret in self._secrets:
            shown = shown.replace(secret, "***")
        return shown[:300]
