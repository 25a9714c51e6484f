"""The ledgers on the page: who has spent what, which budgets are nearly used up, and who waits for them.

A ledger is shown to users who may read a Stability connection that names it. Nothing of
:mod:`airflow_stability.ledger` is loaded before a connection names one. If a ledger has an error, only its
own part of the page is affected.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_stability.errors import StabilityError, StabilityLedgerUnavailableError
from airflow_stability.page.plot import bars
from airflow_stability.page.shared_read import SharedRead
from airflow_stability.page.waiting_tasks import task_list
from airflow_stability.rules.credits import from_microcredits

if TYPE_CHECKING:
    from airflow_stability.ledger.budgets import Budget
    from airflow_stability.ledger.ledger import Ledger
    from airflow_stability.ledger.report import Remainder, Sum
    from airflow_stability.page.balance_cache import CachedConnection
    from airflow_stability.page.waiting_tasks import WaitingTask

log = logging.getLogger(__name__)

#: The periods for which credits are summed up, in whole days that include today.
PERIODS = (1, 7, 30)

#: The most DAGs, and the most remainders of wallets, that are shown.
MAX_SHOWN_DAGS = 50
MAX_WALLETS = 20

#: The most DAGs that the auth manager is asked about: those that spent most. Some auth managers ask a server
#: about each DAG.
MAX_ASKED_DAGS = 200

#: The least seconds that a page waits for a ledger, however long the balances took.
MIN_WAIT_SECONDS = 0.2


@dataclass(frozen=True)
class LedgerRead:
    """What was read from a ledger.

    :param failure: why nothing was read, in one sentence; None if it was.
    :param today: the date in UTC, by the database's clock.
    :param sums: by day, DAG and budget.
    :param held: the sum of all that is held now.
    :param unknown: the sum of all that is unknown now.
    :param remainders: for each period, the remainders of wallets.
    """

    failure: str | None = None
    today: date = date.min
    sums: Sequence[Sum] = ()
    held: Sum | None = None
    unknown: Sum | None = None
    budgets: Sequence[Budget] = ()
    remainders: Sequence[Mapping[str, Remainder]] = ()


@dataclass
class Spent:
    """What a DAG, or the tasks of a budget, have spent, in millionths of a credit.

    :param periods: what is posted, held or unknown, for each of :data:`PERIODS`.
    :param held: what is held in the longest period.
    :param unknown: what is unknown in the longest period.
    """

    periods: list[int] = field(default_factory=lambda: [0] * len(PERIODS))
    held: int = 0
    unknown: int = 0

    def add(self, each: Sum, days_ago: int) -> None:
        """Add the sum of a day."""
        for number, days in enumerate(PERIODS):
            if days_ago < days:
                self.periods[number] += each.used
        self.held += each.held
        self.unknown += each.unknown

    def take(self, other: Spent) -> None:
        """Add what another DAG has spent."""
        self.periods = [sum(both) for both in zip(self.periods, other.periods, strict=True)]
        self.held += other.held
        self.unknown += other.unknown

    def content(self, name: str | None = None) -> dict[str, Any]:
        """Return what the template shows, in credits."""
        return {
            "name": name,
            "periods": [from_microcredits(each) for each in self.periods],
            "held": from_microcredits(self.held),
            "unknown": from_microcredits(self.unknown),
        }


class Ledgers:
    """What was read from the ledgers. Each is read rarely, in the background, and once for all users."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reads: dict[str, SharedRead[LedgerRead]] = {}

    def get(self, connections: Mapping[str, CachedConnection], wait_seconds: float) -> list[LedgerPart]:
        """Return the part of each ledger that one of the connections names.

        :param connections: the Stability connections that the user may read.
        :param wait_seconds: how long to wait for reads.
        """
        until = time.monotonic() + max(wait_seconds, MIN_WAIT_SECONDS)
        users: dict[str, dict[str, CachedConnection]] = defaultdict(dict)
        for conn_id, connection in connections.items():
            if connection.ledger is not None:
                users[connection.ledger.conn_id][conn_id] = connection
        reads = {conn_id: self._read(conn_id) for conn_id in sorted(users)}
        for read in reads.values():
            read.get(0.0)  # starts it
        return [
            LedgerPart(conn_id, users[conn_id], *read.get(until - time.monotonic()))
            for conn_id, read in reads.items()
        ]

    def _read(self, conn_id: str) -> SharedRead[LedgerRead]:
        with self._lock:
            if conn_id not in self._reads:
                self._reads[conn_id] = SharedRead(
                    lambda _now: read_ledger(conn_id), has_failed=lambda read: read.failure is not None
                )
            return self._reads[conn_id]


