"""What Airflow's database knows of credits: who waits for them, and which balances tasks have seen.

Reads, and writes nothing. A handful of queries in all, each with a limit: none for each row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskreschedule import TaskReschedule
from airflow.models.trigger import Trigger
from airflow.models.xcom import XComModel
from sqlalchemy import and_, func, select
from sqlalchemy.orm import lazyload

from airflow_stability.page.burn_rate import Reading
from airflow_stability.rules.wording import credits_needed
from airflow_stability.validation import check_credits, is_template

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

#: How far back balances are looked for.
HISTORY = timedelta(days=7)

#: Balances that are read from XCom at the most, the latest ones.
MOST_READINGS = 2000

#: No balance has more credits than this.
MOST_CREDITS = 1e15

#: Waiting tasks that are read at the most, of each kind, those first that wait longest.
MOST_WAITERS = 1000

#: DAGs at the most whose definition is read for the connection of a task, where nothing else tells it.
MOST_DAGS = 25

TRIGGER = "airflow_stability.triggers.stability.StabilityBalanceTrigger"
SENSOR = "StabilityBalanceSensor"
READS_BALANCE = "StabilityBalanceOperator"
SPENDERS = ("StabilitySpendOperator", "_StabilityDecoratedOperator")

#: What names a task instance.
_NAMES = (TaskInstance.dag_id, TaskInstance.run_id, TaskInstance.task_id, TaskInstance.map_index)


@dataclass(frozen=True)
class Wallet:
    """What a task names.

    :param conn_id: the connection.
    :param organization: None for the connection's own.
    """

    conn_id: str
    organization: str | None


@dataclass(frozen=True)
class Waiter:
    """A task that waits for credit.

    :param wallet: where it waits; None where that cannot be told before it runs.
    :param needs: how much it waits for, in words.
    :param since: since when.
    :param until: when it gives up; None where that is not known.
    :param how: where it waits.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    wallet: Wallet | None
    needs: str
    since: datetime | None
    until: datetime | None
    how: str


@dataclass(frozen=True)
class Records:
    """All of it.

    :param waiters: those first that wait longest.
    :param readings: the balances that tasks have seen.
    :param complete: whether no limit has cut anything off.
    """

    waiters: tuple[Waiter, ...]
    readings: Mapping[Wallet, tuple[Reading, ...]]
    complete: bool


def read(session: Session, now: datetime) -> Records:
    """Read everything.

    :param now: aware time.
    """
    readings: dict[Wallet, list[Reading]] = {}
    waiters = list(_deferred(session, readings))
    others = list(_others(session))
    pushed = _pushed(session, now - HISTORY)
    for wallet, reading in pushed.readings:
        readings.setdefault(wallet, []).append(reading)
    complete = max(len(waiters), len(others)) < MOST_WAITERS and pushed.complete
    oldest = datetime.min.replace(tzinfo=UTC)
    return Records(
        tuple(sorted([*waiters, *others], key=lambda waiter: waiter.since or oldest)),
        {wallet: tuple(of_wallet) for wallet, of_wallet in readings.items()},
        complete,
    )


def _deferred(session: Session, readings: dict[Wallet, list[Reading]]) -> Iterator[Waiter]:
    """Yield what waits in a triggerer; add what its triggers were told of the balance to the readings."""
    statement = (
        select(
            *_NAMES,
            TaskInstance.trigger_timeout,
            Trigger,
        )
        .join(Trigger, TaskInstance.trigger_id == Trigger.id)
        .where(Trigger.classpath == TRIGGER, TaskInstance.state == "deferred")
        # Airflow would load the trigger's task with it, and all that belongs to that.
        .options(lazyload("*"))
        .order_by(Trigger.created_date)
        .limit(MOST_WAITERS)
    )
    for dag_id, run_id, task_id, map_index, timeout, trigger in session.execute(statement):
        arguments = _arguments_of(trigger)
        wallet = _wallet(arguments)
        if wallet and (reading := _reading(arguments.get("last_credits"), arguments.get("last_credits_at"))):
            readings.setdefault(wallet, []).append(reading)
        yield Waiter(
            dag_id,
            run_id,
            task_id,
            map_index,
            wallet,
            _needs(arguments.get("minimum_credits"), arguments.get("expected_credits")),
            _time(arguments.get("since")) or trigger.created_date,
            _time(arguments.get("deadline")) or timeout,
            "in a triggerer",
        )


def _arguments_of(trigger: Trigger) -> Mapping[str, Any]:
    try:
        arguments = trigger.kwargs
    except Exception:  # encrypted with a key that is gone, or made of classes that are: one row of many
        return {}
    return arguments if isinstance(arguments, dict) else {}


def _others(session: Session) -> Iterator[Waiter]:
    """Yield what waits by reschedule, sensors that wait on a worker, and tasks that spend just now."""
    first_reschedule = (
        select(func.min(TaskReschedule.start_date))
        .where(TaskReschedule.ti_id == TaskInstance.id)
        .scalar_subquery()
    )
    statement = (
        select(
            *_NAMES,
            TaskInstance.state,
            TaskInstance.operator,
            TaskInstance.start_date,
            first_reschedule,
            RenderedTaskInstanceFields.rendered_fields,
        )
        .outerjoin(RenderedTaskInstanceFields, _same_task_instance(RenderedTaskInstanceFields))
        .where(
            TaskInstance.state.in_(("up_for_reschedule", "running")),
            TaskInstance.operator.in_((SENSOR, *SPENDERS)),
        )
        .order_by(TaskInstance.start_date)
        .limit(MOST_WAITERS)
    )
    for dag_id, run_id, task_id, map_index, state, operator, started, since, fields in session.execute(
        statement
    ):
        fields = fields or {}
        if operator == SENSOR:
            needs = _needs(fields.get("minimum_credits"), fields.get("expected_credits"))
        else:
            needs = _needs(0, fields.get("credits"))
        if state == "up_for_reschedule":
            how = "by reschedule"
        else:
            how = "on a worker" if operator == SENSOR else "no, it runs"
        yield Waiter(dag_id, run_id, task_id, map_index, _wallet(fields), needs, since or started, None, how)


