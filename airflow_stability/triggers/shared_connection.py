"""What a triggerer knows of one connection: all feeds of the connection share it.

- The connection is read on the event loop's side, never in a thread of ours, and at most once per interval
  for all feeds. Airflow's supervisor answers one request at a time, and is slow with thousands of triggers.
- A lock-out belongs to the API key, so all feeds wait it out together.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from airflow_stability.compat import read_connection
from airflow_stability.rules.crossing import WatchedWallet
from airflow_stability.rules.lockout import Lockout

if TYPE_CHECKING:
    # At run time they are loaded with the first poll, because a DAG file loads the triggers with the sensor.
    from airflow_stability.client import Account, StabilityClient
    from airflow_stability.compat import Connection


class SharedConnection:
    """One connection in one event loop. Times are the loop's.

    :param conn_id: the connection's id.
    """

    def __init__(self, conn_id: str) -> None:
        self.conn_id = conn_id
        self.lockout = Lockout()
        #: When the last successful read began.
        self.read_at = 0.0
        #: Numbers for the connection's version and for its API key: each change gives a new number.
        self.version = 0
        self.key = 0
        self._connection: Connection | None = None
        self._settings: tuple[object, ...] | None = None
        self._reading = asyncio.Lock()

    def seconds_locked_out(self) -> float:
        """Return for how many more seconds the server wants no call with the key."""
        return self.lockout.seconds_left(asyncio.get_running_loop().time())

    def lock_out(self, seconds: float | None) -> None:
        """Take over for how many seconds the server wants no call; None if it named no time."""
        self.lockout.extend(seconds, asyncio.get_running_loop().time())

    @property
    def key_id(self) -> int:
        """A number for the API key, unlike :attr:`key` the same in all of the process. Never store it."""
        return hash(self._connection and self._connection.password)

    def forget(self) -> None:
        """Forget the API key, because no feed uses the connection any more."""
        self._connection = self._settings = None

    async def read(self, since: float) -> None:
        """Read the connection, unless a feed has read it since the given time.

        :raises StabilityError: Airflow cannot provide it.
        """
        async with self._reading:
            if self._connection is None or self.read_at < since:
                began = asyncio.get_running_loop().time()
                self._take(await self._read())
                self.read_at = began

    def make_client(self) -> StabilityClient:
        """Return a new client of the connection as it was read.

        :raises StabilityConfigurationError: a field of the connection is unusable.
        """
        from airflow_stability.hooks.connection import client_from_connection

        assert self._connection is not None  # not in a variable, which a traceback could show
        return client_from_connection(self._connection, retry_deadline=0)

    async def _read(self) -> Connection:
        from airflow_stability.hooks.connection import reading_failure

        try:
            return await read_connection(self.conn_id)
        except Exception as error:
            failure = reading_failure(self.conn_id, error)
        raise failure

    def _take(self, connection: Connection) -> None:
        from airflow_stability.hooks.connection import connection_settings

        settings = connection_settings(connection)
        if settings != self._settings:
            self.version += 1
            if self._settings is None or settings[0] != self._settings[0]:
                self.key += 1
        self._connection, self._settings = connection, settings


class FeedClient:
    """The client of one feed, made anew when the connection has changed. It serves one thread at a time.

    :param connection: the connection, which other feeds share.
    """

    def __init__(self, connection: SharedConnection) -> None:
        self._connection = connection
        self._client: StabilityClient | None = None
        #: The numbers of the connection's version and of its API key that the client was made with.
        self.version = 0
        self.key = 0
        self._key_that_worked: int | None = None
        self._key_id = 0
        #: When the account of the client's API key may be requested, in the loop's time.
        self.account_due_at = 0.0
        self._default_organization: str | None = None

    @property
    def key_has_worked(self) -> bool:
        """Whether the client's API key has read a balance for this feed."""
        return self._key_that_worked == self.key

    def take_note_of_success(self) -> None:
        """Take note that the client has read a balance."""
        self._key_that_worked = self.key

    def take_note_of_account(self, account: Account | None) -> None:
        """Take note of the account of the client's API key; None if the API refuses to show it."""
        self.account_due_at = math.inf
        default = account and account.default_organization
        self._default_organization = default.id if default else None

    def wallet(self, organization: str | None) -> WatchedWallet:
        """Return whose credits a balance of the client counts.

        :param organization: whose balance it is; None for the key's default.
        """
        assert self._client is not None  # it has read the balance
        known = organization or self._default_organization
        return WatchedWallet(known, self._client.base_url, (organization, self._key_id))

    def get(self) -> StabilityClient:
        """Return the client.

        :raises StabilityConfigurationError: a field of the connection is unusable.
        """
        if self._client is None or self.version != self._connection.version:
            self.close()
            self.version, self.key = self._connection.version, self._connection.key
            self._client = self._connection.make_client()
            self._key_id = self._connection.key_id
            self.account_due_at, self._default_organization = 0.0, None
        return self._client

    def close(self) -> None:
        """Close the HTTP connections."""
        if self._client is not None:
            self._client.close()
            self._client = None
