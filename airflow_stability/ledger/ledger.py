"""The ledger's transactions: hold credits, begin a call, end what was held, and settle what is unknown.

When a connection breaks, nobody can tell whether the transaction was committed. So each transaction can be
run twice with the same effect as once, because each spend has a key. All transactions lock in one order: the
wallet, the budgets by name, the spends.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import and_, bindparam, func, or_, select
from sqlalchemy.engine import Connection, RowMapping
from sqlalchemy.exc import IntegrityError

from airflow_stability.errors import (
    StabilityBudgetExhaustedError,
    StabilityBudgetNotFoundError,
    StabilityConfigurationError,
)
from airflow_stability.ledger import budgets
from airflow_stability.ledger.budgets import COUNTING, Budget
from airflow_stability.ledger.database import Database
from airflow_stability.ledger.schema import balances, spends, wallets
from airflow_stability.rules.credits import from_microcredits, to_microcredits
from airflow_stability.rules.gate import suffices
from airflow_stability.rules.wording import clock_time
from airflow_stability.validation import format_number, safe_repr

HELD, POSTED, VOID, UNKNOWN = "held", "posted", "void", "unknown"
DECLARED, LISTED = "declared", "listed"

#: Seconds for which credits are held for a task that was let go and has not begun on a worker yet.
START_SECONDS = 900.0

#: Seconds that a run of a function, or a call, may take. After that, its outcome is unknown.
LEASE_SECONDS = 7200.0

#: Seconds after which the outcome of a call is overdue. With the default settings, no call takes longer.
OVERDUE_SECONDS = 300.0

#: How long after the end of its lease tasks still look into a spend whose outcome was not reported.
LOOKED_FOR = timedelta(days=7)

#: The reason of a spend that is unknown because its lease ended before its outcome was reported.
NEVER_REPORTED = "Its lease ended, and its outcome was never reported."

#: What is added to that reason when a task has looked for the outcome and found nothing.
NOTHING_LEFT = "Its task has left no outcome."

#: The states that may follow a state. What is posted or void may still change into the other: a worker that
#: was taken for dead may come back with the truth.
_NEXT = {
    HELD: (POSTED, VOID, UNKNOWN),
    UNKNOWN: (POSTED, VOID),
    POSTED: (VOID,),
    VOID: (POSTED,),
}

#: Whether a held spend may have been paid for. A run whose calls are itemized pays only by those calls.
BEGUN = and_(spends.c.started_at.is_not(None), ~spends.c.itemized)

_IS_CALL = spends.c.endpoint.is_not(None)

#: The columns that identify a task instance, whatever its try.
_TASK = ("dag_id", "run_id", "task_id", "map_index")

# Made once, so that SQLAlchemy compiles each statement, and computes its cache key, only once.
_INSERT = spends.insert()
_LOCK = select(spends).where(spends.c.spend_key == bindparam("key")).with_for_update()


@dataclass(frozen=True)
class Spender:
    """Who spends, from which wallet, and for which budget.

    :param conn_id: the Stability connection.
    :param organization: whose credits; None if it is not known.
    :param budget: the budget's name; None if the spend has none.
    """

    conn_id: str
    organization: str | None = None
    budget: str | None = None
    dag_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None
    map_index: int | None = None
    try_number: int | None = None

    @property
    def wallet(self) -> str:
        """Whose credits are spent, as far as it is known."""
        return self.organization or f"connection {self.conn_id}"


@dataclass(frozen=True)
class Hold:
    """Credits to hold for a run of a task, before it begins.

    :param key: identifies the hold: the same key holds nothing twice.
    :param credits: what the run will spend.
    :param minimum: the credits that the wallet must exceed; None if the credits themselves are enough.
    :param itemized: whether every payment of the run is a call of ours, which gets a spend of its own.
    :param starts: whether the run begins at once.
    :param replays: whether the task has had a run before. The durable calls of that run are not paid for
        again, so their credits are not held.
    :param lease: seconds until the hold ends by itself, if nobody ends it.
    """

    key: str
    spender: Spender
    credits: float
    minimum: float | None = None
    itemized: bool = False
    starts: bool = False
    replays: bool = False
    lease: float = START_SECONDS


@dataclass(frozen=True)
class Reading:
    """A balance that was read.

    :param credits: the balance.
    :param age: seconds since it was requested.
    """

    credits: float
    age: float


@dataclass
class HoldResult:
    """What became of holds.

    :param held: the keys of what is held now.
    :param refused: by refused key, the budget that has too little left; None if the balance is too low.
    :param failures: by key that can never be held, the reason.
    :param reserved: by key that was refused because of the balance, the credits of it that others hold.
    :param needed: by refused key, the credits that were to be held.
    :param budgets: the budgets of the holds, as they are now.
    :param soft_limits: the budgets that have reached their soft limits through these holds.
    """

    held: list[str] = field(default_factory=list)
    refused: dict[str, Budget | None] = field(default_factory=dict)
    failures: dict[str, StabilityConfigurationError] = field(default_factory=dict)
    reserved: dict[str, float] = field(default_factory=dict)
    needed: dict[str, float] = field(default_factory=dict)
    budgets: list[Budget] = field(default_factory=list)
    soft_limits: list[Budget] = field(default_factory=list)


@dataclass(frozen=True)
class Call:
    """A call that may be charged, before it is sent.

    :param key: identifies the call: the same key is written once.
    :param endpoint: the path below ``/v2beta/``, or the whole path.
    :param credits: its price; None if none is known.
    :param output: where its output will be, if the call is durable.
    :param lease: seconds after which its outcome is unknown, if nobody has ended it.
    """

    key: str
    spender: Spender
    endpoint: str
    credits: float | None
    output: str | None = None
    lease: float = LEASE_SECONDS


@dataclass(frozen=True)
class Unreported:
    """A spend whose outcome was not reported to the ledger. Its fields are columns of the table."""

    spend_key: str
    dag_id: str | None
    run_id: str | None
    task_id: str | None
    map_index: int | None
    output: str | None


class Ledger:
    """The ledger in one database.

    All methods raise StabilityLedgerUnavailableError if the database is out of reach, and
    StabilityConfigurationError if its tables are missing or of another version.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    # Budgets

    def set_budget(self, name: str, limit: float | str, every: str, **more: Any) -> Budget:
        """Make or change a budget, and return it; see :func:`airflow_stability.ledger.budgets.checked`."""

        def work(connection: Connection, now: datetime) -> Budget:
            budget = budgets.checked(name, limit, every, now=now, **more)
            budgets.put(connection, budget, now)
            return budget

        try:
            return self.database.run(work)
        except IntegrityError:  # somebody has just made it
            return self.database.run(work)

    def delete_budget(self, name: str) -> bool:
        """Delete a budget, and tell whether there was one. Its spends stay."""

        def work(connection: Connection, _now: datetime) -> bool:
            return budgets.delete(connection, name)

        return self.database.run(work)

    def budgets(self) -> list[Budget]:
        """Return all budgets, by name."""
        return self.database.run(budgets.look)

    def budget(self, name: str) -> Budget:
        """Return a budget.

        :raises StabilityBudgetNotFoundError: there is none of this name.
        """
        for budget in self.budgets():
            if budget.name == name:
                return budget
        raise StabilityBudgetNotFoundError(_no_budget_text(name))

    # Spends

    def hold(self, holds: Sequence[Hold], reading: Reading | None = None) -> HoldResult:
        """Hold credits for tasks, in the order of the list, as far as their budgets and the balance allow.

        A key that holds credits already keeps them, whatever is left now. If a hold is refused, the spends
        whose leases are over are ended, and the holds are tried again: tasks that died before they began may
        have held the missing credits.

        :param holds: those of one wallet.
        :param reading: the wallet's balance; None to look at budgets only.
        """
        if not holds:
            return HoldResult()
        holds = list({each.key: each for each in holds}.values())
        result = self._hold(holds, reading)
        if not result.refused or not self.end_leases():
            return result
        again = self._hold(holds, reading)
        again.soft_limits[:0] = result.soft_limits
        return again

    def _hold(self, holds: Sequence[Hold], reading: Reading | None) -> HoldResult:
        def work(connection: Connection, now: datetime, *, look_first: bool = False) -> HoldResult:
            to_pay = _without_durable_calls(connection, holds)
            at_once = None if look_first else _hold_at_once(connection, now, to_pay, reading)
            return at_once or _hold(connection, now, to_pay, reading, look_first=look_first)

        try:
            return self.database.run(work)
        except IntegrityError:  # one of the keys, or the wallet, exists already
            return self.database.run(functools.partial(work, look_first=True))

    def start(
        self, key: str, budget: str | None, *, itemized: bool = False, lease: float = LEASE_SECONDS
    ) -> bool:
        """Take note that the run of a hold begins; False if the hold has ended, or is of another budget."""

        def work(connection: Connection, now: datetime) -> bool:
            change = (
                spends.update()
                .where(spends.c.spend_key == key, spends.c.state == HELD, spends.c.budget == budget)
                .values(started_at=now, itemized=itemized, lease_ends_at=now + timedelta(seconds=lease))
            )
            return bool(connection.execute(change).rowcount)

        return self.database.run(work)

    def begin_call(self, call: Call, hold: str | None) -> list[Budget]:
        """Write down a call before it is sent. It takes its credits out of the hold of its run.

        :param hold: the key of that hold; None for a call outside of one. What the hold does not cover is
            taken from the budget.
        :return: the budgets that have reached their soft limits through this call.
        :raises StabilityBudgetExhaustedError: the budget has too little left. The call must not be sent.
        :raises StabilityConfigurationError: there is no such budget, or its limit is less than the price.
        """
        try:
            return self._begin_call(call, hold)
        except StabilityBudgetExhaustedError:
            if not self.end_leases():
                raise
        return self._begin_call(call, hold)

    def _begin_call(self, call: Call, hold: str | None) -> list[Budget]:
        try:
            return self.database.run(lambda connection, now: _begin_call(connection, now, call, hold))
        except (IntegrityError, _WrittenError):  # committed by an earlier try of this transaction
            return []

    def end(self, key: str, state: str, reason: str | None = None) -> bool:
        """Write down how a spend ended; False if nothing changes, or there is no such spend.

        :param state: ``posted``, ``void`` or ``unknown``.
        """

        def work(connection: Connection, now: datetime) -> bool:
            return bool(_end(connection, now, [spends.c.spend_key == key], state, reason))

        return self.database.run(work)

    def release(self, key: str, reason: str) -> None:
        """Give back a hold whose run has not begun. Any other spend stays as it is."""
        not_begun = [spends.c.spend_key == key, spends.c.state == HELD, spends.c.started_at.is_(None)]
        self.database.run(lambda connection, now: _end(connection, now, not_begun, VOID, reason))

    def output_found(self, output: str) -> None:
        """Take note that the output of an earlier call was found: that call was paid for.

        If several open calls were to make this output, or if a later one is posted, nobody can tell which of
        them made it. Then nothing changes.
        """

        def work(connection: Connection, now: datetime) -> None:
            of_output = spends.c.output_hash == _hash(output)
            rows = (
                connection.execute(select(spends).where(of_output, spends.c.state != VOID)).mappings().all()
            )
            still_open = [row for row in rows if row["state"] != POSTED]
            if len(still_open) != 1:
                return
            key, held_at = still_open[0]["spend_key"], still_open[0]["held_at"]
            if not any(row["state"] == POSTED and row["ended_at"] >= held_at for row in rows):
                is_open = [spends.c.spend_key == key, spends.c.state.in_((HELD, UNKNOWN))]
                _end(connection, now, is_open, POSTED, "Its output was found.")

        self.database.run(work)

    def settle(self, key: str, state: str, who: str, reason: str | None = None) -> bool:
        """Write down what a person has found out about a spend; False if the ledger knew it already.

        What is unknown can be settled, and what is held beyond its lease.

        :param state: ``posted`` if it was paid for, ``void`` if not.
        :param who: the person's name.
        :param reason: how the person knows.
        :raises ValueError: there is no such spend, it has ended otherwise, or its task may still be running.
        """
        if state not in (POSTED, VOID):
            raise ValueError(f"A spend is settled as {POSTED} or {VOID}; got {safe_repr(state)}.")
        by = f"Settled by {who}: {reason}" if reason else f"Settled by {who}."

        def work(connection: Connection, now: datetime) -> bool:
            may_be_paid = [] if state == VOID else [BEGUN]
            over = and_(is_over(now), *may_be_paid)
            where = [spends.c.spend_key == key, or_(spends.c.state == UNKNOWN, over)]
            if _end(connection, now, where, state, by):
                return True
            row = _lock_spend(connection, key)
            if row is None or row["state"] != state:
                raise ValueError(_not_settled_text(key, row, state, now))
            return False

        return self.database.run(work)

    def end_leases(self) -> int:
        """End what is held beyond its lease, and return how many spends were given back by that."""

        def end(which: Any, state: str, reason: str) -> int:
            def work(connection: Connection, now: datetime) -> int:
                return _end(connection, now, [is_over(now), which], state, reason)

            return self.database.run(work)

        # Two transactions, since each locks the budgets before the spends.
        end(BEGUN, UNKNOWN, NEVER_REPORTED)
        return end(~BEGUN, VOID, "Its lease ended. It never ran, or each of its calls is a spend of its own.")

    def unreported(self, limit: int) -> list[Unreported]:
        """Return the latest spends whose outcome was not reported, and that no task has looked into.

        They are of two kinds: calls that are overdue, and spends that became unknown when their lease ended.
        After :meth:`note`, a held call is returned no more until its lease has ended, and then until it is
        noted again.

        :param limit: the most spends of each kind.
        """

        def work(connection: Connection, now: datetime) -> list[Unreported]:
            ends_at = spends.c.lease_ends_at
            overdue_at = now + timedelta(seconds=LEASE_SECONDS - OVERDUE_SECONDS)
            kinds = (
                (spends.c.state == UNKNOWN, spends.c.reason == NEVER_REPORTED, ends_at > now - LOOKED_FOR),
                # Calls only: a run may take as long as it likes.
                (spends.c.state == HELD, spends.c.reason.is_(None), ends_at < overdue_at, _IS_CALL),
            )
            found: list[Unreported] = []
            for kind in kinds:  # two queries, so that each reads the index in its order
                query = select(*_UNREPORTED).where(*kind).order_by(ends_at.desc()).limit(limit)
                found += [Unreported(*row) for row in connection.execute(query)]
            return found

        return self.database.run(work)

    def note(self, key: str, finding: str) -> None:
        """Take note of what was found about an unreported spend. The spend keeps its state.

        :param finding: what was found. Nothing changes if the spend has ended meanwhile.
        """
        of_key = spends.c.spend_key == key

        def work(connection: Connection, _now: datetime) -> None:
            held = (of_key, spends.c.state == HELD, spends.c.reason.is_(None))
            ended = (of_key, spends.c.state == UNKNOWN, spends.c.reason == NEVER_REPORTED)
            for where, reason in ((held, finding), (ended, f"{NEVER_REPORTED} {finding}")):
                connection.execute(spends.update().where(*where).values(reason=reason[:500]))

        self.database.run(work)

    def end_earlier_tries(self, spender: Spender) -> None:
        """Give back what earlier tries of a task still hold, if their calls are itemized.

        Such a hold cannot have been paid for, and its try can spend no more.
        """
        earlier = [spends.c.state == HELD, ~BEGUN, spends.c.try_number < spender.try_number]
        reason = "Its try is over. It never ran, or each of its calls is a spend of its own."

        def work(connection: Connection, now: datetime) -> None:
            _end(connection, now, [_is_of_task(spender), *earlier], VOID, reason)

        self.database.run(work)

    def not_charged(self, output: str, reason: str) -> None:
        """Take note that the API has not charged the last call for an output, although it accepted it."""

        def work(connection: Connection, now: datetime) -> None:
            of_output = (spends.c.output_hash == _hash(output), spends.c.state != VOID)
            query = select(spends.c.spend_key).where(*of_output).order_by(spends.c.held_at.desc())
            key = connection.execute(query).scalars().first()
            _end(connection, now, [spends.c.spend_key == key], VOID, reason)

        self.database.run(work)