@dataclass(frozen=True)
class _Pushed:
    readings: list[tuple[Wallet, Reading]]
    complete: bool


def _pushed(session: Session, since: datetime) -> _Pushed:
    """Return the balances that gates and operators have pushed to XCom."""
    statement = (
        select(
            XComModel.dag_id,
            XComModel.task_id,
            XComModel.map_index,
            XComModel.value,
            XComModel.timestamp,
            RenderedTaskInstanceFields.rendered_fields,
        )
        .join(TaskInstance, _same_task_instance(XComModel))
        .outerjoin(RenderedTaskInstanceFields, _same_task_instance(RenderedTaskInstanceFields))
        .where(
            XComModel.key == "return_value",
            XComModel.timestamp >= since,
            TaskInstance.operator.in_((SENSOR, READS_BALANCE)),
        )
        .order_by(XComModel.timestamp.desc())
        .limit(MOST_READINGS)
    )
    rows = session.execute(statement).all()
    # Airflow keeps the rendered fields of a task's last runs only, and none of one that no worker has run.
    bare = {row.dag_id for row in rows if not row.rendered_fields and row.map_index < 0}
    unrendered = _unrendered(session, sorted(bare)[:MOST_DAGS])
    readings = []
    for dag_id, task_id, map_index, value, at, fields in rows:
        if not fields and map_index < 0:
            fields = unrendered.get((dag_id, task_id))
        wallet = _wallet(fields or {})
        if wallet and (reading := _reading(_credits_in(value), at)):
            if isinstance(value, dict) and (organization := value.get("organization")):
                wallet = Wallet(wallet.conn_id, str(organization))
            readings.append((wallet, reading))
    return _Pushed(readings, len(rows) < MOST_READINGS and len(bare) <= MOST_DAGS)


def _unrendered(session: Session, dag_ids: list[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the fields of all tasks that are not mapped, as the latest version of their DAGs has them."""
    if not dag_ids:
        return {}
    latest = (
        select(SerializedDagModel.dag_id, func.max(SerializedDagModel.created_at).label("at"))
        .where(SerializedDagModel.dag_id.in_(dag_ids))
        .group_by(SerializedDagModel.dag_id)
        .subquery()
    )
    statement = (
        select(SerializedDagModel)
        .join(
            latest,
            and_(
                latest.c.dag_id == SerializedDagModel.dag_id,
                latest.c.at == SerializedDagModel.created_at,
            ),
        )
        .options(lazyload("*"))
    )
    found = {}
    for serialized in session.scalars(statement):
        for task in ((serialized.data or {}).get("dag") or {}).get("tasks") or ():
            fields = task.get("__var", task)
            if not fields.get("_is_mapped"):
                found[serialized.dag_id, str(fields.get("task_id"))] = fields
    return found


def _same_task_instance(other: Any) -> Any:
    return and_(
        other.dag_id == TaskInstance.dag_id,
        other.run_id == TaskInstance.run_id,
        other.task_id == TaskInstance.task_id,
        other.map_index == TaskInstance.map_index,
    )


def _wallet(fields: Mapping[str, Any]) -> Wallet | None:
    """Return what the fields of a task name; None if they are missing, or templates that are not rendered."""
    conn_id, organization = fields.get("stability_conn_id"), fields.get("organization")
    if not isinstance(conn_id, str) or not conn_id or is_template(conn_id):
        return None
    if organization is not None and (not isinstance(organization, str) or is_template(organization)):
        return None
    return Wallet(conn_id, organization or None)


def _credits_in(value: object) -> object:
    if isinstance(value, str):
        # Some versions of Airflow encode what is pushed twice.
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value.get("credits") if isinstance(value, dict) else value


def _reading(credits: object, at: object) -> Reading | None:
    time = _time(at)
    if time is None or isinstance(credits, bool) or not isinstance(credits, int | float):
        return None
    # Whoever may write an XCom may write anything. What no balance is cannot be drawn, either.
    return Reading(time, float(credits)) if -MOST_CREDITS <= credits <= MOST_CREDITS else None


def _time(value: object) -> datetime | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


def _needs(minimum: object, expected: object) -> str:
    """Say how much is waited for, as a gate says it."""
    try:
        return credits_needed(
            check_credits(minimum), 0.0 if expected in (None, "None") else check_credits(expected)
        )
    except ValueError:  # a template, which the triggerer renders; or anything, in a row that others wrote
        return f"more than {minimum}" if is_template(minimum) else "?"


def wallets_of(records: Records) -> Iterable[Wallet]:
    """Return all that tasks name."""
    waiting = {waiter.wallet for waiter in records.waiters if waiter.wallet is not None}
    return waiting | records.readings.keys()
