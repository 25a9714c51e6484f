"""The balance cache: requests balances in background threads, rarely, and never during a lock-out.

Reloading the page must not lock a key out, and an API that hangs must not hang the page:

- A balance is requested at most once a minute. All users share the result.
- One thread requests all balances of a connection, one after another. A lock-out belongs to the API key, so
  it applies to all of them.
- A page waits a moment and then shows the earlier values. The request goes on in its thread, and a later
  page shows its result. No page waits for a request that hangs.

This module uses no Airflow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from airflow_stability.errors import StabilityError, StabilityTransientError
from airflow_stability.page.burn_rate import Reading
from airflow_stability.rules.lockout import Lockout

if TYPE_CHECKING:
    from airflow_stability.client import StabilityClient

#: A balance is not requested again before it is this old.
MAX_AGE = timedelta(seconds=60)

#: Seconds for which a page waits for requests, from when they started.
WAIT_SECONDS = 1.5

#: How many organizations of a connection are requested, beside its own. More would take too long.
MAX_ORGANIZATIONS = 20

#: How many readings of a balance are kept: a day of one reading a minute.
MAX_READINGS = 1440


@dataclass(frozen=True)
class CachedBalance:
    """One organization's balance.

    :param failure: why the last request failed, in one sentence; None if it did not.
    :param requested_at: when the balance was requested last.
    :param readings: all readings of this process, up to :data:`MAX_READINGS`.
    """

    last: Reading | None = None
    failure: str | None = None
    requested_at: datetime | None = None
    readings: tuple[Reading, ...] = ()

    def is_stale(self, now: datetime) -> bool:
        """Tell whether the balance may be requested again."""
        return self.requested_at is None or is_old(self.requested_at, now)


@dataclass(frozen=True)
class CachedConnection:
    """The balances of one connection.

    :param organization: the connection's own organization; None is the API key's default.
    :param balances: by organization. The key None is the API key's default, unless the connection names an
        organization.
    :param failure: why no client could be made of the connection; ``balances`` are older then.
    :param locked_until: until when the server allows no call; None without a lock-out.
    :param pending: whether a request is still running.
    """

    organization: str | None = None
    balances: Mapping[str | None, CachedBalance] = field(default_factory=dict)
    failure: str | None = None
    locked_until: datetime | None = None
    pending: bool = False


@dataclass
class _Entry:
    organization: str | None = None
    failure: str | None = None
    refreshed_at: datetime | None = None
    lockout: Lockout = field(default_factory=Lockout)
    balances: dict[str | None, CachedBalance] = field(default_factory=dict)
    running: tuple[Future[None], datetime] | None = None  # the refresh, and when it started

    def balance(self, organization: str | None) -> CachedBalance:
        return self.balances.get(organization, CachedBalance())

    def locked_seconds(self, now: datetime) -> float:
        return self.lockout.seconds_left(now.timestamp())


class BalanceCache:
    """The balances of all connections.

    :param connect: makes the client of a connection, or raises StabilityError. Called in a thread.
    :param now: returns the time.
    """

    def __init__(
        self,
        connect: Callable[[str], StabilityClient],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._connect = connect
        self._now = now
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="stability-page")

    def get(
        self, wanted: Mapping[str, Iterable[str | None]], *, wait_seconds: float = WAIT_SECONDS
    ) -> dict[str, CachedConnection]:
        """Request the balances that are due, and return what is known then.

        :param wanted: the organizations by connection. None is the connection's own, which is always
            included.
        :param wait_seconds: how long to wait for requests, from when they started.
        """
        now = self._now()
        refreshes = [each for conn_id in wanted if (each := self._start_refresh(conn_id, wanted[conn_id]))]
        latest_start = max((started_at for _, started_at in refreshes), default=now)
        left = wait_seconds - (now - latest_start).total_seconds()
        wait([future for future, _ in refreshes], timeout=max(left, 0.0))
        return {conn_id: self._snapshot(conn_id) for conn_id in wanted}

    def _start_refresh(
        self, conn_id: str, organizations: Iterable[str | None]
    ) -> tuple[Future[None], datetime] | None:
        """Start a refresh if one is due; return the one that is running."""
        with self._lock:
            entry = self._entries.setdefault(conn_id, _Entry())
            named = sorted({each for each in organizations if each is not None})[:MAX_ORGANIZATIONS]
            if entry.running is None and self._is_due(entry, named):
                entry.running = self._threads.submit(self._refresh, conn_id, entry, named), self._now()
            return entry.running

    def _is_due(self, entry: _Entry, organizations: list[str]) -> bool:
        now = self._now()
        if entry.refreshed_at is None:
            return True
        if entry.locked_seconds(now):
            return False
        if entry.failure:
            return is_old(entry.refreshed_at, now)
        return any(entry.balance(each).is_stale(now) for each in (entry.organization, *organizations))

    def _refresh(self, conn_id: str, entry: _Entry, organizations: list[str]) -> None:
        """Request all balances of a connection that are due. Runs in a thread."""
        try:
            with self._connect(conn_id) as client:
                with self._lock:
                    entry.organization, entry.failure = client.organization, None
                for organization in dict.fromkeys([client.organization, *organizations]):
                    if not self._refresh_balance(client, entry, organization):
                        break
        except StabilityError as error:
            entry.failure = failure_text(error)
        except Exception as error:  # one connection must not fail the page; the text may hold a secret
            entry.failure = f"The connection could not be used ({type(error).__name__})."
        finally:
            with self._lock:
                entry.refreshed_at, entry.running = self._now(), None

    def _refresh_balance(self, client: StabilityClient, entry: _Entry, organization: str | None) -> bool:
        """Request one balance if it is due; return False if further requests would most likely fail too."""
        now = self._now()
        with self._lock:
            if entry.locked_seconds(now):
                return False
        cached = entry.balance(organization)
        if not cached.is_stale(now):
            return True
        try:
            reading = Reading(self._now(), client.get_balance(organization).credits)
        except StabilityError as error:
            now = self._now()
            with self._lock:
                entry.lockout.extend(error.retry_after, now.timestamp())
                entry.balances[organization] = replace(cached, failure=failure_text(error), requested_at=now)
            return not isinstance(error, StabilityTransientError)
        readings = (*cached.readings, reading)[-MAX_READINGS:]
        with self._lock:
            entry.balances[organization] = CachedBalance(reading, None, reading.at, readings)
        return True

    def _snapshot(self, conn_id: str) -> CachedConnection:
        now = self._now()
        with self._lock:
            entry = self._entries[conn_id]
            seconds = entry.locked_seconds(now)
            return CachedConnection(
                entry.organization,
                dict(entry.balances),
                entry.failure,
                now + timedelta(seconds=seconds) if seconds else None,
                pending=entry.running is not None,
            )


def is_old(at: datetime, now: datetime) -> bool:
    """Tell whether a time is as old as a balance may get, or as far ahead: then the clock was set back."""
    return abs(now - at) >= MAX_AGE


def failure_text(error: StabilityError) -> str:
    """Return what went wrong, without any text of the server's.

    Whoever may edit a connection can name any host in it. The page must not show them what that host sends.
    """
    if error.status is None:
        return str(error)
    return f"The API answered with status {error.status}. {error.advice}".rstrip()
