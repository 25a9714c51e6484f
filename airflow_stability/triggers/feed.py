"""One poll of the balance for all gates of a process that wait on one connection and organization.

A thousand deferred gates are a thousand triggers in one event loop. Each of them follows the feed of its
connection and organization; the feed asks at the smallest interval that any of them wants, and hands every
observation to all. It starts with its first follower and ends with its last. Followers that say what they
expect to spend are paced: with a balance each is told how much of it is spoken for by others.

Airflow 3.3 can share a stream between triggers as well (``shared_stream_key``). It is not used here: it is
not there before 3.3, and only for triggers that derive from BaseEventTrigger, which a triggerer that listens
on a queue never runs.

What must not happen in a triggerer, and how it is kept from happening:

- Nothing of Airflow that asks its supervisor is called in a thread: the connection is read on the event
  loop's side, and the thread makes the HTTP call.
- The feed's task starts with an empty context, or all that it ever does would be logged into the log of the
  task whose trigger came first.
- The loop's own executor has a handful of threads for all triggers: calls that hang would starve the others.
- The supervisor answers one question at a time, and with thousands of triggers takes a good while for each:
  the feeds of one connection do not ask it each for themselves.
- All other triggers wait while the loop is busy: it loads no module here, and no thousand followers at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from airflow_stability import metrics
from airflow_stability.compat import AirflowNotFoundException, read_connection
from airflow_stability.errors import StabilityError, StabilityPermanentError, StabilityTransientError
from airflow_stability.rules.pacing import Pacer, Reservation

if TYPE_CHECKING:
    # At run time it is loaded with the first poll, since a DAG file loads the triggers with the sensor.
    from airflow_stability.client import StabilityClient
    from airflow_stability.compat import Connection

#: Calls under way at once, of all feeds of the process. Each has an end: see StabilityClient.
_calls = ThreadPoolExecutor(max_workers=8, thread_name_prefix="stability-feed")

#: Followers that have their turn in one round of the loop, of all feeds of the process. One that goes on
#: waiting takes some ten microseconds, one that ends a millisecond.
AT_A_TIME = 20


@dataclass(frozen=True)
class Observation:
    """What one poll found out.

    :param at: aware time after the call.
    :param outcome: the credits, or what went wrong.
    :param organization: whose balance it is; None for the key's default.
    :param key: a number for each key in turn; another number is another key.
    :param key_has_worked: whether this key has got a balance for this feed before.
    :param spoken_for: how much of the balance others were let go for; 0.0 without a reservation.
    :param shares: the same for each follower with a reservation.
    """

    at: datetime
    outcome: float | StabilityError
    organization: str | None
    key: int
    key_has_worked: bool
    spoken_for: float = 0.0
    shares: Mapping[object, float] = field(default_factory=dict, repr=False)


#: Who follows a feed: what it has not been told yet. None says that there will be no more.
_Follower = asyncio.Queue[Observation | None]


async def observations(
    stability_conn_id: str,
    organization: str | None,
    interval: float,
    *,
    not_before: datetime | None = None,
    ignore_before: datetime | None = None,
    join_at: datetime | None = None,
    reservation: Reservation | None = None,
    is_gate: bool = True,
) -> AsyncGenerator[Observation, None]:
    """Follow the feed of a connection and organization: its latest observation if fresh, then each new one.

    Close it when done (``contextlib.aclosing``): the feed ends with its last follower.

    :param stability_conn_id: the connection that is asked with.
    :param organization: id such as ``org-123456``; None for the connection's, else the key's default.
    :param interval: seconds between two polls that this follower wants at the most.
    :param not_before: aware time before which the server wants no call with this connection.
    :param ignore_before: aware time at which this follower has looked itself: what is older is no news to it.
    :param join_at: aware time before which this follower wants no observation, and none is made for it.
    :param reservation: what this follower waits for, if it is to be paced.
    :param is_gate: whether a task waits for it, for the metrics.
    """
    hub = _hubs.setdefault(asyncio.get_running_loop(), _Hub())
    if not_before is not None:
        hub.lock_out(stability_conn_id, (not_before - datetime.now(UTC)).total_seconds())
    if join_at is not None:
        await asyncio.sleep((join_at - datetime.now(UTC)).total_seconds())
    feed = hub.feed(stability_conn_id, organization)
    follower = feed.join(interval, reservation, is_gate=is_gate)
    try:
        if (fresh := feed.fresh(interval, ignore_before)) is not None:
            yield fresh if reservation is None else feed.share(fresh, follower)
        while (observation := await follower.get()) is not None:
            yield observation if reservation is None else _share(observation, follower)
        raise asyncio.CancelledError  # as its feed was: Airflow starts the trigger anew
    finally:
        feed.leave(follower)


def _prepare(gates: int) -> None:
    """Do what takes long the first time: loading the client, sending a metric with this machine's name."""
    import airflow_stability.hooks.connection  # noqa: F401

    metrics.waiting(gates)


