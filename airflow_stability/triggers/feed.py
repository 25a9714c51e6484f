"""The feed of one balance: one poll for all gates of a process that wait on one connection and organization.

A thousand deferred gates are a thousand triggers in one event loop. Each of them follows the feed of its
connection and organization. The feed polls at the smallest interval that a follower wants, and hands every
observation to all followers. It starts with its first follower and ends with its last.

Followers that say how much they expect to spend are paced: with a balance, each learns how much of it is
reserved for others. They are paced by wallet, since several feeds may see the same credits: one whose
organization is named and one whose organization is left to the key, or the feeds of two connections with one
key. The balance of one feed lets go tasks of another one, if the wallet is certainly the same. If it only may
be, credits that are reserved in one wallet count as reserved in the other one.

Airflow 3.3 can also share a stream between triggers (``shared_stream_key``), but the feed does not use that.
It does not exist before 3.3. It serves only triggers that derive from BaseEventTrigger, and a triggerer that
listens on a queue never runs those.

What must not happen in a triggerer, and how it is prevented:

- No Airflow code that asks the supervisor runs in a thread of ours. The connection is read on the event
  loop's side, and the thread makes only the HTTP call.
- The feed's task starts with an empty context. With the caller's context, everything that it logs would go
  into the log of the task whose trigger came first.
- Calls that hang delay no trigger but those that wait for them: see
  :mod:`airflow_stability.triggers.http_calls`.
- All other triggers wait while the loop is busy. So the loop loads no module here, and does not serve a
  thousand followers in one turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from airflow_stability import metrics
from airflow_stability.daemon_threads import start_in_thread
from airflow_stability.errors import (
    StabilityError,
    StabilityPermanentError,
    StabilityTimeoutError,
    StabilityTransientError,
)
from airflow_stability.rules.credits import total
from airflow_stability.rules.crossing import WatchedWallet
from airflow_stability.rules.pacing import Pacer, Reservation
from airflow_stability.triggers import http_calls, shared_connection
from airflow_stability.triggers.shared_connection import (
    FeedClient,
    SharedConnection,
    SharedKey,
    Wallet,
    are_perhaps_the_same,
)

if TYPE_CHECKING:
    # At run time it is loaded in a thread, with the first feed.
    from airflow_stability.client import StabilityClient
    from airflow_stability.client.spend_recorder import LedgerSettings
    from airflow_stability.triggers.jobs import JobPolls
    from airflow_stability.triggers.ledger_holds import HoldQueue

#: Followers that are served in one turn of the loop, over all feeds of the process. A follower that goes on
#: waiting takes about ten microseconds, one that ends a millisecond.
AT_A_TIME = 20


@dataclass(frozen=True)
class Observation:
    """The result of one poll.

    :param at: aware time after the call.
    :param outcome: the credits, or what went wrong.
    :param organization: whose balance; None for the key's default.
    :param key: a number for the API key; another key has another number.
    :param key_has_worked: whether this key has read a balance for this feed before.
    :param requested_at: when the balance was requested, in the loop's time.
    :param ledger: the connection's ledger; None if it has none, and for a failure.
    :param wallet: whose credits a balance counts, for asset watchers; None for a failure.
    :param reserved: credits of the balance that are reserved for others; 0.0 without a reservation.
    :param shares: the reserved credits for each follower with a reservation, of all feeds of the wallet.
    """

    at: datetime
    outcome: float | StabilityError
    organization: str | None
    key: int
    key_has_worked: bool
    requested_at: float = 0.0
    ledger: LedgerSettings | None = None
    wallet: WatchedWallet | None = None
    reserved: float = 0.0
    shares: Mapping[_Follower, float] = field(default_factory=dict, repr=False)

    def for_follower(self, follower: _Follower) -> Observation:
        """Return the observation with the follower's own share."""
        return replace(self, reserved=self.shares.get(follower, 0.0), shares={})


#: A follower's undelivered observations; None ends the stream.
_Follower = asyncio.Queue[Observation | None]


