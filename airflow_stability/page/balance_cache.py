"""The balance cache: requests balances in background threads, rarely, and never during a lock-out.

Reloading the page must not lock a key out, and an API that hangs must not hang the page:

- A balance is requested at most once a minute. All users share the result, and so do all connections with the
  same API key at the same address.
- One thread requests all balances of a connection, one after another. A lock-out belongs to the API key, so
  it applies to all connections with the key.
- A connection whose host hangs delays the others by a moment at most.
- A page waits a moment and then shows the earlier values. The request goes on in its thread, and a later
  page shows its result. No page waits for a request that hangs, and neither does a process that ends.

Permissions are those on connections. So a connection shows only what was asked for with it. A failure is its
own, too: another connection with the key may have another proxy or other certificates.

This module uses no Airflow. It measures durations by the monotonic clock: the time of day may be set.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from airflow_stability.daemon_threads import start_in_thread
from airflow_stability.errors import (
    StabilityError,
    StabilityNetworkError,
    StabilityTimeoutError,
    StabilityTransientError,
)
from airflow_stability.page.burn_rate import Reading
from airflow_stability.rules.lockout import Lockout
from airflow_stability.rules.wording import organization_label

if TYPE_CHECKING:
    from airflow_stability.client import StabilityClient
    from airflow_stability.client.spend_recorder import LedgerSettings

#: A balance is not requested again before it is this old.
MAX_AGE_SECONDS = 60.0

#: A connection is not read again before this has passed since it was read: longer than the time after which a
#: page that waits for it reloads itself, so that such a page comes to an end.
CONNECTION_MAX_AGE_SECONDS = 5.0

#: Seconds for which a page waits for requests, from when they started.
WAIT_SECONDS = 1.5

#: How many connections are read, or called with, at the same time, and for how many seconds one waits for its
#: turn. Then it goes on without: calls that hang must not delay all other connections.
MAX_CALLS = 8
TURN_SECONDS = 0.5

#: How many organizations of a connection are requested, beside its own. More would take too long.
MAX_ORGANIZATIONS = 20

#: How many readings of a balance are kept: a day of one reading a minute.
MAX_READINGS = 1440


@dataclass(frozen=True)
class CachedBalance:
    """One organization's balance.

    :param failure: why the last request failed, in one sentence; None if it did not.
    :param requested_at: when the balance was requested last, by the monotonic clock.
    :param readings: all readings of this process, up to :data:`MAX_READINGS`.
    """

    last: Reading | None = None
    failure: str | None = None
    requested_at: float | None = None
    readings: tuple[Reading, ...] = ()

    def is_stale(self, now: float) -> bool:
        """Tell whether the balance may be requested again.

        :param now: time of the monotonic clock.
        """
        return self.requested_at is None or now - self.requested_at >= MAX_AGE_SECONDS

    def with_reading(self, reading: Reading, requested_at: float) -> CachedBalance:
        """Return the balance with another reading, the latest."""
        # If the clock was set back, the time of earlier readings may not have come: they would seem later.
        earlier = (each for each in self.readings if each.at < reading.at)
        return CachedBalance(reading, None, requested_at, (*earlier, reading)[-MAX_READINGS:])


@dataclass(frozen=True)
class CachedConnection:
    """The balances of one connection.

    :param organization: the connection's own organization; None is the API key's default.
    :param balances: by organization, those that were asked for. The key None is the API key's default, unless
        the connection names an organization.
    :param failure: why no client could be made of the connection; ``balances`` are older then.
    :param skipped: why a balance was not requested, by organization: the request for another one had failed.
    :param locked_until: until when the server allows no call; None without a lock-out.
    :param pending: whether a request is still running.
    :param ledger: what the connection says about its ledger; None without one.
    """

    organization: str | None = None
    balances: Mapping[str | None, CachedBalance] = field(default_factory=dict)
    failure: str | None = None
    skipped: Mapping[str | None, str] = field(default_factory=dict)
    locked_until: datetime | None = None
    pending: bool = False
    ledger: LedgerSettings | None = None


@dataclass
class _Key:
    """One API key at one address, which several connections may have."""

    lockout: Lockout = field(default_factory=Lockout)
    #: The latest reading of each organization, and when it was requested.
    readings: dict[str | None, tuple[Reading, float]] = field(default_factory=dict)
    #: The requests that are under way, by organization.
    requests: dict[str | None, threading.Event] = field(default_factory=dict)


@dataclass
class _Entry:
    organization: str | None = None
    ledger: LedgerSettings | None = None
    failure: str | None = None
    read_at: float | None = None
    #: The address and the fingerprint of the API key; None before the connection was read.
    key: tuple[str, bytes] | None = None
    balances: dict[str | None, CachedBalance] = field(default_factory=dict)
    skipped: dict[str | None, str] = field(default_factory=dict)
    running: tuple[Future[None], float] | None = None  # the refresh, and when it started

    def balance(self, organization: str | None) -> CachedBalance:
        return self.balances.get(organization, CachedBalance())

    def take(self, client: StabilityClient) -> None:
        """Take over what the connection says now. Balances that another key has read are asked for anew."""
        self.organization, self.ledger, self.failure = client.organization, client.ledger, None
        key = client.base_url, client.key_fingerprint
        if self.key is not None and key != self.key:
            same_address = key[0] == self.key[0]
            self.balances = {
                organization: replace(balance, failure=None, requested_at=None)
                for organization, balance in self.balances.items()
                # Another key may have another default organization.
                if organization is not None and same_address
            }
        self.key = key


class BalanceCache:
    """The balances of all connections.

    :param connect: makes the client of a connection, or raises StabilityError. Called in a thread.
    :param now: returns the time of day.
    :param monotonic: returns the time of the monotonic clock, in seconds.
    """

    def __init__(
        self,
        connect: Callable[[str], StabilityClient],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._now = now
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._keys: dict[tuple[str, bytes], _Key] = {}
        self._room = threading.Semaphore(MAX_CALLS)

    def get(
        self, wanted: Mapping[str, Iterable[str | None]], *, wait_seconds: float = WAIT_SECONDS
    ) -> dict[str, CachedConnection]:
        """Request the balances that are due, and return what is known then.

        :param wanted: the organizations by connection. None is the connection's own, which is always
            included.
        :param wait_seconds: how long to wait for requests, from when they started.
        """
        named = {
            conn_id: sorted({each for each in organizations if each is not None})
            for conn_id, organizations in wanted.items()
        }
        now = self._monotonic()
        refreshes = [each for conn_id in named if (each := self._start_refresh(conn_id, named[conn_id]))]
        latest_start = max((started_at for _, started_at in refreshes), default=now)
        left = wait_seconds - (now - latest_start)
        wait([future for future, _ in refreshes], timeout=max(left, 0.0))
        return {conn_id: self._snapshot(conn_id, named[conn_id]) for conn_id in named}

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for a turn, but not for long."""
        is_ours = self._room.acquire(timeout=TURN_SECONDS)
        try:
            yield
        finally:
            if is_ours:
                self._room.release()

    def _start_refresh(self, conn_id: str, organizations: list[str]) -> tuple[Future[None], float] | None:
        """Start a refresh if one is due; return the one that is running."""
        with self._lock:
            entry = self._entries.setdefault(conn_id, _Entry())
            requested = organizations[:MAX_ORGANIZATIONS]
            if entry.running is None and self._is_due(entry, requested):
                refresh = partial(self._refresh, conn_id, entry, requested)
                entry.running = start_in_thread(refresh), self._monotonic()
            return entry.running

    def _is_due(self, entry: _Entry, organizations: list[str]) -> bool:
        """Tell whether to read the connection, or to request a balance. Called under the lock."""
        now = self._monotonic()
        if entry.read_at is None or now - entry.read_at >= CONNECTION_MAX_AGE_SECONDS:
            return True
        if entry.failure or self._locked_seconds(entry, now):
            return False
        return any(entry.balance(each).is_stale(now) for each in (entry.organization, *organizations))

    def _locked_seconds(self, entry: _Entry, now: float) -> float:
        """Return for how long the server wants no call with the connection's key. Called under the lock."""
        return self._keys[entry.key].lockout.seconds_left(now) if entry.key else 0.0

    def _refresh(self, conn_id: str, entry: _Entry, organizations: list[str]) -> None:
        """Read the connection, and request all balances that are due. Runs in a thread."""
        try:
            with self._turn():
                client = self._connect(conn_id)
            with client:
                with self._lock:
                    entry.take(client)
                    entry.read_at = self._monotonic()
                    entry.skipped = {}
                    key = self._keys.setdefault((client.base_url, client.key_fingerprint), _Key())
                due = list(dict.fromkeys([client.organization, *organizations]))
                for number, organization in enumerate(due, start=1):
                    if not self._refresh_balance(client, entry, key, organization):
                        self._skip(entry, due[number:], organization)
                        break
        except StabilityError as error:
            entry.failure = failure_text(error)
        except Exception as error:  # one connection must not fail the page; the text may hold a secret
            entry.failure = f"The connection could not be used ({type(error).__name__})."
        finally:
            with self._lock:
                entry.read_at, entry.running = self._monotonic(), None

    def _skip(self, entry: _Entry, organizations: list[str | None], failed: str | None) -> None:
        """Note why organizations are not requested: the request for another one has failed."""
        with self._lock:
            if failure := entry.balance(failed).failure:  # otherwise there is a lock-out
                whose = organization_label(failed)
                reason = f"It was not requested, because the request for {whose} failed: {failure}"
                entry.skipped = dict.fromkeys(organizations, reason)

    def _refresh_balance(
        self, client: StabilityClient, entry: _Entry, key: _Key, organization: str | None
    ) -> bool:
        """Request one balance if it is due; return False if further requests would most likely fail too.

        If another connection requests the same balance at the moment, wait for that. If that fails, do not
        wait for a third one: of many connections that hang, each would wait for all others.
        """
        if not entry.balance(organization).is_stale(self._monotonic()):
            return True
        request = threading.Event()
        with self._lock:
            under_way = key.requests.setdefault(organization, request)
        if under_way is not request:
            under_way.wait()
        try:
            with self._turn():
                return self._request(client, entry, key, organization)
        finally:
            if under_way is request:
                with self._lock:
                    del key.requests[organization]
                request.set()

    def _request(self, client: StabilityClient, entry: _Entry, key: _Key, organization: str | None) -> bool:
        cached = entry.balance(organization)
        now = self._monotonic()
        with self._lock:
            if (known := key.readings.get(organization)) and now - known[1] < MAX_AGE_SECONDS:
                entry.balances[organization] = cached.with_reading(*known)
                return True
            if key.lockout.seconds_left(now):
                return False
        try:
            reading = Reading(self._now(), client.get_balance(organization).credits)
        except StabilityError as error:
            now = self._monotonic()
            with self._lock:
                key.lockout.extend(error.retry_after, now)
                entry.balances[organization] = replace(cached, failure=failure_text(error), requested_at=now)
            return not isinstance(error, StabilityTransientError)
        with self._lock:
            now = self._monotonic()
            key.readings[organization] = reading, now
            entry.balances[organization] = cached.with_reading(reading, now)
        return True

    def _snapshot(self, conn_id: str, organizations: list[str]) -> CachedConnection:
        with self._lock:
            entry = self._entries[conn_id]
            seconds = self._locked_seconds(entry, self._monotonic())
            return CachedConnection(
                entry.organization,
                {
                    organization: entry.balances[organization]
                    for organization in (entry.organization, *organizations)
                    if organization in entry.balances
                },
                entry.failure,
                dict(entry.skipped),
                self._now() + timedelta(seconds=seconds) if seconds else None,
                pending=entry.running is not None,
                ledger=entry.ledger,
            )


def failure_text(error: StabilityError) -> str:
    """Return what went wrong, without any text of the server's.

    Whoever may edit a connection can name any host in it. The page must not show them what that host sends.
    """
    if error.status is not None:
        return f"The API answered with status {error.status}. {error.advice}".rstrip()
    if isinstance(error, StabilityTimeoutError):
        return f"No complete response came in time. {error.advice}"
    if isinstance(error, StabilityNetworkError):
        return f"No complete response came. {error.advice}"
    return str(error)