#: The columns of an unreported spend.
_UNREPORTED = [spends.c[field.name] for field in fields(Unreported)]


def is_over(now: datetime) -> Any:
    """Return the condition that a spend is held beyond its lease."""
    return and_(spends.c.state == HELD, spends.c.lease_ends_at < now)


def _is_of_task(spender: Spender) -> Any:
    """Return the condition that a spend is of the same task, in whatever try."""
    return and_(*(spends.c[name] == getattr(spender, name) for name in _TASK))


class _WrittenError(Exception):
    """The call is written down already. This ends the transaction without a change."""


def _known(connection: Connection, keys: Iterable[str]) -> dict[str, RowMapping]:
    """Lock the spends that have one of the keys, and return them by key."""
    query = select(spends).where(spends.c.spend_key.in_(list(keys))).order_by(spends.c.spend_key)
    return {row["spend_key"]: row for row in connection.execute(query.with_for_update()).mappings()}


def _without_durable_calls(connection: Connection, holds: Sequence[Hold]) -> Sequence[Hold]:
    """Return the holds without the credits of the durable calls that their tasks have made, in any try."""
    # The calls of a spender that is no task cannot be told from those of others.
    runs = {each.spender.run_id for each in holds if each.replays and each.spender.run_id is not None}
    if not runs:
        return holds
    task = [spends.c[name] for name in _TASK]
    durable = [spends.c.output_hash.is_not(None), spends.c.state.in_(COUNTING)]
    query = select(*task, func.sum(spends.c.microcredits)).where(spends.c.run_id.in_(runs), *durable)
    paid = {tuple(row[:-1]): int(row[-1]) for row in connection.execute(query.group_by(*task))}

    def to_pay(hold: Hold) -> Hold:
        already = paid.get(tuple(getattr(hold.spender, name) for name in _TASK), 0)
        if not hold.replays or not already:
            return hold
        return replace(hold, credits=from_microcredits(max(to_microcredits(hold.credits) - already, 0)))

    return [to_pay(each) for each in holds]


