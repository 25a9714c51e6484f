"""What Airflow's database knows: tasks that wait for credits, and balances that tasks have read.

It only reads. The number of queries does not depend on the number of rows, and each query has a limit.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
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

from airflow_stability.deferral import TRIGGER_PATH
from airflow_stability.page.burn_rate import Reading
from airflow_stability.rules.wording import credits_needed
from airflow_stability.validation import check_credits, in_utc, is_template

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

#: How old a reading may be.
HISTORY = timedelta(days=7)

#: How many readings are taken from XCom at most; the latest ones.
MAX_READINGS = 2000

#: A number beyond this is not a balance.
MAX_CREDITS = 1e15

#: How many waiting tasks each of the two queries returns at most; those that have waited longest.
MAX_TASKS = 1000

#: How many DAG definitions are read at most to learn a task's connection, where no rendered field tells it.
MAX_DAGS = 25

# Class names, as Airflow stores them in `task_instance.operator`.
SENSOR = "StabilityBalanceSensor"
BALANCE_OPERATOR = "StabilityBalanceOperator"
SPENDING_OPERATORS = ("StabilitySpendOperator", "StabilityDecoratedOperator")

#: The columns that identify a task instance.
_KEY = (TaskInstance.dag_id, TaskInstance.run_id, TaskInstance.task_id, TaskInstance.map_index)


@dataclass(frozen=True)
class Wallet:
    """The connection and organization whose credits a task uses.

    :param organization: None for the connection's own.
    """

    conn_id: str
    organization: str | None


@dataclass(frozen=True)
class WaitingTask:
    """A task that waits for credits, or one that may spend them and runs.

    :param wallet: None if it is unknown until the task runs.
    :param needs: how many credits it waits for, as text.
    :param since: when the wait began.
    :param until: when it gives up; None if that is unknown.
    :param where: where it waits, as text.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    wallet: Wallet | None
    needs: str
    since: datetime | None
    until: datetime | None
    where: str


@dataclass(frozen=True)
class QueryResult:
    """What the database knows.

    :param tasks: the waiting tasks; the one that has waited longest comes first.
    :param readings: the balances that tasks have read.
    :param complete: False if a limit left something out.
    """

    tasks: Sequence[WaitingTask]
    readings: Mapping[Wallet, Sequence[Reading]]
    complete: bool

    @property
    def wallets(self) -> set[Wallet]:
        """All wallets that tasks use."""
        return {task.wallet for task in self.tasks if task.wallet is not None} | self.readings.keys()


def query_database(session: Session, now: datetime) -> QueryResult:
    """Run all queries.

    :param now: aware time.
    """
    readings: dict[Wallet, list[Reading]] = defaultdict(list)
    deferred = list(_deferred_tasks(session, now, readings))
    others = list(_other_tasks(session))
    xcom_complete = _add_readings_from_xcom(session, now, readings)
    oldest = datetime.min.replace(tzinfo=UTC)
    return QueryResult(
        sorted([*deferred, *others], key=lambda task: task.since or oldest),
        readings,
        complete=xcom_complete and max(len(deferred), len(others)) < MAX_TASKS,
    )


def _deferred_tasks(
    session: Session, now: datetime, readings: dict[Wallet, list[Reading]]
) -> Iterator[WaitingTask]:
    """Yield the tasks that wait in a triggerer; add the balances in their triggers' arguments to readings."""
    statement = (
        select(*_KEY, TaskInstance.trigger_timeout, Trigger)
        .join(Trigger, TaskInstance.trigger_id == Trigger.id)
        .where(Trigger.classpath == TRIGGER_PATH, TaskInstance.state == "deferred")
        # Otherwise Airflow would load each trigger's task instance and its relations too.
        .options(lazyload("*"))
        .order_by(Trigger.created_date)
        .limit(MAX_TASKS)
    )
    for dag_id, run_id, task_id, map_index, timeout, trigger in session.execute(statement):
        arguments = _trigger_arguments(trigger)
        wallet = _wallet(arguments)
        # The triggers' arguments are durations. They count from the deferral, which Airflow has noted.
        deferred_at = in_utc(trigger.created_date)
        read_at = _before(deferred_at, arguments.get("last_credits_age"))
        if wallet and (reading := _reading(arguments.get("last_credits"), read_at, now)):
            readings[wallet].append(reading)
        yield WaitingTask(
            dag_id,
            run_id,
            task_id,
            map_index,
            wallet,
            _needs(arguments.get("minimum_credits"), arguments.get("expected_credits")),
            _before(deferred_at, arguments.get("waited")),
            _until(timeout, arguments),
            "in a triggerer",
        )


def _trigger_arguments(trigger: Trigger) -> Mapping[str, Any]:
    try:
        arguments = trigger.kwargs
    except Exception:  # the encryption key or a class is gone; one such row must not fail the page
        return {}
    return arguments if isinstance(arguments, dict) else {}