async def observations(
    stability_conn_id: str,
    organization: str | None,
    interval: float,
    *,
    not_before: float | None = None,
    deferred_at: float | None = None,
    on_lock_out: Callable[[float], Awaitable[None]] | None = None,
    ignore_before: float | None = None,
    paused_until: float | None = None,
    reservation: Reservation | None = None,
    is_gate: bool = True,
) -> AsyncGenerator[Observation, None]:
    """Follow the feed of a connection and organization: its latest observation if fresh, then each new one.

    An asset watcher gets new ones only: the latest may be from before anybody asked whose credits they are.

    Close the generator when done (``contextlib.aclosing``), because the feed ends with its last follower.
    Times are the event loop's.

    :param stability_conn_id: the connection.
    :param organization: id such as ``org-123456``; None for the connection's, else the key's default.
    :param interval: the longest time between two polls that this follower accepts, in seconds.
    :param not_before: when the server wants the next call with this connection at the earliest.
    :param deferred_at: when this follower learned that; None for now.
    :param on_lock_out: called if this follower comes in a lock-out, with the seconds that are left of it.
    :param ignore_before: when this follower got a balance last itself. Older observations are no news to it,
        and a lock-out from before is over.
    :param paused_until: until when this follower wants no observation and causes no poll.
    :param reservation: what this follower waits for, if it is paced.
    :param is_gate: whether this follower is a gate that a task waits at, for the metrics.
    """
    state, loop = loop_state(), asyncio.get_running_loop()
    connection = state.connection(stability_conn_id)
    if ignore_before is not None:
        connection.take_answer(ignore_before)
    if not_before is not None:
        met_at = loop.time() if deferred_at is None else deferred_at
        connection.take_lock_out(not_before - loop.time(), met_at)
    if on_lock_out is not None and (seconds := connection.seconds_locked_out()) > 0:
        await on_lock_out(seconds)
    if paused_until is not None:
        await asyncio.sleep(paused_until - loop.time())
    feed = state.feed(stability_conn_id, organization)
    follower = feed.join(interval, reservation, is_gate=is_gate)
    try:
        if is_gate and (fresh := feed.fresh(interval, ignore_before)) is not None:
            yield fresh if reservation is None else feed.share(fresh, follower)
        while (observation := await follower.get()) is not None:
            yield observation if reservation is None else observation.for_follower(follower)
        raise asyncio.CancelledError  # its feed was cancelled: Airflow starts the trigger anew
    finally:
        feed.leave(follower)


class LoopState:
    """The feeds of one event loop, and what they share.

    A pacer outlives its feeds, because reservations of the last follower stay valid for a while. What is
    known of an API key outlives everything, so that its account is requested rarely.
    """

    def __init__(self) -> None:
        self.feeds: dict[tuple[str, str | None], Feed] = {}
        #: The followers that are gates, not asset watchers.
        self.gates: set[object] = set()
        self.pacers: dict[Wallet, Pacer[_Follower]] = {}
        self.keys: dict[tuple[str, bytes], SharedKey] = {}
        self.connections: dict[str, SharedConnection] = {}
        #: The jobs that tasks wait for, by connection.
        self.jobs: dict[str, JobPolls] = {}
        #: Held while followers are served, because the polls of many feeds may end together.
        self.serving = asyncio.Lock()
        #: The credits to hold in ledgers, by the connection of the ledger.
        self.holds: dict[str, HoldQueue] = {}
        self._late_calls = asyncio.Semaphore(http_calls.MAX_LATE_CALLS)
        self._prepared: Future[None] | None = None

    async def prepare(self) -> None:
        """Load the client and look up the host's name, in a thread: both take long the first time."""
        if self._prepared is None:
            self._prepared = start_in_thread(functools.partial(_prepare, len(self.gates)))
        with contextlib.suppress(Exception):  # the first poll tries again, and reports the failure
            await asyncio.wrap_future(self._prepared)

    def feed(self, stability_conn_id: str, organization: str | None) -> Feed:
        """Return the feed of a connection and organization. It is started if there is none."""
        name = (stability_conn_id, organization)
        if name not in self.feeds:
            now = asyncio.get_running_loop().time()
            in_use = {feed.pacer for feed in self.feeds.values()}
            self.pacers = {
                wallet: pacer
                for wallet, pacer in self.pacers.items()
                if pacer in in_use or not pacer.is_idle(now)
            }
            self.feeds[name] = Feed(self, self.connection(stability_conn_id), organization)
        return self.feeds[name]

    def connection(self, stability_conn_id: str) -> SharedConnection:
        """Return what is known of a connection."""
        if stability_conn_id not in self.connections:
            its_calls = http_calls.Calls(self._late_calls, ended=self._forget_unused)
            connection = SharedConnection(stability_conn_id, self.keys, its_calls)
            self.connections[stability_conn_id] = connection
        return self.connections[stability_conn_id]

    def take_default_organization(self, key: SharedKey, organization: str) -> None:
        """Take note of a key's default organization: its wallet is that organization's from now on."""
        before, key.default_organization = key.wallet(None), organization
        if (wallet := key.wallet(None)) == before:
            return
        for feed in self.feeds.values():
            if feed.waits_for_default_of(key):
                feed.change_wallet(wallet)
        if are_perhaps_the_same(before, wallet):  # the default was not known
            # No feed has its pacer any more, but credits may be reserved there.
            self.pacer(wallet).take_reserved(self.pacers.pop(before, Pacer()))

    def pacer(self, wallet: Wallet) -> Pacer[_Follower]:
        """Return the pacer of a wallet. It is made if there is none."""
        return self.pacers.setdefault(wallet, Pacer())

    def feed_ended(self, name: tuple[str, str | None]) -> None:
        """Remove a feed."""
        del self.feeds[name]
        self._forget_unused()

    def jobs_ended(self, stability_conn_id: str) -> None:
        """Remove the jobs of a connection."""
        del self.jobs[stability_conn_id]
        self._forget_unused()

    def _forget_unused(self) -> None:
        """For connections without a feed and without jobs, keep no API key, but a lock-out."""
        in_use = {conn_id for conn_id, _ in self.feeds} | self.jobs.keys()
        for connection in [each for each in self.connections.values() if each.conn_id not in in_use]:
            connection.forget()
            if not connection.seconds_locked_out() and not connection.calls.abandoned:
                del self.connections[connection.conn_id]