def _hold_at_once(
    connection: Connection, now: datetime, holds: Sequence[Hold], reading: Reading | None
) -> HoldResult | None:
    """Do what :func:`_hold` does, with fewer queries, for a single new hold that fits; else return None."""
    hold = holds[0]
    microcredits, name = to_microcredits(hold.credits), hold.spender.budget
    if len(holds) > 1 or reading is not None or name is None:
        return None
    if not budgets.take(connection, name, microcredits, now):
        return None
    connection.execute(_INSERT, _hold_values(hold, microcredits, now))
    return HoldResult([hold.key])


def _hold(
    connection: Connection,
    now: datetime,
    holds: Sequence[Hold],
    reading: Reading | None,
    *,
    look_first: bool = False,
) -> HoldResult:
    result = HoldResult()
    spoken_for = 0
    if reading is not None:
        wallet = holds[0].spender.wallet
        _take_reading(connection, now, wallet, reading)
        spoken_for = _spoken_for(connection, wallet, now - timedelta(seconds=reading.age))
    locked = _lock(connection, (each.spender.budget for each in holds), now)
    before = {name: budget.used for name, budget in locked.items()}
    known = _known(connection, (each.key for each in holds)) if look_first else {}
    new = []
    for hold in holds:
        row, name, microcredits = known.get(hold.key), hold.spender.budget, to_microcredits(hold.credits)
        budget = None if name is None else locked.get(name)
        if row is not None and row["state"] != VOID:
            result.held.append(hold.key)
            if row["started_at"] is None:  # its trigger started anew
                lease = {"lease_ends_at": now + timedelta(seconds=hold.lease)}
                connection.execute(spends.update().where(spends.c.spend_key == hold.key).values(lease))
        elif name is not None and budget is None:
            result.failures[hold.key] = StabilityBudgetNotFoundError(_no_budget_text(name))
        elif budget is not None and microcredits > budget.limit:
            result.failures[hold.key] = StabilityConfigurationError(_too_large_text(budget, hold.credits))
        elif reading is not None and not _suffices(hold, reading, spoken_for):
            result.refused[hold.key], result.needed[hold.key] = None, hold.credits
            result.reserved[hold.key] = from_microcredits(spoken_for)
        elif budget is not None and microcredits and microcredits > budget.left:
            result.refused[hold.key], result.needed[hold.key] = budget, hold.credits
        else:
            values = _hold_values(hold, microcredits, budgets.held_at(budget, now))
            if row is None:
                new.append(values)
            else:
                connection.execute(spends.update().where(spends.c.spend_key == hold.key).values(values))
            budgets.count(budget, values["held_at"], microcredits)
            spoken_for += microcredits
            result.held.append(hold.key)
    if not look_first and len(result.held) < len(holds):
        # If an earlier try was committed, these same holds may be the reason why too little is left.
        return _hold(connection, now, holds, reading, look_first=True)
    if new:
        connection.execute(_INSERT, new if len(new) > 1 else new[0])
    result.budgets = list(locked.values())
    result.soft_limits = _save(connection, locked, before, now)
    return result