def _other_tasks(session: Session) -> Iterator[WaitingTask]:
    """Yield rescheduled tasks, sensors that wait on a worker, and running tasks that may spend credits."""
    first_reschedule = (
        select(func.min(TaskReschedule.start_date))
        .where(TaskReschedule.ti_id == TaskInstance.id)
        .scalar_subquery()
    )
    statement = (
        select(
            *_KEY,
            TaskInstance.state,
            TaskInstance.operator,
            TaskInstance.start_date,
            first_reschedule,
            RenderedTaskInstanceFields.rendered_fields,
        )
        .outerjoin(RenderedTaskInstanceFields, _same_task_instance(RenderedTaskInstanceFields))
        .where(
            TaskInstance.state.in_(("up_for_reschedule", "running")),
            TaskInstance.operator.in_((SENSOR, *SPENDING_OPERATORS)),
        )
        .order_by(TaskInstance.start_date)
        .limit(MAX_TASKS)
    )
    for row in session.execute(statement):
        dag_id, run_id, task_id, map_index, state, operator, started, rescheduled, fields = row
        fields = fields or {}
        if operator == SENSOR:
            where = "on a worker"
            needs = _needs(fields.get("minimum_credits"), fields.get("expected_credits"))
        else:
            where = "no, it is running"
            needs = _needs(0, fields.get("credits"))
        if state == "up_for_reschedule":
            where = "by reschedule"
        since = rescheduled or started
        yield WaitingTask(dag_id, run_id, task_id, map_index, _wallet(fields), needs, since, None, where)


def _add_readings_from_xcom(session: Session, now: datetime, readings: dict[Wallet, list[Reading]]) -> bool:
    """Add the balances that sensors and operators have pushed; return whether no limit left one out."""
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
            XComModel.timestamp >= now - HISTORY,
            TaskInstance.operator.in_((SENSOR, BALANCE_OPERATOR)),
        )
        .order_by(XComModel.timestamp.desc())
        .limit(MAX_READINGS)
    )
    rows = session.execute(statement).all()
    # Airflow keeps rendered fields for a task's latest runs only, and never for a task that ran on no worker.
    unrendered = {row.dag_id for row in rows if not row.rendered_fields and row.map_index < 0}
    defined = _defined_fields(session, sorted(unrendered)[:MAX_DAGS])
    for dag_id, task_id, map_index, value, at, fields in rows:
        if not fields and map_index < 0:
            fields = defined.get((dag_id, task_id))
        wallet = _wallet(fields or {})
        if wallet and (reading := _reading(_credits_in(value), at, now)):
            if isinstance(value, dict) and (organization := value.get("organization")):
                wallet = Wallet(wallet.conn_id, str(organization))
            readings[wallet].append(reading)
    return len(rows) < MAX_READINGS and len(unrendered) <= MAX_DAGS


def _defined_fields(session: Session, dag_ids: list[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the fields of all unmapped tasks, from the latest version of their DAGs."""
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
        .where(SerializedDagModel.dag_id == latest.c.dag_id, SerializedDagModel.created_at == latest.c.at)
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
    return and_(*(getattr(other, column.key) == column for column in _KEY))


def _wallet(fields: Mapping[str, Any]) -> Wallet | None:
    """Return the wallet in a task's fields; None if they are missing or still templates."""
    conn_id, organization = fields.get("stability_conn_id"), fields.get("organization")
    if not isinstance(conn_id, str) or not conn_id or is_template(conn_id):
        return None
    if organization is not None and (not isinstance(organization, str) or is_template(organization)):
        return None
    return Wallet(conn_id, organization or None)


def _credits_in(value: object) -> object:
    if isinstance(value, str):
        # Some versions of Airflow encode an XCom twice.
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value.get("credits") if isinstance(value, dict) else value


def _reading(credits: object, at: datetime, now: datetime) -> Reading | None:
    if isinstance(credits, bool) or not isinstance(credits, int | float):
        return None
    # Any user who may write an XCom can write any number, even one that cannot be plotted.
    if not -MAX_CREDITS <= credits <= MAX_CREDITS:
        return None
    # A time of the future, by a clock that is ahead, would stay the latest reading until it has come.
    return Reading(min(in_utc(at), now), float(credits))


def _before(time: datetime, seconds: object) -> datetime:
    return time - timedelta(seconds=_number(seconds))


def _until(airflow_timeout: datetime | None, arguments: Mapping[str, Any]) -> datetime | None:
    """Return when a trigger's time is over.

    :param airflow_timeout: when Airflow itself ends the deferral, which is some time later.
    """
    if airflow_timeout is None or arguments.get("deferral_timeout") is None:
        return airflow_timeout and in_utc(airflow_timeout)
    left = _number(arguments.get("timeout")) - _number(arguments.get("waited"))
    return _before(in_utc(airflow_timeout), max(_number(arguments["deferral_timeout"]) - left, 0.0))


def _number(value: object) -> float:
    """Return the seconds in a trigger's argument; 0.0 if it is missing or of no use."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1e9 else 0.0


def _needs(minimum: object, expected: object) -> str:
    """Return how many credits a task waits for, as its log says it."""
    try:
        minimum = check_credits(minimum)
        return credits_needed(minimum, 0.0 if expected in (None, "None") else check_credits(expected))
    except ValueError:  # a template that the triggerer renders, or a value that cannot be credits
        return f"more than {minimum}" if is_template(minimum) else "?"