def read_ledger(conn_id: str) -> LedgerRead:
    """Read a ledger.

    :param conn_id: the connection to its database.
    """
    try:
        from airflow_stability.hooks.ledger import open_ledger

        return read_all(open_ledger(conn_id))
    except StabilityLedgerUnavailableError as error:
        # The user may read the Stability connection, but perhaps not the database's, whose errors name hosts.
        log.warning("The Credits page cannot read a ledger: %s", error)
        return LedgerRead(
            f"The ledger in connection {conn_id!r} is out of reach. The log of the API server says why."
        )
    except StabilityError as error:
        return LedgerRead(str(error))
    except Exception as error:  # a ledger must not fail the page, and the text may hold a secret
        log.warning("The Credits page cannot read the ledger in connection %r: %s", conn_id, type(error))
        return LedgerRead(f"The ledger in connection {conn_id!r} cannot be read ({type(error).__name__}).")


def read_all(ledger: Ledger) -> LedgerRead:
    """Return what the page shows of a ledger.

    :raises StabilityError: the ledger cannot be read.
    """
    from airflow_stability.ledger.report import daily_sums, open_sums, remainders

    database = ledger.database
    # One transaction for each: on SQLite, tasks cannot write while one is open.
    today, sums = daily_sums(database, PERIODS[-1])
    held, unknown = open_sums(database)
    found = [remainders(database, _first_day(today, days), MAX_WALLETS) for days in PERIODS]
    return LedgerRead(
        None,
        today,
        sums,
        held,
        unknown,
        ledger.budgets(),
        [{each.wallet: each for each in of_period} for of_period in found],
    )