def _begin_call(connection: Connection, now: datetime, call: Call, hold_key: str | None) -> list[Budget]:
    name = call.spender.budget
    locked = _lock(connection, [name], now)
    before = {each: budget.used for each, budget in locked.items()}
    budget = None if name is None else locked.get(name)
    if name is not None and budget is None:
        raise StabilityBudgetNotFoundError(_no_budget_text(name))
    hold = None if hold_key is None else _lock_spend(connection, hold_key)
    held = hold["microcredits"] if hold is not None and hold["state"] in (HELD, UNKNOWN) else 0
    if call.credits is None:
        # The first call without a known price gets all that the task still holds: nothing better is known.
        microcredits, how = held, DECLARED if held else UNKNOWN
    else:
        microcredits, how = to_microcredits(call.credits), LISTED
    taken = min(held, microcredits)
    used = 0 if budget is None else budget.used
    if hold is not None and hold["state"] in (HELD, UNKNOWN):
        # A run that makes calls is alive.
        rest = {"microcredits": held - taken, "lease_ends_at": now + timedelta(seconds=call.lease)}
        connection.execute(spends.update().where(spends.c.spend_key == hold_key).values(rest))
        budgets.count(budget, hold["held_at"], -taken)
    held_at = budgets.held_at(budget, now)
    budgets.count(budget, held_at, microcredits)
    if budget is not None and budget.used > max(budget.limit, used):
        if _known(connection, [call.key]):  # an earlier try was committed
            raise _WrittenError
        budget.used = used
        needs = format_number(from_microcredits(microcredits))
        if microcredits > budget.limit:
            raise StabilityConfigurationError(
                f"{call.endpoint} needs {needs} credits, and the limit of its budget is less, so it could "
                f"never be sent: {budget.text}. Nothing was sent. Raise the limit."
            )
        raise StabilityBudgetExhaustedError(
            f"{budget.text}; {call.endpoint} needs {needs}. Nothing was sent. "
            f"{StabilityBudgetExhaustedError.advice}"
        )
    values = _values(call.spender) | {
        "spend_key": call.key,
        "state": HELD,
        "microcredits": microcredits,
        "known": how,
        "endpoint": call.endpoint[:250],
        "output": call.output and call.output[:1000],
        "output_hash": call.output and _hash(call.output),
        "itemized": False,
        "held_at": held_at,
        "held_on": held_at.date(),
        "started_at": now,
        "lease_ends_at": now + timedelta(seconds=call.lease),
    }
    connection.execute(_INSERT, values)
    return _save(connection, locked, before, now)


