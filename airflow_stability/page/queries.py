"""What Airflow's database knows: tasks that wait for credits, and balances that tasks have read.

It only reads. The number of queries does not depend on the number of rows, and each query has a limit.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import lazyload

from airflow_stability import compat
from airflow_stability.compat import RENDERED_FIELDS_MODELS, XCOM_MODELS
from airflow_stability.deferral import TRIGGER_PATH
from airflow_stability.page.burn_rate import Reading
from airflow_stability.page.waiting_tasks import WaitingTask, Wallet
from airflow_stability.rules.wording import credits_needed
from airflow_stability.validation import check_credits, check_organization, in_utc, is_template

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

log = logging.getLogger(__name__)

_T = TypeVar("_T")

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


@dataclass(frozen=True)
class QueryResult:
    """What the database knows.

    :param tasks: the waiting tasks; the one that has waited longest comes first.
    :param readings: the balances that tasks have read.
    :param complete: False if a limit left something out.
    :param unread: what could not be read, as texts.
    """

    tasks: Sequence[WaitingTask]
    readings: Mapping[Wallet, Sequence[Reading]]
    complete: bool
    unread: Sequence[str]

    @property
    def wallets(self) -> set[Wallet]:
        """All wallets that tasks use."""
        return {task.wallet for task in self.tasks if task.wallet is not None} | self.readings.keys()


def query_database(session: Session, now: datetime) -> QueryResult:
    """Run all queries. One that fails costs what it would have told, and nothing else.

    :param now: aware time.
    """
    source = _Source(session)
    deferred = source.read("tasks that wait in a triggerer", _deferred_tasks)
    others = source.read("tasks that wait by reschedule or on a worker, and tasks that run", _other_tasks)
    rescheduled = dict(source.read("since when tasks wait by reschedule", _first_reschedules, others))
    pushed = [source.read("balances in XCom", _pushed, model, now - HISTORY) for model in XCOM_MODELS]
    fields, complete = _fields(source, [*others, *chain(*pushed)])
    readings: dict[Wallet, list[Reading]] = defaultdict(list)
    tasks = [_deferred_task(row, now, readings) for row in deferred]
    tasks += [_other_task(row, rescheduled.get(row.id), fields(row)) for row in others]
    for row in chain(*pushed):
        _add_reading(row, fields(row), now, readings)
    oldest = datetime.min.replace(tzinfo=UTC)
    limited = max(len(deferred), len(others)) >= MAX_TASKS or max(map(len, pushed)) >= MAX_READINGS
    return QueryResult(
        sorted(tasks, key=lambda task: task.since or oldest),
        readings,
        complete=complete and not limited,
        unread=tuple(source.unread),
    )


class _Source:
    """Airflow's database. Its tables are not made for others, so any release of Airflow may change them."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.unread: dict[str, None] = {}

    def read(self, what: str, query: Callable[..., Iterable[_T]], *arguments: Any) -> list[_T]:
        """Return what a query yields; nothing if it fails.

        :param what: what the page lacks then.
        """
        try:
            return list(query(self._session, *arguments))
        except Exception as error:  # a name, a table or a column is gone, or the database is
            log.warning("The Credits page cannot read %s: %s: %s", what, type(error).__name__, error)
            self.unread[what] = None
            self._session.rollback()  # PostgreSQL refuses all queries after one that failed
            return []


def _key() -> tuple[Any, ...]:
    """Return the columns that identify a task instance."""
    task_instance = compat.TaskInstance
    names = ("id", "dag_id", "run_id", "task_id", "map_index")
    return tuple(getattr(task_instance, name).label(name) for name in names)


def _deferred_tasks(session: Session) -> Iterator[tuple[Any, datetime, Mapping[str, Any]]]:
    """Yield the tasks that wait in a triggerer, when each trigger was made, and the trigger's arguments."""
    task_instance, trigger = compat.TaskInstance, compat.Trigger
    statement = (
        select(*_key(), task_instance.trigger_timeout, trigger)
        .join(trigger, task_instance.trigger_id == trigger.id)
        .where(trigger.classpath == TRIGGER_PATH, task_instance.state == "deferred")
        # Otherwise Airflow would load each trigger's task instance and its relations too.
        .options(lazyload("*"))
        .order_by(trigger.created_date)
        .limit(MAX_TASKS)
    )
    for row in session.execute(statement):
        # Read now, since a later query that fails makes the session forget the trigger.
        yield row, row.Trigger.created_date, _trigger_arguments(row.Trigger)


