"""The recorder: writes the calls of a client and the runs of a task into the ledger of their connection."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from airflow_stability import metrics
from airflow_stability.client.spend_recorder import POSTED, UNKNOWN, VOID, LedgerSettings, WantedCredits
from airflow_stability.errors import StabilityError, StabilityLedgerUnavailableError, StabilityTransientError
from airflow_stability.hooks.durable_folder import AirflowStorage
from airflow_stability.hooks.ledger import open_ledger, unread_failure
from airflow_stability.hooks.unreported_spends import leave, write_what_was_left
from airflow_stability.ledger.budgets import Budget
from airflow_stability.ledger.ledger import LEASE_SECONDS, Call, Hold, HoldResult, Ledger, Reading, Spender
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
    :param outputs: by the address of an output, the key of the last call for it.
    """

    hold: str
    spender: Spender
    itemized: bool
    calls: int = 0
    outputs: dict[str, str] = field(default_factory=dict)


#: The run that is under way in this process, by ledger. All clients share it: a function may make its own.
_runs: dict[str, Run] = {}


@dataclass
class Outcome:
    """The outcome of a spend that is not written to the ledger yet.

    :param left: whether the task has left it in an XCom.
    """

    key: str
    state: str
    reason: str | None
    left: bool = False


#: The outcomes that are not written yet, by ledger. All clients and threads of a process share them.
_unwritten: dict[str, list[Outcome]] = {}
_writing = threading.RLock()


_LATER = "A later task that spends with this ledger writes that, from an XCom of this task"
_NEVER = "The ledger will call the spend unknown"


def _leave(outcomes: Iterable[Outcome]) -> None:
    """Leave outcomes in XComs of the running task, if that is possible."""
    # Up to Airflow 3.1, requests of several threads to Airflow could get each other's responses.
    if threading.current_thread() is threading.main_thread():
        for each in outcomes:
            each.left = each.left or leave(each.key, each.state, each.reason)


def obstacle_to(hold: Hold, result: HoldResult) -> str | None:
    """Return why a hold was refused, or None if it is held.

    :raises StabilityConfigurationError: it can never be held.
    """
    if hold.key in result.failures:
        raise result.failures[hold.key]
    if hold.key not in result.refused:
        return None
    exhausted, needed = result.refused[hold.key], result.needed[hold.key]
    if exhausted is not None:
        return budget_text(exhausted.text, needed)
    return held_text(result.reserved[hold.key], needed)


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


def _hold(ledger: Ledger, hold: Hold, balance: tuple[float, float] | None) -> str | None:
    """Hold credits, and report the budgets; return why they were refused, or None."""
    result = ledger.hold([hold], None if balance is None else Reading(*balance))
    report_budgets(result)
    return obstacle_to(hold, result)