def _end(connection: Connection, now: datetime, where: Sequence[Any], state: str, reason: str | None) -> int:
    """End the spends that meet all conditions, and return how many of them this has changed."""
    found = list(connection.execute(select(spends.c.spend_key, spends.c.budget).where(*where)))
    locked = _lock(connection, (budget for _, budget in found), now)
    before = {name: budget.used for name, budget in locked.items()}
    ended = 0
    for key, _ in sorted(found):
        row = _lock_spend(connection, key, *where)
        if row is not None and state in _NEXT[row["state"]]:
            _change(connection, now, row, locked, state, reason)
            ended += 1
    _save(connection, locked, before, now)
    return ended


def _change(
    connection: Connection,
    now: datetime,
    row: RowMapping,
    locked: Mapping[str, Budget],
    state: str,
    reason: str | None,
) -> None:
    change = (state in COUNTING) - (row["state"] in COUNTING)
    budgets.count(locked.get(row["budget"] or ""), row["held_at"], change * row["microcredits"])
    values = {"state": state, "ended_at": now, "reason": reason and reason[:500]}
    connection.execute(spends.update().where(spends.c.spend_key == row["spend_key"]).values(values))


def _lock(connection: Connection, names: Iterable[str | None], now: datetime) -> dict[str, Budget]:
    return budgets.lock(connection, (name for name in names if name is not None), now)


