"""Asks for balances: off the request, seldom, and never before the server allows it. Knows no Airflow.

A page that is reloaded must not lock a key out, and one that waits for an API that hangs must not hang:

- A balance is asked for once a minute at the most, however many ask; who comes meanwhile gets the same.
- All balances of a connection are asked for by one thread, one after another. What the server says about
  waiting belongs to the key, so it counts for all of them.
- Whoever asks waits for a few seconds, and then gets what was known before. The call goes on, and the next
  one to ask finds its answer, or waits no longer: the threads that wait are those of Airflow's API server.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from airflow_stability.errors import StabilityError, StabilityTransientError
from airflow_stability.page.burn_rate import Reading

if TYPE_CHECKING:
    from airflow_stability.client import StabilityClient

#: How long a balance is not asked for again.
FRESH = timedelta(seconds=60)

#: Seconds for which the page waits for a call, from when it began.
PATIENCE = 5.0

#: Organizations of one connection, beside its own, that are asked for: more would keep its thread too long.
MOST_ORGANIZATIONS = 20

#: Readings of a wallet that are kept: a day of a page that is reloaded every minute.
KEPT = 1440


@dataclass(frozen=True)
class Known:
    """What is known of one balance.

    :param last: the last balance that was read.
    :param failure: why the latest attempt got none, in one sentence; None if it got one, or there was none.
    :param asked_at: when it was asked for last.
    :param readings: the balances that were read by this process.
    """

    last: Reading | None = None
    failure: str | None = None
    asked_at: datetime | None = None
    readings: tuple[Reading, ...] = ()

    def is_stale(self, now: datetime) -> bool:
        """Tell whether it is time to ask again."""
        return self.asked_at is None or now - self.asked_at >= FRESH


@dataclass(frozen=True)
class Answer:
    """What is known of a connection.

    :param organization: the connection's own organization; None for the key's default.
    :param balances: by organization; None is the key's default, where the connection names no organization.
    :param failure: why the connection makes no client; then ``balances`` are from before.
    :param not_before: when the server allows the next call; None where it said nothing.
    :param pending: whether a call has not come to its end.
    """

    organization: str | None = None
    balances: Mapping[str | None, Known] = field(default_factory=dict)
    failure: str | None = None
    not_before: datetime | None = None
    pending: bool = False


@dataclass(frozen=True)
class _Call:
    future: Future[None]
    begun: datetime


@dataclass
class _Connection:
    organization: str | None = None
    failure: str | None = None
    asked_at: datetime | None = None
    not_before: datetime | None = None
    balances: dict[str | None, Known] = field(default_factory=dict)
    readings: dict[str | None, deque[Reading]] = field(default_factory=dict)
    running: _Call | None = None


class Balances:
    """The balances of all connections, as far as they are known.

    :param connect: makes the client of a connection; raises StabilityError. Called in a thread.
    :param now: tells the time.
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
        self._connections: dict[str, _Connection] = {}
        self._calls = ThreadPoolExecutor(max_workers=8, thread_name_prefix="stability-page")

    def get(
        self, wanted: Mapping[str, Iterable[str | None]], *, patience: float = PATIENCE
    ) -> dict[str, Answer]:
        """Return what is known, after asking for what may be asked for.

        :param wanted: the organizations by connection; None is the connection's own, which is asked for in
            any case.
        :param patience: seconds to wait for calls, from when they began.
        """
        give_up = self._now() - timedelta(seconds=patience)
        calls = [call for each in wanted if (call := self._ask(each, wanted[each])) is not None]
        left = max(((call.begun - give_up).total_seconds() for call in calls), default=0.0)
        wait([call.future for call in calls], timeout=max(left, 0.0))
        return {each: self._answer(each) for each in wanted}

    def _ask(self, conn_id: str, organizations: Iterable[str | None]) -> _Call | None:
        with self._lock:
            connection = self._connections.setdefault(conn_id, _Connection())
            named = sorted({each for each in organizations if each is not None})[:MOST_ORGANIZATIONS]
            if connection.running is None and self._may_ask(connection, named):
                future = self._calls.submit(self._call, conn_id, connection, named)
                connection.running = _Call(future, self._now())
            return connection.running

    def _may_ask(self, connection: _Connection, organizations: list[str]) -> bool:
        now = self._now()
        if connection.asked_at is None:
            return True
        if connection.not_before is not None and now < connection.not_before:
            return False
        if connection.failure:
            return now - connection.asked_at >= FRESH
        return any(_is_stale(connection, each, now) for each in (connection.organization, *organizations))

    def _call(self, conn_id: str, connection: _Connection, organizations: list[str]) -> None:
        """Ask for all balances of a connection that are due. Runs in a thread."""
        client: StabilityClient | None = None
        failure: str | None = None
        try:
            client = self._connect(conn_id)
            own = client.organization
            with self._lock:
                connection.organization, connection.failure = own, None
            for organization in dict.fromkeys([own, *organizations]):
                if not self._call_for(client, connection, organization):
                    break  # another one would wait as long for nothing
        except StabilityError as error:
            failure = problem_of(error)
        except Exception as error:  # a page never fails for one connection; the text may hold anything
            failure = f"The connection could not be used ({type(error).__name__})."
        finally:
            with self._lock:
                connection.failure = failure
                connection.asked_at = self._now()
                connection.running = None
            if client is not None:
                client.close()

    def _call_for(self, client: StabilityClient, connection: _Connection, organization: str | None) -> bool:
        """Ask for one balance if it is due; return whether it makes sense to ask for another."""
        now = self._now()
        locked_out = connection.not_before is not None and now < connection.not_before
        if locked_out or not _is_stale(connection, organization, now):
            return not locked_out
        known = connection.balances.get(organization, Known())
        try:
            reading = Reading(self._now(), client.get_balance(organization).credits)
        except StabilityError as error:
            known = replace(known, failure=problem_of(error), asked_at=self._now())
            with self._lock:
                if error.retry_after is not None:
                    connection.not_before = self._now() + timedelta(seconds=error.retry_after)
                connection.balances[organization] = known
            return not isinstance(error, StabilityTransientError)
        with self._lock:
            readings = connection.readings.setdefault(organization, deque(maxlen=KEPT))
            readings.append(reading)
            connection.balances[organization] = Known(reading, None, reading.at, tuple(readings))
        return True

    def _answer(self, conn_id: str) -> Answer:
        with self._lock:
            known = self._connections[conn_id]
            return Answer(
                known.organization,
                dict(known.balances),
                known.failure,
                known.not_before,
                pending=known.running is not None,
            )


def _is_stale(connection: _Connection, organization: str | None, now: datetime) -> bool:
    return connection.balances.get(organization, Known()).is_stale(now)


def problem_of(error: StabilityError) -> str:
    """Say what went wrong, without words of the other side.

    Whoever may edit a connection may name any host there, and must not read here what it answers.
    """
    if error.status is None:
        return str(error)
    return f"The API answered with status {error.status}. {error.advice}".rstrip()