class LedgerRecorder:
    """Writes down the calls of a client: a :class:`~airflow_stability.client.spend_recorder.Recorder`.

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

    # The run of a spending task

    def begin_run(
        self, wanted: WantedCredits, *, itemized: bool, hold: str | None, replays: bool
    ) -> str | None:
        """Hold the credits of a run of a task; see the protocol."""
        spender = self._spender(wanted.budget, wanted.organization)
        ledger = self._open()
        ledger.end_leases()
        write_what_was_left(ledger)
        if (spender.try_number or 0) > 1:
            ledger.end_earlier_tries(spender)
        if hold is not None and ledger.start(hold, spender.budget, itemized=itemized):
            key = hold
        else:
            if hold is not None:  # of another budget
                ledger.release(hold, "Its task has taken another hold.")
            key = uuid.uuid4().hex
            new = Hold(
                key,
                spender,
                wanted.credits,
                itemized=itemized,
                starts=True,
                replays=replays,
                lease=LEASE_SECONDS,
            )
            with self._not_begun(key):
                obstacle = _hold(ledger, new, wanted.balance)
            if obstacle is not None:
                return obstacle
        _runs[self.ledger_conn_id] = Run(key, spender, itemized)
        return None

    def reserve(self, wanted: WantedCredits, *, minimum: float | None, seconds: float) -> str | None:
        """Hold credits for the run behind a gate; see the protocol."""
        spender = self._spender(wanted.budget, wanted.organization)
        hold = Hold(uuid.uuid4().hex, spender, wanted.credits, minimum, lease=seconds)
        return _hold(self._open(), hold, wanted.balance)

    def end_run(self, *, completed: bool, refused: bool) -> None:
        """Give back what a run has not spent, and wait a while for the ledger if it is out of reach."""
        run = _runs.pop(self.ledger_conn_id, None)
        if run is not None:
            if run.itemized or run.calls or refused:
                self._later(run.hold, VOID, "Not spent, given back.")
            elif completed:
                self._later(run.hold, POSTED)
            else:
                self._later(run.hold, UNKNOWN, "The function has failed, and may have spent before.")
        self._write(PATIENCE)

    # The calls of a client

    def begin(self, endpoint: str, model: str | None, output: str | None, seconds: float) -> str:
        """Write down a call before it is sent; see the protocol."""
        run = self._run
        call = Call(
            uuid.uuid4().hex,
            self._spender(None, None) if run is None else run.spender,
            endpoint,
            price_if_known(endpoint, model, self._prices),
            output,
            lease=max(LEASE_SECONDS, seconds),
        )
        # If it gave up at once, a run that has paid before would fail, and could lose what it has paid for.
        until = time.monotonic() + (PATIENCE if run is not None and run.calls else 0.0)
        with self._not_begun(call.key):
            while True:
                try:
                    reached = self._open().begin_call(call, run.hold if run else None)
                    break
                except StabilityLedgerUnavailableError:
                    if time.monotonic() >= until:
                        raise
                time.sleep(PAUSE)
        _report_soft_limits(reached)
        if run is not None:
            run.calls += 1
            if output is not None:
                run.outputs[output] = call.key
        return call.key

    def end(self, key: str, outcome: str, reason: str | None = None) -> None:
        """Write down how a call ended, now or later: a run waits for the ledger when it ends."""
        self._later(key, outcome, reason)
        self._write(PATIENCE if self._run is None else 0.0)

    def output_found(self, address: str) -> None:
        """Take note that the output of an earlier call was found."""
        if (run := self._run) is not None:
            run.calls += 1
        try:
            self._open().output_found(address)
        except StabilityError as error:
            # The call stays unknown, and keeps counting, until somebody settles it.
            _log.warning("The ledger does not know yet that %s was paid for: %s", address, error)

    def not_charged(self, address: str, reason: str) -> None:
        """Take note that the API has not charged a call that it had accepted."""
        if (run := self._run) is not None and address in run.outputs:
            # That the call was accepted may not be written yet. This outcome must be written after that.
            self.end(run.outputs[address], VOID, reason)
            return
        try:
            self._open().not_charged(address, reason)
        except StabilityError as error:
            _log.warning("The ledger does not know that %s was not charged: %s", address, error)

    def _open(self) -> Ledger:
        try:
            return open_ledger(self.ledger_conn_id)
        except StabilityError as error:
            failure = unread_failure(error)
        raise failure

    @property
    def _run(self) -> Run | None:
        """The run that this process is at, if it spends with the same connection."""
        run = _runs.get(self.ledger_conn_id)
        return run if run is not None and run.spender.conn_id == self._conn_id else None

    @contextlib.contextmanager
    def _not_begun(self, key: str) -> Iterator[None]:
        """Let what may have been written in the block be void if the block is cut off: nothing began."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, StabilityLedgerUnavailableError) or not isinstance(error, StabilityError):
                # The transaction may have been committed all the same.
                self._later(key, VOID, "It did not begin.")
                self._write(0.0)
            raise

    def _later(self, key: str, outcome: str, reason: str | None = None) -> None:
        with _writing:
            _unwritten.setdefault(self.ledger_conn_id, []).append(Outcome(key, outcome, reason))

    def _write(self, patience: float) -> None:
        """Write the outcomes that are not written yet, or leave them in XComs if the ledger is out of reach.

        :param patience: seconds to wait for a ledger that is out of reach; afterwards the rest is given up.
            0.0 for a single try, after which the rest is kept.
        """
        until = time.monotonic() + patience
        with _writing:
            waiting = _unwritten.setdefault(self.ledger_conn_id, [])
            failure: StabilityError | None = None
            while waiting:
                try:
                    first = waiting[0]
                    self._open().end(first.key, first.state, first.reason)
                    del waiting[0]
                    continue
                except StabilityError as error:
                    failure = error
                _leave(waiting)  # before the pause, in which the process may be killed
                if time.monotonic() >= until or not isinstance(failure, StabilityTransientError):
                    break
                time.sleep(PAUSE)
            if not patience:
                return
            for each in waiting:
                becomes = _LATER if each.left else _NEVER
                text = "The ledger does not know that the spend %s is %s. %s. The cause: %s"
                _log.error(text, each.key, each.state, becomes, failure)
            waiting.clear()

    def _spender(self, budget: str | None, organization: str | None) -> Spender:
        organization, budget = organization or self._organization, budget or self._budget
        return Spender(self._conn_id, organization, budget, **AirflowStorage().caller())
