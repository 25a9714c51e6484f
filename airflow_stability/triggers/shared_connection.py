"""What a triggerer knows of one connection, and of one API key: all feeds with the same one share it.

- The connection is read on the event loop's side, never in a thread of ours, and at most once per interval
  for all feeds. Airflow's supervisor answers one request at a time, and is slow with thousands of triggers.
- A lock-out belongs to the API key, so all feeds of all connections with the key wait it out together. They
  go on reading the connection meanwhile, because another key may be used at once.
- Whose credits a balance counts depends on the key, too, where neither a task nor the connection names an
  organization.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING

from airflow_stability.compat import read_connection
from airflow_stability.rules.crossing import WatchedWallet
from airflow_stability.rules.lockout import Lockout
from airflow_stability.triggers import http_calls

if TYPE_CHECKING:
    # At run time they are loaded with the first poll, because a DAG file loads the triggers with the sensor.
    from airflow_stability.client import StabilityClient
    from airflow_stability.client.spend_recorder import LedgerSettings
    from airflow_stability.compat import Connection


#: Seconds after which the account is requested again, if it could not be had just then.
ACCOUNT_SECONDS = 60.0

#: Seconds after which a key is asked again which organization is its default, or refused the answer: people
#: change the default.
DEFAULT_ORGANIZATION_SECONDS = 600.0

#: What tells one wallet from another: the address of the API, and an organization. If that is unknown, it is
#: the key's default organization, and the fingerprint of the key stands for it.
Wallet = tuple[str, str | bytes]


def are_perhaps_the_same(one: Wallet, other: Wallet) -> bool:
    """Tell whether two wallets may have the same credits: a key's default may be any organization."""
    return one == other or (one[0] == other[0] and bytes in (type(one[1]), type(other[1])))


class SharedKey:
    """One API key at one address, in one event loop. The key itself is not kept.

    :param address: the base URL of the API.
    :param fingerprint: tells the key from others in this process.
    """

    def __init__(self, address: str, fingerprint: bytes) -> None:
        self._address = address
        self._fingerprint = fingerprint
        self.lockout = Lockout()
        #: When it was met.
        self.locked_out_at = -math.inf
        #: The organizations whose waiting tasks are paced with this key. None is the key's default.
        self.paced: set[str | None] = set()
        #: The key's default organization, as the account said last; None if it is not known.
        self.default_organization: str | None = None
        #: When the account may be requested, in the loop's time: it names the default organization.
        self.request_account_at = 0.0

    def lock_out(self, seconds: float | None, met_at: float) -> None:
        """Take over for how many seconds the server wants no call; None if it named no time."""
        if seconds:
            self.lockout.extend(seconds, asyncio.get_running_loop().time())
            self.locked_out_at = max(self.locked_out_at, met_at)

    @property
    def is_ambiguous(self) -> bool:
        """Whether tasks that name an organization may wait for the same credits as tasks that name none."""
        return self.default_organization is None and self.default_matters

    @property
    def default_matters(self) -> bool:
        """Whether it makes a difference to the pace which organization is the key's default."""
        return None in self.paced and (len(self.paced) > 1 or self.default_organization is not None)

    def wallet(self, organization: str | None) -> Wallet:
        """Return the wallet of an organization, or of the key's default."""
        return self._address, organization or self.default_organization or self._fingerprint

    def watched_wallet(self, organization: str | None) -> WatchedWallet:
        """Return the same, and how a balance of it was requested."""
        known = organization or self.default_organization
        return WatchedWallet(known, self._address, (organization, self._fingerprint))

    def wallets_perhaps_the_same(self, organization: str | None) -> list[Wallet]:
        """Return the other wallets of the key that may be this organization's."""
        if not self.is_ambiguous:
            return []
        return [self.wallet(each) for each in ([None] if organization else self.paced - {None})]