def _save(
    connection: Connection, locked: Mapping[str, Budget], before: Mapping[str, int], now: datetime
) -> list[Budget]:
    """Write the budgets that have changed, and return those that have now reached their soft limits."""
    changed = [budget for name, budget in locked.items() if budget.used != before[name]]
    return [budget for budget in changed if budgets.save(connection, budget, now)]


def _lock_spend(connection: Connection, key: str, *where: Any) -> RowMapping | None:
    """Lock a spend, and return it as it is now; None if it no longer meets the conditions."""
    query = _LOCK.where(*where) if where else _LOCK
    return connection.execute(query, {"key": key}).mappings().first()


def _take_reading(connection: Connection, now: datetime, wallet: str, reading: Reading) -> None:
    """Lock a wallet, and keep its balance if it has changed."""
    row = connection.execute(select(wallets).where(wallets.c.wallet == wallet).with_for_update()).first()
    read_at = now - timedelta(seconds=reading.age)
    values = {"microcredits": to_microcredits(reading.credits), "read_at": read_at}
    if row is None:
        connection.execute(wallets.insert().values(wallet=wallet, **values))
    elif row.read_at >= read_at:
        return  # somebody else has read a later balance
    else:
        connection.execute(wallets.update().where(wallets.c.wallet == wallet).values(values))
    if row is None or row.microcredits != values["microcredits"]:
        connection.execute(balances.insert().values(wallet=wallet, **values))


