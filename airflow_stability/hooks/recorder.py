"""The recorder: writes the calls of a client and the runs of a task into the ledger of their connection."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from airflow_stability import metrics
from airflow_stability.client.recording import POSTED, UNKNOWN, VOID, LedgerSettings, Output
from airflow_stability.errors import StabilityError, StabilityTransientError
from airflow_stability.hooks.ledger import open_ledger
from airflow_stability.hooks.storage import AirflowStorage
from airflow_stability.ledger.budgets import Budget
from airflow_stability.ledger.ledger import LEASE_SECONDS, Call, Hold, HoldResult, Reading, Spender
from airflow_stability.prices import price_if_known
from airflow_stability.rules.credits import from_microcredits
from airflow_stability.rules.wording import budget_text, held_text

_log = logging.getLogger(__name__)

#: Seconds that a task waits at its end for a ledger that is out of reach. Then the task ends anyway.
PATIENCE = 60.0

#: Seconds between two tries.
PAUSE = 2.0


@dataclass
class Run:
    """A run of a task's function, for which credits are held.

    :param hold: the key of the hold.
    :param itemized: whether every payment of the run is a call of its client.
    :param calls: how many calls it has made, and outputs it has found.
    """

    hold: str
    spender: Spender
    itemized: bool
    calls: int = 0


#: The run that is under way in this process, by ledger. All clients share it: a function may make its own.
_runs: dict[str, Run] = {}


def obstacle_to(hold: Hold, result: HoldResult) -> str | None:
    """Return why a hold was refused, or None if it is held.

    :raises StabilityConfigurationError: it can never be held.
    """
    if hold.key in result.failures:
        raise result.failures[hold.key]
    if hold.key not in result.refused:
        return None
    exhausted = result.refused[hold.key]
    if exhausted is not None:
        return budget_text(exhausted.text, hold.credits)
    return held_text(result.reserved[hold.key], hold.credits)


def report_budgets(result: HoldResult) -> None:
    """Send how much of the budgets is used, and log those whose soft limits the holds have reached."""
    for budget in result.budgets:
        used, limit = (from_microcredits(each) for each in (budget.used, budget.limit))
        metrics.budget(budget.name, used, limit)
    _report_soft_limits(result.soft_limits)


def _report_soft_limits(reached: Iterable[Budget]) -> None:
    for budget in reached:
        metrics.soft_limit(budget.name)
        _log.warning("The soft limit is reached: %s.", budget.text)


class LedgerRecorder:
    """Writes down the calls of a client: a :class:`~airflow_stability.client.recording.Recorder`.

    :param ledger: the ledger. It is opened when there is something to write.
    :param conn_id: the Stability connection.
    :param organization: the connection's own; None if it names none.
    :param prices: the user's own prices in credits, by endpoint, or endpoint and model.
    """

    def __init__(
        self,
        ledger: LedgerSettings,
        *,
        conn_id: str,
        organization: str | None,
        prices: dict[str, float],
    ) -> None:
        self.ledger_conn_id, self._budget = ledger
        self._conn_id = conn_id
        self._organization = organization
        self._prices = prices
        self._unwritten: list[tuple[str, str, str | None]] = []
        self._lock = threading.Lock()

    # The run of a spending task

    def begin_run(
        self,
        credits: float,
        *,
        budget: str | None,
        organization: str | None,
        itemized: bool,
        balance: tuple[float, float] | None,
        hold: str | None,
    ) -> str | None:
        """Hold the credits of a run of a task; see the protocol."""
        spender = self._spender(budget, organization)
        key = hold or uuid.uuid4().hex
        ledger = open_ledger(self.ledger_conn_id)
        if (spender.try_number or 0) > 1:
            ledger.end_earlier_tries(spender)
        if hold is None or not ledger.start(hold, itemized=itemized):
            wanted = Hold(key, spender, credits, None, itemized, starts=True, lease=LEASE_SECONDS)
            if (obstacle := self._hold(wanted, balance)) is not None:
                return obstacle
        _runs[self.ledger_conn_id] = Run(key, spender, itemized)
        return None

    def reserve(
        self,
        credits: float,
        *,
        minimum: float | None,
        budget: str | None,
        organization: str | None,
        balance: tuple[float, float],
        seconds: float,
    ) -> str | None:
        """Hold credits for the run behind a gate; see the protocol."""
        spender = self._spender(budget, organization)
        return self._hold(Hold(uuid.uuid4().hex, spender, credits, minimum, lease=seconds), balance)

    def _hold(self, hold: Hold, balance: tuple[float, float] | None) -> str | None:
        reading = None if balance is None else Reading(*balance)
        result = open_ledger(self.ledger_conn_id).hold([hold], reading)
        report_budgets(result)
        return obstacle_to(hold, result)

    def end_run(self, *, completed: bool, refused: bool) -> None:
        """Give back what a run has not spent, and wait a while for the ledger if it is out of reach."""
        run = _runs.pop(self.ledger_conn_id, None)
        if run is not None:
            if run.itemized or run.calls or refused:
                self.end(run.hold, VOID, "Not spent, given back.")
            elif completed:
                self.end(run.hold, POSTED)
            else:
                self.end(run.hold, UNKNOWN, "The function has failed, and may have spent credits before.")
        self._write_the_rest()

    # The calls of a client

    def begin(self, endpoint: str, model: str | None, output: Output | None, seconds: float) -> str:
        """Write down a call before it is sent; see the protocol."""
        run = _runs.get(self.ledger_conn_id)
        call = Call(
            uuid.uuid4().hex,
            self._spender(None, None) if run is None else run.spender,
            endpoint,
            price_if_known(endpoint, model, self._prices),
            output and output.address,
            output is not None and output.paid_again,
            lease=max(LEASE_SECONDS, seconds),
        )
        _report_soft_limits(open_ledger(self.ledger_conn_id).begin_call(call, run.hold if run else None))
        if run is not None:
            run.calls += 1
        return call.key

    def end(self, key: str, outcome: str, reason: str | None = None) -> None:
        """Write down how a call ended, now or later."""
        with self._lock:
            self._unwritten.append((key, outcome, reason))
            self._write()

    def output_found(self, address: str) -> None:
        """Take note that the output of an earlier call was found."""
        if (run := _runs.get(self.ledger_conn_id)) is not None:
            run.calls += 1
        try:
            open_ledger(self.ledger_conn_id).output_found(address)
        except StabilityError as error:
            # The call stays unknown, and keeps counting, until somebody settles it.
            _log.warning("The ledger does not know yet that %s was paid for: %s", address, error)

    def _write(self) -> StabilityError | None:
        """Write what is not written yet; return the error if that fails, else None."""
        try:
            while self._unwritten:
                open_ledger(self.ledger_conn_id).end(*self._unwritten[0])
                del self._unwritten[0]
        except StabilityError as error:
            return error
        return None

    def _write_the_rest(self) -> None:
        until = time.monotonic() + PATIENCE
        with self._lock:
            while (failure := self._write()) is not None:
                if time.monotonic() > until or not isinstance(failure, StabilityTransientError):
                    break
                time.sleep(PAUSE)
            for key, outcome, _ in self._unwritten:
                text = "The ledger could not be told that spend %s is %s. It will become unknown there: %s"
                _log.error(text, key, outcome, failure)
            self._unwritten.clear()

    def _spender(self, budget: str | None, organization: str | None) -> Spender:
        organization, budget = organization or self._organization, budget or self._budget
        return Spender(self._conn_id, organization, budget, **AirflowStorage().caller())