def _trigger_arguments(trigger: Any) -> Mapping[str, Any]:
    try:
        arguments = trigger.kwargs
    except Exception:  # the encryption key or a class is gone; one such row must not fail the page
        return {}
    return arguments if isinstance(arguments, dict) else {}


def _other_tasks(session: Session) -> Iterable[Any]:
    """Return rescheduled tasks, sensors that wait on a worker, and running tasks that may spend credits."""
    task_instance = compat.TaskInstance
    statement = (
        select(*_key(), task_instance.state, task_instance.operator, task_instance.start_date)
        .where(
            task_instance.state.in_(("up_for_reschedule", "running")),
            task_instance.operator.in_((SENSOR, *SPENDING_OPERATORS)),
        )
        .order_by(task_instance.start_date)
        .limit(MAX_TASKS)
    )
    return session.execute(statement)


def _first_reschedules(session: Session, tasks: Sequence[Any]) -> Iterable[Any]:
    """Return pairs of a task instance's id and the start of its first reschedule."""
    if not tasks:
        return ()
    reschedule = compat.TaskReschedule
    statement = (
        select(reschedule.ti_id, func.min(reschedule.start_date))
        .where(reschedule.ti_id.in_([task.id for task in tasks]))
        .group_by(reschedule.ti_id)
    )
    return session.execute(statement)


def _pushed(session: Session, model: str, since: datetime) -> Iterable[Any]:
    """Return the values that sensors and operators have pushed to XCom."""
    task_instance, xcom = compat.TaskInstance, getattr(compat, model)
    statement = (
        select(*_key(), xcom.value, xcom.timestamp)
        .select_from(xcom)
        .join(task_instance, compat.belongs_to_task_instance(xcom))
        .where(
            xcom.key == "return_value",
            xcom.timestamp >= since,
            task_instance.operator.in_((SENSOR, BALANCE_OPERATOR)),
        )
        .order_by(xcom.timestamp.desc())
        .limit(MAX_READINGS)
    )
    return session.execute(statement)


def _fields(source: _Source, tasks: Sequence[Any]) -> tuple[Callable[[Any], Mapping[str, Any]], bool]:
    """Return a function for the arguments of one of the tasks, and whether no limit left some out."""
    ids = {task.id for task in tasks}
    rendered: dict[Any, dict[str, Any]] = {}
    for model in RENDERED_FIELDS_MODELS:
        rendered = dict(source.read("rendered arguments of tasks", _rendered_fields, model, ids)) | rendered
    # Airflow keeps rendered fields for a task's latest runs only, and never for a task that ran on no worker.
    unrendered = {task.dag_id for task in tasks if not rendered.get(task.id) and task.map_index < 0}
    dag_ids = sorted(unrendered)[:MAX_DAGS]
    defined = dict(source.read("arguments of tasks in their DAGs", _defined_fields, dag_ids))

    def fields(task: Any) -> Mapping[str, Any]:
        found = rendered.get(task.id)
        if not found and task.map_index < 0:
            found = defined.get((task.dag_id, task.task_id))
        return found or {}

    return fields, len(unrendered) <= MAX_DAGS


def _rendered_fields(session: Session, model: str, ids: Collection[Any]) -> Iterable[Any]:
    """Return pairs of a task instance's id and its rendered fields."""
    if not ids:
        return ()
    task_instance, rendered = compat.TaskInstance, getattr(compat, model)
    statement = (
        select(task_instance.id, rendered.rendered_fields)
        .select_from(rendered)
        .join(task_instance, compat.belongs_to_task_instance(rendered))
        .where(task_instance.id.in_(ids))
    )
    return session.execute(statement)