class SharedConnection:
    """One connection in one event loop. Times are the loop's.

    :param conn_id: the connection's id.
    :param keys: what is known of all API keys, by base URL and fingerprint.
    :param its_calls: the connection's calls.
    """

    def __init__(
        self, conn_id: str, keys: dict[tuple[str, bytes], SharedKey], its_calls: http_calls.Calls
    ) -> None:
        self.conn_id = conn_id
        self.calls = its_calls
        self._keys = keys
        #: The API key that was used last; None before the first client is made.
        self._shared_key: SharedKey | None = None
        #: The lock-outs that workers have handed over, and when the last one was.
        self._handed_over = Lockout()
        self._handed_over_at = 0.0
        #: When a worker has met one, and when one last got a balance.
        self._met_at = self._answered_at = -math.inf
        #: Tells the API key that was read last from others.
        self._fingerprint: bytes | None = None
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
        now = asyncio.get_running_loop().time()
        lockouts = [self._handed_over, *([self._shared_key.lockout] if self._shared_key else [])]
        return max(lockout.seconds_left(now) for lockout in lockouts)

    def take_lock_out(self, seconds: float, met_at: float) -> None:
        """Take over a lock-out that a worker has met with this connection.

        With which key is not known: the worker may have read an older one than this process, or a newer one.
        So each key that the connection has waits, until the lock-out is over or a key is read that is newer
        than the worker's: see :meth:`_take`. The other connections with these keys wait, too.

        :param seconds: for how many seconds the server wants no call; nothing happens if that is 0 or less.
        :param met_at: when the worker met it. Nothing happens if a worker got a balance after that.
        """
        if seconds <= 0 or met_at < self._answered_at:
            return
        self._met_at = max(self._met_at, met_at)
        self._handed_over_at = now = asyncio.get_running_loop().time()
        self._handed_over.extend(seconds, now)
        if self._shared_key is not None:
            self._shared_key.lock_out(seconds, met_at)

    def take_answer(self, at: float) -> None:
        """Take note that a worker got a balance with this connection: a lock-out from before is over.

        A server may name a time in the far future by mistake, and only a call would show that. If it was
        another key that got the balance, the locked-out one is tried once, and waits on.

        :param at: when the worker got it.
        """
        self._answered_at = max(self._answered_at, at)
        if self._met_at < at:
            self._handed_over.end()
        if self._shared_key is not None and self._shared_key.locked_out_at < at:
            self._shared_key.lockout.end()

    def forget(self) -> None:
        """Forget the API key, because no feed uses the connection any more. Its fingerprint is kept."""
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

    def make_client(self) -> tuple[StabilityClient, SharedKey]:
        """Return a new client of the connection as it was read, and what is known of its API key.

        :raises StabilityConfigurationError: a field of the connection is unusable.
        """
        from airflow_stability.hooks.connection import client_from_connection

        assert self._connection is not None  # not in a variable, which a traceback could show
        client = client_from_connection(self._connection, retry_deadline=0)
        # The call itself ends a second after nobody waits for it any more.
        client.max_attempt_seconds = http_calls.POLL_SECONDS + 1
        key = client.base_url, client.key_fingerprint
        self._shared_key = self._keys.setdefault(key, SharedKey(*key))
        left = self._handed_over.seconds_left(asyncio.get_running_loop().time())
        self._shared_key.lock_out(left, self._met_at)
        return client, self._shared_key

    async def _read(self) -> Connection:
        from airflow_stability.hooks.connection import reading_failure

        try:
            return await read_connection(self.conn_id)
        except Exception as error:
            failure = reading_failure(self.conn_id, error)
        raise failure

    def _take(self, connection: Connection) -> None:
        from airflow_stability.client.api_key import fingerprint
        from airflow_stability.hooks.connection import connection_settings

        key, settings = fingerprint(connection.password), connection_settings(connection)
        if settings != self._settings:
            self.version += 1
        if key != self._fingerprint:
            self.key += 1
            if self.read_at > self._handed_over_at:
                # The earlier key was still there after the worker had met its lock-out, so this one is newer.
                # If the earlier key comes back, it still waits: it has the lock-out itself.
                self._handed_over.end()
        self._connection, self._settings, self._fingerprint = connection, settings, key


class FeedClient:
    """The client of one feed, made anew when the connection has changed. It serves one thread at a time.

    :param connection: the connection, which other feeds share.
    """

    def __init__(self, connection: SharedConnection) -> None:
        self._connection = connection
        self._client: StabilityClient | None = None
        #: What is known of the client's API key; None before the first client.
        self.shared_key: SharedKey | None = None
        #: The numbers of the connection's version and of its API key that the client was made with.
        self.version = 0
        self.key = 0
        self._key_that_worked: int | None = None

    @property
    def key_has_worked(self) -> bool:
        """Whether the client's API key has read a balance for this feed."""
        return self._key_that_worked == self.key

    @property
    def ledger(self) -> LedgerSettings | None:
        """The ledger that the client's connection names; None if it names none, or without a client."""
        return None if self._client is None else self._client.ledger

    def take_note_of_success(self) -> None:
        """Take note that the client has read a balance."""
        self._key_that_worked = self.key

    def get(self) -> StabilityClient:
        """Return the client.

        :raises StabilityConfigurationError: a field of the connection is unusable.
        """
        if self._client is None or self.version != self._connection.version:
            self.close()
            self.version, self.key = self._connection.version, self._connection.key
            self._client, self.shared_key = self._connection.make_client()
        return self._client

    async def look_for_another_key(self, since: float) -> None:
        """Read the connection in a lock-out: another key is not locked out.

        :param since: not if it was read since then.
        """
        with contextlib.suppress(Exception):  # it must never fail; the next poll reports it
            await self._connection.read(since)
            self.get()

    def lock_out(self, seconds: float | None) -> None:
        """Take over for how many seconds the server wants no call with the client's API key."""
        if self.shared_key is not None:
            self.shared_key.lock_out(seconds, asyncio.get_running_loop().time())

    def close(self) -> None:
        """Close the HTTP connections."""
        if self._client is not None:
            self._client.close()
            self._client = None