def _share(observation: Observation, follower: _Follower) -> Observation:
    return replace(observation, spoken_for=observation.shares.get(follower, 0.0), shares={})


class _Hub:
    """The feeds of one event loop, and the lock-outs that those of one connection share.

    A pacer outlives its feed: what the last follower was let go for is spoken for a while yet.
    """

    def __init__(self) -> None:
        self.feeds: dict[tuple[str, str | None], _Feed] = {}
        #: The followers that are gates; watchers of assets wait for nothing.
        self.gates: set[object] = set()
        self.pacers: dict[tuple[str, str | None], Pacer] = {}
        self.locked_until: dict[str, float] = {}
        #: The connections that were read last, and when that began.
        self.connections: dict[str, tuple[float, Connection]] = {}
        #: Held by the feed that reads a connection.
        self.reading: dict[str, asyncio.Lock] = {}
        #: Held by the feed whose followers are being told: the polls of many feeds may end together.
        self.telling = asyncio.Lock()

    def feed(self, stability_conn_id: str, organization: str | None) -> _Feed:
        key = (stability_conn_id, organization)
        if key not in self.feeds:
            now = asyncio.get_running_loop().time()
            for old in [
                each for each in self.pacers.keys() - self.feeds if self.pacers[each].is_settled(now)
            ]:
                del self.pacers[old]
            self.feeds[key] = _Feed(self, stability_conn_id, organization)
        return self.feeds[key]

    def forget(self, stability_conn_id: str) -> None:
        """Keep no key for nobody: forget a connection that no feed uses any more."""
        if all(conn_id != stability_conn_id for conn_id, _ in self.feeds):
            self.connections.pop(stability_conn_id, None)
            self.reading.pop(stability_conn_id, None)

    async def connection(self, stability_conn_id: str, since: float) -> tuple[float, Connection]:
        """Return a connection and when it was read: now, unless another feed has since a time."""
        async with self.reading.setdefault(stability_conn_id, asyncio.Lock()):
            known = self.connections.get(stability_conn_id)
            if known is None or known[0] < since:
                known = asyncio.get_running_loop().time(), await read_connection(stability_conn_id)
                self.connections[stability_conn_id] = known
            return known

    def lock_out(self, stability_conn_id: str, seconds: float) -> None:
        until = asyncio.get_running_loop().time() + seconds
        self.locked_until[stability_conn_id] = max(until, self.locked_until.get(stability_conn_id, 0.0))


_hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, _Hub] = WeakKeyDictionary()