def _spoken_for(connection: Connection, wallet: str, read_at: datetime) -> int:
    """Return how much of a balance is taken: what is held, or may have been paid for since it was read."""
    not_in_the_balance = or_(
        spends.c.state == HELD,
        and_(spends.c.state.in_((POSTED, UNKNOWN)), spends.c.ended_at >= read_at),
    )
    query = select(func.sum(spends.c.microcredits)).where(spends.c.wallet == wallet, not_in_the_balance)
    return int(connection.execute(query).scalar() or 0)


def _suffices(hold: Hold, reading: Reading, spoken_for: int) -> bool:
    return suffices(reading.credits, hold.minimum, hold.credits, reserved=from_microcredits(spoken_for))


def _hold_values(hold: Hold, microcredits: int, held_at: datetime) -> dict[str, Any]:
    return _values(hold.spender) | {
        "spend_key": hold.key,
        "state": HELD,
        "microcredits": microcredits,
        "known": DECLARED,
        "itemized": hold.itemized,
        "held_at": held_at,
        "held_on": held_at.date(),
        "started_at": held_at if hold.starts else None,
        "lease_ends_at": held_at + timedelta(seconds=hold.lease),
        "ended_at": None,
        "reason": None,
    }


def _values(spender: Spender) -> dict[str, Any]:
    return {**vars(spender), "wallet": spender.wallet}


def _no_budget_text(name: str) -> str:
    return f"There is no budget {name!r} in the ledger. {StabilityBudgetNotFoundError.advice}"


def _too_large_text(budget: Budget, credits: float) -> str:
    return (
        f"The task needs {format_number(credits)} credits, and the limit of its budget is less, so it could "
        f"never run: {budget.text}. Raise the limit, or lower the credits."
    )


def _not_settled_text(key: str, row: RowMapping | None, state: str, now: datetime) -> str:
    """Return why a spend cannot be settled.

    :param row: None if there is none.
    """
    if row is None:
        advice = "`airflow stability ledger settle` lists those to settle"
        return f"There is no spend {safe_repr(key)} in the ledger; {advice}."
    if row["state"] != HELD:
        reason = f" ({row['reason']})" if row["reason"] else ""
        return f"Spend {key!r} is {row['state']} already{reason}, so it cannot become {state}."
    if row["lease_ends_at"] < now:
        return (
            f"Spend {key!r} never ran, or each of its calls is a spend of its own: it can only become {VOID}."
        )
    until = clock_time(row["lease_ends_at"].replace(tzinfo=UTC))
    return f"Spend {key!r} is held until {until}, and its task may be running: it cannot be settled before."


def _hash(output: str) -> str:
    return hashlib.sha256(output.encode()).hexdigest()
