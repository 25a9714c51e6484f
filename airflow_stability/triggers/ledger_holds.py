"""The holds of a process's triggers in a ledger: one transaction for all tasks that one balance lets go.

A thousand gates may see one balance at once. Their holds are collected until no more come, and are then
requested in one transaction, in the order in which the tasks began to wait. So the task that has waited
longest goes first, and the ledger gets one request per balance.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from typing import TYPE_CHECKING, NamedTuple

from airflow_stability.errors import StabilityError
from airflow_stability.hooks.durable_folder import facts_of
from airflow_stability.hooks.spend_recorder import obstacle_to, report_budgets
from airflow_stability.ledger.ledger import START_SECONDS, Hold, Reading, Spender
from airflow_stability.triggers.feed import Observation, loop_state
from airflow_stability.triggers.ledger import failure_of, open_ledger, run_in_thread

if TYPE_CHECKING:
    from airflow_stability.rules.gate import Gate
    from airflow_stability.triggers.stability import StabilityBalanceTrigger

#: Seconds without a new hold, after which the collected ones are requested.
QUIET_SECONDS = 0.1

#: Seconds after which they are requested in any case.
MOST_SECONDS = 2.0


class _Wanted(NamedTuple):
    since: float
    hold: Hold
    credits: float
    requested_at: float
    held: asyncio.Future[str | None]


async def hold_credits(
    trigger: StabilityBalanceTrigger, gate: Gate, observation: Observation, *, key: str, since: float
) -> str | None:
    """Hold the credits that a gate expects to be spent; return why it must wait, or None.

    :param observation: a balance, of a connection with a ledger.
    :param key: identifies the hold.
    :param since: when the task began to wait, in the loop's time.
    :raises StabilityLedgerUnavailableError: the ledger is out of reach.
    :raises StabilityConfigurationError: there is no such budget, or the credits can never fit into it.
    """
    assert observation.ledger is not None
    conn_id, budget = observation.ledger
    spender = Spender(
        trigger.stability_conn_id,
        observation.organization,
        trigger.budget or budget,
        **facts_of(getattr(trigger, "task_instance", None)),
    )
    lease = trigger.reservation_seconds
    if trigger.is_of_task:
        lease = max(lease, START_SECONDS)
    if trigger.run_credits is None:
        hold = Hold(key, spender, gate.expected_credits, gate.minimum_credits, lease=lease)
    else:
        # After a run that was refused halfway, the gate only asks for more than the refused balance. The
        # ledger gets the credits of a whole run, and subtracts what the task has paid for durable calls.
        hold = Hold(key, spender, trigger.run_credits, replays=True, lease=lease)
    holds = loop_state().holds
    if conn_id not in holds:
        holds[conn_id] = HoldQueue(conn_id)
    return await holds[conn_id].hold(hold, since, gate.last_credits or 0.0, observation.requested_at)


class HoldQueue:
    """The holds that all triggers of an event loop want in one ledger.

    :param conn_id: the connection to the ledger's database.
    """

    def __init__(self, conn_id: str) -> None:
        self._conn_id = conn_id
        self._wanted: list[_Wanted] = []
        self._task: asyncio.Task[None] | None = None

    async def hold(self, hold: Hold, since: float, credits: float, requested_at: float) -> str | None:
        """Hold credits; see :func:`hold_credits`."""
        loop = asyncio.get_running_loop()
        wanted = _Wanted(since, hold, credits, requested_at, loop.create_future())
        self._wanted.append(wanted)
        if self._task is None or self._task.done():
            # In the caller's context, it would log to the caller's task log.
            self._task = loop.create_task(self._run(), context=contextvars.Context())
        return await wanted.held

    async def _run(self) -> None:
        while self._wanted:
            await self._collect()
            wanted, self._wanted = self._wanted, []
            try:
                for group in _groups(wanted):
                    await self._ask(group)
            except Exception as error:  # this task must never fail, or all gates of the ledger would hang
                _fail(wanted, failure_of(self._conn_id, error))

    async def _collect(self) -> None:
        loop = asyncio.get_running_loop()
        began, count = loop.time(), 0
        while len(self._wanted) > count and loop.time() < began + MOST_SECONDS:
            count = len(self._wanted)
            await asyncio.sleep(QUIET_SECONDS)

    async def _ask(self, group: list[_Wanted]) -> None:
        """Request the holds of one wallet, for one balance that was read of it."""
        ledger = await open_ledger(self._conn_id)
        holds = [each.hold for each in group]
        age = asyncio.get_running_loop().time() - group[0].requested_at
        call = functools.partial(ledger.hold, holds, Reading(group[0].credits, age))
        result = await run_in_thread(self._conn_id, call)
        report_budgets(result)
        for each in group:
            if each.held.done():  # its trigger was cancelled: its hold ends with the lease
                continue
            try:
                each.held.set_result(obstacle_to(each.hold, result))
            except StabilityError as error:
                each.held.set_exception(error)


def _groups(wanted: list[_Wanted]) -> list[list[_Wanted]]:
    """Return the holds, grouped by wallet and balance; those that have waited longest come first."""
    groups: dict[tuple[str, float], list[_Wanted]] = {}
    for each in sorted(wanted, key=lambda each: each.since):
        groups.setdefault((each.hold.spender.wallet, each.requested_at), []).append(each)
    return list(groups.values())


def _fail(wanted: list[_Wanted], error: StabilityError) -> None:
    for each in wanted:
        if not each.held.done():
            each.held.set_exception(error)