class LedgerPart:
    """The part of a ledger on a user's page.

    :param conn_id: the connection to the ledger's database.
    :param connections: the Stability connections that name it and that the user may read.
    :param read: what was read; None if nothing was yet.
    :param read_at: when it was read, if a later read is still under way; else None.
    """

    def __init__(
        self,
        conn_id: str,
        connections: Mapping[str, CachedConnection],
        read: LedgerRead | None,
        read_at: datetime | None,
    ) -> None:
        self._conn_id = conn_id
        self._connections = connections
        self._read = read
        self._read_at = read_at
        self._total = Spent()
        self._by_dag: dict[str | None, Spent] = defaultdict(Spent)
        self._by_budget: dict[str | None, Spent] = defaultdict(Spent)
        if read is not None:
            self._add(read)

    def _add(self, read: LedgerRead) -> None:
        for each in read.sums:
            group: Any = each.group
            day, dag_id, budget = group
            days_ago = (read.today - day).days
            for spent in (self._total, self._by_dag[dag_id], self._by_budget[budget]):
                spent.add(each, days_ago)

    @property
    def pending(self) -> bool:
        """Whether the ledger is still being read."""
        return self._read is None or self._read_at is not None

    @property
    def dag_ids(self) -> list[str]:
        """The DAGs that have spent most, about which the auth manager is asked."""
        dags = ((each.periods[-1], dag_id) for dag_id, each in self._by_dag.items() if dag_id is not None)
        return [dag_id for _, dag_id in sorted(dags, reverse=True)[:MAX_ASKED_DAGS]]

    def content(self, tasks: Iterable[WaitingTask], dag_ids: Collection[str]) -> dict[str, Any]:
        """Return what the template shows.

        :param tasks: the tasks that wait.
        :param dag_ids: the DAGs that the user may read.
        """
        read = self._read
        head = {
            "conn_id": self._conn_id,
            "conn_ids": [*self._connections],
            "pending": read is None,
            "read_at": self._read_at,
            "failure": read and read.failure,
        }
        if read is None or read.failure is not None:
            return head
        assert read.held is not None
        assert read.unknown is not None
        return head | {
            "since": [_first_day(read.today, days) for days in PERIODS],
            "total": self._total.content(),
            "dags": self._dag_rows(dag_ids),
            "budgets": self._budget_rows(read.budgets, tasks, dag_ids),
            "held": {"credits": from_microcredits(read.held.held), "spends": read.held.spends},
            "unknown": {"credits": from_microcredits(read.unknown.unknown), "spends": read.unknown.spends},
            "remainders": self._remainder_rows(read.remainders),
            **_days(read),
        }

    def _dag_rows(self, dag_ids: Collection[str]) -> dict[str, Any]:
        """Return the DAGs that have spent most, and the sums of those that are left out or hidden."""
        asked, readable = {None, *self.dag_ids}, {None, *dag_ids}
        shown: list[dict[str, Any]] = []
        more, hidden = Spent(), Spent()
        counts = {"more": 0, "hidden": 0}
        for dag_id, each in sorted(
            self._by_dag.items(), key=lambda item: (-item[1].periods[-1], item[0] or "")
        ):
            if dag_id in asked and dag_id not in readable:
                rest, name = hidden, "hidden"
            elif dag_id not in asked or len(shown) == MAX_SHOWN_DAGS:
                rest, name = more, "more"
            else:
                shown.append(each.content(dag_id))
                continue
            counts[name] += 1
            rest.take(each)
        return {
            "shown": shown,
            "more": more.content() | {"count": counts["more"]},
            "hidden": hidden.content() | {"count": counts["hidden"]},
        }

    def _budget_rows(
        self, budgets: Iterable[Budget], tasks: Iterable[WaitingTask], dag_ids: Collection[str]
    ) -> list[dict[str, Any]]:
        """Return the budgets, then those that no longer exist, then what was spent without a budget."""
        waiting: dict[str | None, list[WaitingTask]] = defaultdict(list)
        for task in tasks:
            waiting[self._budget_of(task)].append(task)
        known = {budget.name: budget for budget in budgets}
        gone = sorted(name for name in self._by_budget if name is not None and name not in known)
        rows = []
        for name in [*known, *gone, *([None] if None in self._by_budget else [])]:
            row = self._by_budget.get(name, Spent()).content(name)
            row["tasks"] = task_list([] if name is None else waiting[name], dag_ids)
            row["budget"] = _budget_content(known[name]) if name in known else None
            rows.append(row)
        return rows

    def _budget_of(self, task: WaitingTask) -> str | None:
        """Return the budget of this ledger that a task takes credits from; None if there is none."""
        if not task.spends or task.wallet is None or task.wallet.conn_id not in self._connections:
            return None
        settings = self._connections[task.wallet.conn_id].ledger
        return task.budget or (settings and settings.budget)

    def _remainder_rows(self, remainders: Sequence[Mapping[str, Remainder]]) -> list[dict[str, Any]]:
        """Return the remainders of the wallets of the user's connections, and of no others."""
        mine = self._wallets()
        longest = [each for wallet, each in sorted(remainders[-1].items()) if wallet in mine]
        rows = []
        for last in sorted(longest, key=lambda each: -each.microcredits):
            of_periods = [each.get(last.wallet) for each in remainders]
            rows.append(
                {
                    "wallet": last.wallet,
                    "periods": [each and from_microcredits(each.microcredits) for each in of_periods],
                    "first_read_at": last.first_read_at.replace(tzinfo=UTC),
                    "last_read_at": last.last_read_at.replace(tzinfo=UTC),
                }
            )
        return rows

    def _wallets(self) -> set[str]:
        organizations = {
            organization
            for connection in self._connections.values()
            for organization in (connection.organization, *connection.balances)
            if organization is not None
        }
        return organizations | {f"connection {conn_id}" for conn_id in self._connections}


def _budget_content(budget: Budget) -> dict[str, Any]:
    if budget.left <= 0:
        state = "used up"
    elif budget.is_nearly_used_up:
        state = f"nearly used up: {budget.soft_percent} % or more"
    else:
        state = None
    soft = budget.limit if budget.soft_percent is None else budget.limit * budget.soft_percent // 100
    return {
        "text": budget.text.partition(": ")[2],
        "state": state,
        "used": from_microcredits(min(max(budget.used, 0), budget.limit)),
        "limit": from_microcredits(budget.limit),
        "soft": from_microcredits(soft),
    }


def _days(read: LedgerRead) -> dict[str, Any]:
    """Return the credits of each day, and the plot of them."""
    of_day: dict[Any, int] = defaultdict(int)
    for each in read.sums:
        of_day[each.group[0]] += each.used
    days = [read.today - timedelta(number) for number in reversed(range(PERIODS[-1]))]
    credits = [from_microcredits(of_day[day]) for day in days]
    return {"days": [*zip(days, credits, strict=True)][::-1], "bars": bars(credits)}


def _first_day(today: date, days: int) -> date:
    return today - timedelta(days - 1)