class _Feed:
    def __init__(self, hub: _Hub, stability_conn_id: str, organization: str | None) -> None:
        self._hub = hub
        self._conn_id = stability_conn_id
        self._organization = organization
        self._wallet = (stability_conn_id, organization)
        self._loop = asyncio.get_running_loop()
        self._intervals: dict[_Follower, float] = {}
        self._followers_changed = asyncio.Event()
        self._latest: Observation | None = None
        self._latest_asked_at = 0.0
        self._asked_at: float | None = None
        self._whose = organization
        self._client: StabilityClient | None = None
        self._read_at = 0.0
        self._settings: tuple[object, ...] | None = None
        self._api_key: str | None = None
        self._key = 0
        self._key_has_worked = False
        self._task = self._loop.create_task(self._run(), context=contextvars.Context())

    def join(self, interval: float, reservation: Reservation | None, *, is_gate: bool) -> _Follower:
        follower: _Follower = asyncio.Queue()
        self._intervals[follower] = interval
        if is_gate:
            self._hub.gates.add(follower)
        self._followers_changed.set()
        if reservation is not None:
            self._hub.pacers.setdefault(self._wallet, Pacer()).join(follower, reservation)
        return follower

    def leave(self, follower: _Follower) -> None:
        del self._intervals[follower]
        self._hub.gates.discard(follower)
        self._followers_changed.set()
        if pacer := self._hub.pacers.get(self._wallet):
            pacer.leave(follower)

    def share(self, observation: Observation, newcomer: _Follower) -> Observation:
        """Tell a newcomer with a reservation its share of an observation that was made before it came."""
        if isinstance(observation.outcome, StabilityError):
            return observation
        shares = self._hub.pacers[self._wallet].observe(
            observation.outcome, asked_at=self._latest_asked_at, now=self._loop.time(), only=newcomer
        )
        return _share(replace(observation, shares=shares), newcomer)

    def fresh(self, interval: float, ignore_before: datetime | None) -> Observation | None:
        """Return the latest observation if it is no older than the interval.

        In a lock-out, the failure that is waited out is not too old; a balance may be. A refusal always is:
        what was refused may have been put right since, and a newcomer would fail for it.
        """
        if self._latest is None or (ignore_before is not None and self._latest.at <= ignore_before):
            return None
        if isinstance(self._latest.outcome, StabilityPermanentError):
            return None
        until = self._latest_asked_at + interval
        if isinstance(self._latest.outcome, StabilityError):
            until = max(until, self._hub.locked_until.get(self._conn_id, 0.0))
        return self._latest if self._loop.time() < until else None

    def _due(self, interval: float) -> float:
        """Return when the next poll is due, in the loop's time."""
        locked_until = self._hub.locked_until.get(self._conn_id, 0.0)
        return locked_until if self._asked_at is None else max(self._asked_at + interval, locked_until)

    async def _run(self) -> None:
        try:
            with contextlib.suppress(Exception):  # the first poll loads it again, and tells what it meets
                await self._loop.run_in_executor(_calls, _prepare, len(self._hub.gates))
            while self._intervals:
                wait = self._due(min(self._intervals.values())) - self._loop.time()
                if wait > 0:
                    self._followers_changed.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._followers_changed.wait(), wait)
                    continue
                observation = await self._poll()
                if observation is None:
                    continue
                await self._tell(observation)
        finally:
            # Nothing is awaited between the last look at the followers and this: nobody joins in between.
            del self._hub.feeds[self._wallet]
            self._hub.forget(self._conn_id)
            for follower in self._intervals:
                follower.put_nowait(None)
            if self._client is not None:
                self._client.close()
            metrics.waiting(len(self._hub.gates))

    async def _tell(self, observation: Observation) -> None:
        # Whoever comes from here on gets it as the latest. Nothing was awaited since it was made, and paced.
        self._latest, self._latest_asked_at = observation, self._asked_at or 0.0
        followers = list(self._intervals)
        async with self._hub.telling:
            for first in range(0, len(followers), AT_A_TIME):
                for follower in followers[first : first + AT_A_TIME]:
                    follower.put_nowait(observation)
                await asyncio.sleep(0)

    async def _poll(self) -> Observation | None:
        """Ask for the balance; return None if meanwhile a lock-out began or the last follower left."""
        outcome: float | StabilityError
        shares: Mapping[object, float] = {}
        self._whose = self._organization
        self._asked_at = began = self._loop.time()
        try:
            try:
                credits = await self._ask(began - min(self._intervals.values()))
            except StabilityPermanentError:
                # Another feed may have read the connection before it was mended. No gate fails for that.
                if self._read_at >= began or not await self._has_changed(began):
                    raise
                credits = await self._ask(began)
            if credits is None:
                return None
            if pacer := self._hub.pacers.get(self._wallet):
                shares = pacer.observe(credits, asked_at=self._asked_at, now=self._loop.time())
            outcome = credits
        except StabilityError as error:
            outcome = error
            if error.retry_after is not None:
                self._hub.lock_out(self._conn_id, error.retry_after)
        except Exception as error:  # a feed never fails: a thousand gates would
            outcome = StabilityTransientError(f"The balance could not be read ({type(error).__name__}).")
        had_worked = self._key_has_worked
        if not isinstance(outcome, StabilityError):
            self._key_has_worked = True
        metrics.polled(self._conn_id, self._whose, outcome)
        metrics.waiting(len(self._hub.gates))
        now = datetime.now(UTC)
        return Observation(now, outcome, self._whose, self._key, had_worked, shares=shares)

    async def _ask(self, since: float) -> float | None:
        """Ask with the connection as it was read since a time, and return the credits.

        None if meanwhile a lock-out began or the last follower left.
        """
        client = await self._connected(since)
        self._whose = self._organization or client.organization
        if not self._intervals or self._loop.time() < self._hub.locked_until.get(self._conn_id, 0.0):
            return None
        # The interval counts from here: reading the connection can take seconds when Airflow is busy.
        self._asked_at = self._loop.time()
        with metrics.timed_call(self._conn_id, self._whose):
            balance = await self._loop.run_in_executor(_calls, client.get_balance, self._organization)
        return balance.credits

    async def _has_changed(self, since: float) -> bool:
        """Read the connection, and tell whether it is another one than the one in use."""
        before = self._settings
        await self._connected(since)
        return self._settings != before

    async def _connected(self, since: float) -> StabilityClient:
        """Return the client of the connection as it was read since a time, here or for another feed.

        :raises StabilityError: the connection cannot be read, or makes no client.
        """
        from airflow_stability.hooks.connection import (
            client_from_connection,
            connection_settings,
            missing_connection,
            reading_failure,
        )

        failure: StabilityError | None = None
        self._read_at = self._loop.time()
        try:
            self._read_at, connection = await self._hub.connection(self._conn_id, since)
        except AirflowNotFoundException as error:
            failure = missing_connection(error)
        except Exception as error:  # whatever Airflow's database, API or secrets backend raises
            failure = reading_failure(self._conn_id, error)
        if failure is not None:
            raise failure  # outside of the handler: the original's text or context may hold the key
        settings = connection_settings(connection)
        if settings != self._settings:
            self._settings = settings
            if self._client is not None:
                self._client.close()
                self._client = None
            if self._api_key != connection.password:
                self._api_key = connection.password
                self._key += 1
                self._key_has_worked = False
        if self._client is None:
            self._client = client_from_connection(connection, retry_deadline=0)
        return self._client