def _defined_fields(
    session: Session, dag_ids: Sequence[str]
) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Yield the ids of each unmapped task, and its fields, from the latest version of each DAG."""
    if not dag_ids:
        return
    dag = compat.SerializedDagModel
    latest = (
        select(dag.dag_id, func.max(dag.created_at).label("at"))
        .where(dag.dag_id.in_(dag_ids))
        .group_by(dag.dag_id)
        .subquery()
    )
    statement = (
        select(dag).where(dag.dag_id == latest.c.dag_id, dag.created_at == latest.c.at).options(lazyload("*"))
    )
    for serialized in session.scalars(statement):
        for task in ((serialized.data or {}).get("dag") or {}).get("tasks") or ():
            fields = task.get("__var", task)
            if not fields.get("_is_mapped"):
                yield (serialized.dag_id, str(fields.get("task_id"))), fields


def _deferred_task(
    deferred: tuple[Any, datetime, Mapping[str, Any]], now: datetime, readings: dict[Wallet, list[Reading]]
) -> WaitingTask:
    """Return a task that waits in a triggerer; add the balance in its trigger's arguments to readings."""
    row, created, arguments = deferred
    wallet = _wallet(arguments)
    # The triggers' arguments are durations. They count from the deferral, which Airflow has noted.
    deferred_at = in_utc(created)
    read_at = _before(deferred_at, arguments.get("last_credits_age"))
    if wallet and (reading := _reading(arguments.get("last_credits"), read_at, now)):
        readings[wallet].append(reading)
    return WaitingTask(
        row.dag_id,
        row.run_id,
        row.task_id,
        row.map_index,
        wallet,
        _needs(arguments.get("minimum_credits"), arguments.get("expected_credits")),
        _before(deferred_at, arguments.get("waited")),
        _until(row.trigger_timeout, arguments),
        "in a triggerer",
        _budget(arguments),
        _is_set(arguments.get("expected_credits")),
    )


def _other_task(row: Any, rescheduled: datetime | None, fields: Mapping[str, Any]) -> WaitingTask:
    if row.operator == SENSOR:
        where = "on a worker"
        expected = fields.get("expected_credits")
        needs = _needs(fields.get("minimum_credits"), expected)
    else:
        where = "no, it is running"
        expected = fields.get("credits")
        needs = _needs(None, expected)
    if row.state == "up_for_reschedule":
        where = "by reschedule"
    since = rescheduled or row.start_date
    key = (row.dag_id, row.run_id, row.task_id, row.map_index)
    return WaitingTask(*key, _wallet(fields), needs, since, None, where, _budget(fields), _is_set(expected))


def _add_reading(
    row: Any, fields: Mapping[str, Any], now: datetime, readings: dict[Wallet, list[Reading]]
) -> None:
    """Add the balance that a sensor or an operator has pushed."""
    value = _decoded(row.value)
    if isinstance(value, dict) and value.get("organization"):
        fields = {**fields, "organization": value["organization"]}
    wallet = _wallet(fields)
    if wallet and (reading := _reading(_credits_in(value), row.timestamp, now)):
        readings[wallet].append(reading)


def _wallet(fields: Mapping[str, Any]) -> Wallet | None:
    """Return the wallet in a task's fields; None if they are missing, still templates, or not usable."""
    conn_id, organization = fields.get("stability_conn_id"), fields.get("organization")
    if not isinstance(conn_id, str) or not conn_id or is_template(conn_id) or is_template(organization):
        return None
    try:
        return Wallet(conn_id, check_organization(organization))
    except ValueError:
        return None


def _budget(fields: Mapping[str, Any]) -> str | None:
    """Return the budget that a task names; None if it names none, or a template, or what is no name."""
    budget = fields.get("budget")
    return budget if isinstance(budget, str) and _is_set(budget) and not is_template(budget) else None


def _is_set(value: object) -> bool:
    """Tell whether an argument is set. Some versions of Airflow keep None as text when they render it."""
    return value not in (None, "", "None")


def _decoded(value: object) -> object:
    """Return the value of an XCom, which some versions of Airflow encode twice; None if it is of no use."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None


def _credits_in(value: object) -> object:
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
        has_expected = _is_set(expected)
        # A task that spends has no minimum; a row that cannot be read has no expected credits, either.
        checked = None if minimum is None and has_expected else check_credits(minimum)
        return credits_needed(checked, check_credits(expected) if has_expected else 0.0)
    except ValueError:  # a template that the triggerer renders, or a value that cannot be credits
        return f"more than {minimum}" if is_template(minimum) else "?"