_states: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopState] = WeakKeyDictionary()


def loop_state() -> LoopState:
    """Return the state of the running event loop."""
    return _states.setdefault(asyncio.get_running_loop(), LoopState())


class Feed:
    """The followers of one balance, and the polls for them.

    :param state: the state of the event loop.
    :param connection: the connection to poll with.
    :param organization: whose balance; None for the connection's organization, else the key's default.
    """

    def __init__(self, state: LoopState, connection: SharedConnection, organization: str | None) -> None:
        self._state = state
        self._connection = connection
        self._organization = organization
        #: The pacer of the feed's wallet; one of its own before the first balance.
        self.pacer = Pacer[_Follower]()
        self._wallet: Wallet | None = None
        #: The API key and the organization of the last balance that was paced.
        self._paced_as: tuple[SharedKey, str | None] | None = None
        self._is_paced = False
        #: The reservations of followers that no balance of another feed may let go, because the feed's own
        #: key was refused since its last balance; None if it was not.
        self._withheld: dict[_Follower, Reservation] | None = None
        self._loop = asyncio.get_running_loop()
        self._intervals: dict[_Follower, float] = {}
        self._followers_changed = asyncio.Event()
        self._latest: Observation | None = None
        self._latest_requested_at = 0.0
        self._requested_at: float | None = None
        self._looked_for_key_at: float | None = None
        self._observed_organization = organization
        self._client = FeedClient(connection)
        self._task = self._loop.create_task(self._run(), context=contextvars.Context())

    def join(self, interval: float, reservation: Reservation | None, *, is_gate: bool) -> _Follower:
        """Add a follower; see :func:`observations`."""
        follower: _Follower = asyncio.Queue()
        self._intervals[follower] = interval
        if is_gate:
            self._state.gates.add(follower)
        self._followers_changed.set()
        if reservation is not None:
            self._is_paced = True
            if self._withheld is None:
                self.pacer.join(follower, reservation)
            else:
                self._withheld[follower] = reservation
        return follower

    def leave(self, follower: _Follower) -> None:
        """Remove a follower."""
        del self._intervals[follower]
        self._state.gates.discard(follower)
        self._followers_changed.set()
        self.pacer.leave(follower)
        if self._withheld is not None:
            self._withheld.pop(follower, None)

    def waits_for_default_of(self, key: SharedKey) -> bool:
        """Tell whether the followers wait for the credits of a key's default organization."""
        return self._paced_as == (key, None)

    def change_wallet(self, wallet: Wallet) -> None:
        """Let the followers wait for the credits of another wallet, if they do not yet.

        What was reserved for those who were let go stays reserved in the old wallet. It is reserved in the
        new one, too, if they may be the same: for example, if the key was rotated.
        """
        pacer = self._state.pacer(wallet)
        if pacer is not self.pacer:
            pacer.take_waiting(self.pacer, self._intervals)
            if self._wallet is not None and are_perhaps_the_same(self._wallet, wallet):
                pacer.take_reserved(self.pacer)
            self.pacer = pacer
        self._wallet = wallet

    def share(self, observation: Observation, newcomer: _Follower) -> Observation:
        """Return an earlier observation with a newcomer's own share."""
        if isinstance(observation.outcome, StabilityError):
            return observation
        shares = self._pace(
            observation.outcome, observation.organization, self._latest_requested_at, only=newcomer
        )
        return replace(observation, shares=shares).for_follower(newcomer)

    def fresh(self, interval: float, ignore_before: float | None) -> Observation | None:
        """Return the latest observation if it is no older than the interval.

        In a lock-out a failure stays fresh until the lock-out ends; a balance does not. A permanent failure
        is never fresh: its cause may have been fixed since, and a newcomer would fail because of it.
        """
        if self._latest is None:
            return None
        if ignore_before is not None and self._latest_requested_at <= ignore_before:
            return None
        if isinstance(self._latest.outcome, StabilityPermanentError):
            return None
        if isinstance(self._latest.outcome, StabilityError) and self._connection.seconds_locked_out():
            return self._latest
        return self._latest if self._loop.time() < self._latest_requested_at + interval else None

    def _seconds_to_wait(self) -> float:
        """Return for how many seconds neither a poll nor, in a lock-out, a look for another key is due."""
        until_poll = self._rest_of_interval(self._requested_at)
        locked_out = self._connection.seconds_locked_out()
        if locked_out <= until_poll:
            return until_poll
        until_look = self._rest_of_interval(self._looked_for_key_at)
        return min(locked_out, max(until_poll, until_look))

    def _rest_of_interval(self, began: float | None) -> float:
        if began is None:
            return 0.0
        return max(began + min(self._intervals.values()) - self._loop.time(), 0.0)

    async def _run(self) -> None:
        try:
            await self._state.prepare()
            metrics.waiting(len(self._state.gates))
            while self._intervals:
                if (seconds := self._seconds_to_wait()) > 0:
                    self._followers_changed.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._followers_changed.wait(), seconds)
                elif self._connection.seconds_locked_out():
                    self._looked_for_key_at = now = self._loop.time()
                    await self._client.look_for_another_key(since=now - min(self._intervals.values()))
                elif (observation := await self._poll()) is not None:
                    await self._serve(observation)
        finally:
            # Nothing is awaited between the last check for followers and this, so nobody joins in between.
            self._state.feed_ended((self._connection.conn_id, self._organization))
            for follower in self._intervals:
                follower.put_nowait(None)
            self._client.close()
            metrics.waiting(len(self._state.gates))

    async def _serve(self, observation: Observation) -> None:
        # From here on, a newcomer gets it as the latest. Nothing was awaited since it was made and paced.
        self._latest, self._latest_requested_at = observation, self._requested_at or 0.0
        followers = list(self._intervals)
        followers += [
            each
            for each in observation.shares
            if each not in self._intervals and each not in self.pacer.waiting  # another feed's, let go
        ]
        async with self._state.serving:
            for first in range(0, len(followers), AT_A_TIME):
                for follower in followers[first : first + AT_A_TIME]:
                    follower.put_nowait(observation)
                await asyncio.sleep(0)

    async def _poll(self) -> Observation | None:
        """Request the balance; return None if a lock-out began or the last follower left meanwhile."""
        async with self._connection.calls.turn() as run:
            if not self._intervals or self._connection.seconds_locked_out():
                return None
            return await self._observe(run)

    async def _observe(self, run: http_calls.Run) -> Observation | None:
        outcome: float | StabilityError
        shares: Mapping[_Follower, float] = {}
        wallet: WatchedWallet | None = None
        self._observed_organization = self._organization
        earlier, self._requested_at = self._requested_at, self._loop.time()
        try:
            credits = await self._read_balance(run, self._requested_at)
            if credits is None:
                self._requested_at = earlier  # nothing was requested: the interval must not count from here
                return None
            self._stop_withholding()
            if self._is_paced:
                shares = self._pace(credits, self._observed_organization, self._requested_at)
            wallet = self._shared_key.watched_wallet(self._observed_organization)
            outcome = credits
        except StabilityError as error:
            outcome = error
            self._client.lock_out(error.retry_after)
            if isinstance(error, StabilityPermanentError):
                self._withhold()
        except Exception as error:  # a feed must never fail: a thousand gates would
            outcome = StabilityTransientError(f"The balance could not be read ({type(error).__name__}).")
        had_worked = self._client.key_has_worked
        if not isinstance(outcome, StabilityError):
            self._client.take_note_of_success()
        metrics.polled(self._connection.conn_id, self._observed_organization, outcome)
        metrics.waiting(len(self._state.gates))
        now = datetime.now(UTC)
        return Observation(
            now,
            outcome,
            self._observed_organization,
            self._client.key,
            had_worked,
            requested_at=self._requested_at or 0.0,
            ledger=None if isinstance(outcome, StabilityError) else self._client.ledger,
            wallet=wallet,
            shares=shares,
        )

    def _withhold(self) -> None:
        if self._withheld is None:
            self._withheld = {}
        for follower in self._intervals:
            if reservation := self.pacer.waiting.pop(follower, None):
                self._withheld[follower] = reservation

    def _stop_withholding(self) -> None:
        self.pacer.waiting.update(self._withheld or {})
        self._withheld = None

    async def _read_balance(self, run: http_calls.Run, began: float) -> float | None:
        """Request the balance, and once more if the failure is permanent and the connection has changed."""
        await self._connection.read(since=began - min(self._intervals.values()))
        read_at = self._connection.read_at
        try:
            return await self._call(run)
        except StabilityPermanentError:
            # Another feed may have read the connection before it was fixed. That must not fail a gate.
            if read_at >= began:
                raise
            version = self._client.version
            await self._connection.read(since=began)
            if self._connection.version == version:
                raise
            return await self._call(run)

    async def _call(self, run: http_calls.Run) -> float | None:
        """Call the API; return None if a lock-out began or the last follower left meanwhile."""
        client = self._client.get()
        self._observed_organization = self._organization or client.organization
        if not self._intervals or self._connection.seconds_locked_out():
            return None
        # The interval counts from here: reading the connection can take seconds when Airflow is busy.
        self._requested_at = self._loop.time()
        try:
            with metrics.timed_call(self._connection.conn_id, self._observed_organization):
                balance = await run(client.get_balance, self._organization, seconds=http_calls.POLL_SECONDS)
        except StabilityTimeoutError:
            self._client.close()  # the call may still use it
            raise
        watched = self._is_watched
        if self._is_paced or watched:
            await self._request_account(run, client, watched=watched)
        return balance.credits

    @property
    def _is_watched(self) -> bool:
        """Whether an asset watcher follows the balance of the key's default organization.

        It has to know which one that is: another key may have another one, and no balance says so.
        """
        return self._observed_organization is None and not self._state.gates.issuperset(self._intervals)

    async def _request_account(self, run: http_calls.Run, client: StabilityClient, *, watched: bool) -> None:
        """Find out the key's default organization, if it matters whose credits it has."""
        key, now = self._shared_key, self._loop.time()
        if self._is_paced:
            key.paced.add(self._observed_organization)
        if not (key.default_matters or watched):
            return
        if now < key.request_account_at or self._connection.seconds_locked_out():
            return
        key.request_account_at = now + shared_connection.ACCOUNT_SECONDS  # no other feed requests it, too
        left = (self._requested_at or now) + http_calls.POLL_SECONDS - now
        try:
            account = await run(client.get_account, seconds=left)
        except StabilityPermanentError:
            key.request_account_at = now + shared_connection.DEFAULT_ORGANIZATION_SECONDS
        except StabilityTransientError as error:
            self._client.lock_out(error.retry_after)
            self._client.close()  # after a timeout, the call may still use it
        except Exception:  # noqa: S110 - no thread, for example; the balance must not be lost
            pass
        else:
            key.request_account_at = now + shared_connection.DEFAULT_ORGANIZATION_SECONDS
            if account.default_organization is not None:
                self._state.take_default_organization(key, account.default_organization.id)

    def _pace(
        self, credits: float, organization: str | None, requested_at: float, only: _Follower | None = None
    ) -> dict[_Follower, float]:
        """Let go the tasks of the wallet that a balance covers; return what is reserved for each follower.

        :param only: the one follower to consider, a newcomer.
        """
        key, pacers = self._shared_key, self._state.pacers
        key.paced.add(organization)
        self._paced_as = key, organization
        self.change_wallet(key.wallet(organization))
        others = [pacers[each] for each in key.wallets_perhaps_the_same(organization) if each in pacers]
        return self.pacer.observe(
            credits,
            requested_at=requested_at,
            now=self._loop.time(),
            only=only,
            also_reserved=total(*(other.reserved(requested_at) for other in others)),
        )

    @property
    def _shared_key(self) -> SharedKey:
        assert self._client.shared_key is not None  # a balance was read
        return self._client.shared_key


def _prepare(gates: int) -> None:
    import airflow_stability.hooks.connection  # noqa: F401

    metrics.waiting(gates)
