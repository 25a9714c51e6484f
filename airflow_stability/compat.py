"""All code that depends on the Airflow version, with the reasons. Other modules import these names from here.

The package does not use ``apache-airflow-providers-common-compat``, although it exists for this. Managed
Airflow installs providers under Airflow's own constraints. For Airflow 2.11 and 3.0, they pin a version that
lacks half of these names.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from airflow import __version__ as airflow_version

AIRFLOW_VERSION = tuple(int(part) for part in airflow_version.split(".")[:2])

if TYPE_CHECKING:
    from airflow.providers.standard.operators.python import PythonOperator as PythonOperator
    from airflow.sdk import BaseHook as BaseHook
    from airflow.sdk import BaseOperator as BaseOperator
    from airflow.sdk import BaseSensorOperator as BaseSensorOperator
    from airflow.sdk import Connection as Connection
    from airflow.sdk import Context as Context
    from airflow.sdk import ObjectStoragePath as ObjectStoragePath
    from airflow.sdk import PokeReturnValue as PokeReturnValue
    from airflow.sdk import conf as conf
    from airflow.sdk import get_current_context as get_current_context
    from airflow.sdk.bases.decorator import DecoratedOperator as DecoratedOperator
    from airflow.sdk.bases.decorator import TaskDecorator as TaskDecorator
    from airflow.sdk.bases.decorator import task_decorator_factory as task_decorator_factory
    from airflow.sdk.bases.operatorlink import BaseOperatorLink as BaseOperatorLink
    from airflow.sdk.exceptions import AirflowFailException as AirflowFailException
    from airflow.sdk.exceptions import AirflowNotFoundException as AirflowNotFoundException
    from airflow.sdk.exceptions import AirflowRescheduleException as AirflowRescheduleException
    from airflow.sdk.exceptions import AirflowSensorTimeout as AirflowSensorTimeout
    from airflow.sdk.exceptions import AirflowSkipException as AirflowSkipException
    from airflow.sdk.exceptions import AirflowTaskTerminated as AirflowTaskTerminated
    from airflow.sdk.exceptions import AirflowTaskTimeout as AirflowTaskTimeout
    from airflow.sdk.exceptions import TaskDeferralError as TaskDeferralError
    from airflow.sdk.exceptions import TaskDeferred as TaskDeferred
    from airflow.sdk.log import mask_secret as mask_secret
    from airflow.triggers.base import BaseEventTrigger as BaseEventTrigger
    from airflow.triggers.base import TaskSuccessEvent


def _since(version: tuple[int, int], new: str, old: str) -> str:
    return new if version <= AIRFLOW_VERSION else old


#: The module of each name on this version. A name is loaded when it is imported from here. Names that moved
#: still work in their old module for a while, but warn.
_MODULES = {
    # In Airflow 3, names for DAG authors and providers are in the Task SDK. Some moved later than the rest.
    **dict.fromkeys(("BaseOperator", "Connection"), _since((3, 0), "airflow.sdk", "airflow.models")),
    **dict.fromkeys(
        ("BaseSensorOperator", "PokeReturnValue"), _since((3, 0), "airflow.sdk", "airflow.sensors.base")
    ),
    "ObjectStoragePath": _since((3, 0), "airflow.sdk", "airflow.io.path"),
    "get_current_context": _since((3, 0), "airflow.sdk", "airflow.operators.python"),
    "Context": _since((3, 0), "airflow.sdk", "airflow.utils.context"),
    "BaseHook": _since((3, 1), "airflow.sdk", "airflow.hooks.base"),
    "conf": _since((3, 2), "airflow.sdk", "airflow.configuration"),
    **dict.fromkeys(
        (
            "AirflowFailException",
            "AirflowNotFoundException",
            "AirflowRescheduleException",
            "AirflowSensorTimeout",
            "AirflowSkipException",
            "AirflowTaskTerminated",
            "AirflowTaskTimeout",
            "DagRunTriggerException",
            "DownstreamTasksSkipped",
            "TaskAwaitingInput",
            "TaskDeferralError",
            "TaskDeferred",
        ),
        _since((3, 2), "airflow.sdk.exceptions", "airflow.exceptions"),
    ),
    # In Airflow 3 a supervisor writes the task's log. This function tells it the secret, too.
    "mask_secret": _since(
        (3, 1),
        "airflow.sdk.log",
        _since((3, 0), "airflow.sdk.execution_time.secrets_masker", "airflow.utils.log.secrets_masker"),
    ),
    # The backend of XComs that is configured, and Airflow's own.
    **dict.fromkeys(
        ("BaseXCom", "XCom"), _since((3, 0), "airflow.sdk.execution_time.xcom", "airflow.models.xcom")
    ),
    "BaseEventTrigger": "airflow.triggers.base",
    "BaseOperatorLink": _since((3, 0), "airflow.sdk.bases.operatorlink", "airflow.models.baseoperatorlink"),
    # Airflow 3 comes with the standard provider.
    "PythonOperator": _since(
        (3, 0), "airflow.providers.standard.operators.python", "airflow.operators.python"
    ),
    **dict.fromkeys(
        ("DecoratedOperator", "TaskDecorator", "task_decorator_factory"),
        _since((3, 0), "airflow.sdk.bases.decorator", "airflow.decorators.base"),
    ),
    # The models of the tables that the Credits page reads. Airflow's REST API does not replace them: it takes
    # a call for the value of each XCom, and gives the arguments of a trigger as a text.
    "SerializedDagModel": "airflow.models.serialized_dag",
    "TaskInstance": "airflow.models.taskinstance",
    "TaskReschedule": "airflow.models.taskreschedule",
    "Trigger": "airflow.models.trigger",
    **dict.fromkeys(("XComModel", "XComModelV1", "XComModelV2"), "airflow.models.xcom"),
    **dict.fromkeys(
        ("RenderedTaskInstanceFields", "LegacyRenderedTaskInstanceFields"), "airflow.models.renderedtifields"
    ),
}


def __getattr__(name: str) -> Any:
    if name == "BaseEventTrigger" and AIRFLOW_VERSION < (3, 0):
        # Airflow 2.11 cannot start a DAG on an event. An import of a class that needs this must say so.
        raise ImportError(
            "StabilityBalanceEventTrigger and StabilityBudgetEventTrigger need Airflow 3 or later: Airflow "
            "2.11 has no asset watchers."
        )
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if not TYPE_CHECKING:
    BaseHook, BaseSensorOperator = __getattr__("BaseHook"), __getattr__("BaseSensorOperator")

_Operator = TypeVar("_Operator", bound="BaseOperator")
_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


def execute_as(base: type[_Operator], operator: _Operator, context: Context) -> Any:
    """Call a class's ``execute()`` on an operator, without the decorator that Airflow puts around it.

    Airflow 2.11 mistakes ``super().execute()`` for one operator that calls another. It warns of such a call,
    or fails where it is forbidden.

    :param base: the operator's class, or a base class of it.
    """
    return base.execute.__wrapped__(operator, context)  # type: ignore[attr-defined]


class SensorBase(BaseSensorOperator):
    """BaseSensorOperator with a public method for the time to the next poke.

    Airflow's own method for this is private, but the same in all versions.
    """

    def seconds_to_next_poke(self, interval: float, time_left: float) -> float:
        """Return the seconds to wait before the next poke.

        :param interval: seconds that Airflow would wait.
        :param time_left: seconds until the sensor's timeout.
        """
        return interval

    def _get_next_poke_interval(
        self, started_at: datetime | float, run_duration: Callable[[], float], poke_count: int
    ) -> float:
        interval: float = super()._get_next_poke_interval(started_at, run_duration, poke_count)
        return self.seconds_to_next_poke(interval, max(self.timeout - run_duration(), 0.0))


# Whether Airflow starts a task in the triggerer when the operator asks for it, and renders templates there.
# 3.1 and 3.2 ignore the request.
STARTS_IN_TRIGGERER = AIRFLOW_VERSION < (3, 1) or AIRFLOW_VERSION >= (3, 3)
RENDERS_IN_TRIGGERER = AIRFLOW_VERSION >= (3, 3)

# Whether the trigger of an AssetWatcher can be in a queue, of which only some triggerers take triggers.
# The triggers of tasks get the task's queue from Airflow, if `[triggerer] queues_enabled` is on.
EVENT_TRIGGERS_HAVE_QUEUES = AIRFLOW_VERSION >= (3, 4)

# Whether a plugin can put a page of its own into Airflow's navigation.
HAS_EXTERNAL_VIEWS = AIRFLOW_VERSION >= (3, 1)

# Whether an auth manager can be asked which of several connections a user may read. The auth managers of
# Airflow 3.1 only tell whether the user may read all of them.
CAN_FILTER_CONNECTIONS = AIRFLOW_VERSION >= (3, 2)

# The models of XComs and of the rendered arguments of tasks. Airflow 3.4 began a new table of each, and keeps
# the rows from before in the old one.
XCOM_MODELS = ("XComModelV2", "XComModelV1") if AIRFLOW_VERSION >= (3, 4) else ("XComModel",)
RENDERED_FIELDS_MODELS = (
    ("RenderedTaskInstanceFields", "LegacyRenderedTaskInstanceFields")
    if AIRFLOW_VERSION >= (3, 4)
    else ("RenderedTaskInstanceFields",)
)


def belongs_to_task_instance(model: Any) -> Any:
    """Return the condition that joins a row of an XCom or of rendered arguments with its task instance.

    The new tables of Airflow 3.4 have the task instance's id, the others what it is called in a DAG run.
    """
    task_instance = __getattr__("TaskInstance")
    if hasattr(model, "task_instance_id"):
        return model.task_instance_id == task_instance.id
    from sqlalchemy import and_

    names = ("dag_id", "run_id", "task_id", "map_index")
    return and_(*(getattr(model, name) == getattr(task_instance, name) for name in names))


def can_be_rescheduled(operator: Any) -> Any:
    """Decorate an operator class so that the scheduler respects its tasks' reschedule dates.

    The class needs an attribute ``reschedule`` that tells whether its tasks wait by reschedule. Up to Airflow
    3.0, the scheduler respects the dates of sensors only, and would start other tasks again at once.
    """
    if AIRFLOW_VERSION >= (3, 1):
        return operator
    from airflow.ti_deps.deps.ready_to_reschedule import ReadyToRescheduleDep

    fields = {"reschedule"}
    operator.deps = operator.deps | {ReadyToRescheduleDep()}
    if AIRFLOW_VERSION >= (3, 0):
        # The scheduler of 3.0 reads this attribute. Of a mapped task, it knows only the class.
        fields.add("_is_sensor")
        operator._is_sensor = True
        BaseSensorOperator.register(operator)
    operator.get_serialized_fields = classmethod(
        lambda cls: super(operator, cls).get_serialized_fields() | fields
    )
    return operator


def first_start(context: Context) -> datetime | None:
    """Return when the task was first rescheduled (on 2.11, across all tries), or None."""
    task_instance: Any = context["ti"]
    started: datetime | None
    if AIRFLOW_VERSION >= (3, 0):
        started = task_instance.get_first_reschedule_date(context)
        return started
    from airflow.sensors.base import _orig_start_date  # type: ignore[import-not-found]

    started = _orig_start_date(
        dag_id=task_instance.dag_id,
        task_id=task_instance.task_id,
        run_id=task_instance.run_id,
        map_index=task_instance.map_index,
        try_number=(task_instance.max_tries or 0) - (context["task"].retries or 0) + 1,
    )
    return started


def is_control_flow(error: BaseException, context: Context) -> bool:
    """Tell whether a task says with an exception what becomes of it, other than failing with retries.

    A task of Airflow 3.0 and later has two more of these, and a task of 3.3 and later another one. Airflow
    2.11 takes ``sys.exit()`` for a success. It also interrupts a task whose state somebody has changed, by
    the same exception as one whose worker is stopped: only of the second kind, Airflow retries the task.
    """
    names = ["AirflowFailException", "AirflowRescheduleException", "AirflowSensorTimeout"]
    names += ["AirflowSkipException", "TaskDeferred"]
    if AIRFLOW_VERSION >= (3, 0):
        names += ["DagRunTriggerException", "DownstreamTasksSkipped"]
    if AIRFLOW_VERSION >= (3, 3):
        names.append("TaskAwaitingInput")
    if isinstance(error, tuple(map(__getattr__, names))):
        return True
    if AIRFLOW_VERSION >= (3, 0):
        return False
    if isinstance(error, __getattr__("AirflowTaskTerminated")):
        task_instance: Any = context["ti"]
        task_instance.refresh_from_db()
        return bool(task_instance.state != "running")
    return isinstance(error, SystemExit) and error.code in (None, 0)


def wrap_post_execute(operator: Any, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Wrap what Airflow calls after a task's ``execute()``: the method and the argument ``post_execute``.

    Airflow 2.11 calls the method, which calls the argument. Airflow 3 calls both itself, and so it reads the
    argument from a private attribute.
    """
    hook = operator._post_execute_hook
    if AIRFLOW_VERSION >= (3, 0) and hook is not None:
        operator._post_execute_hook = wrap(hook)
    operator.post_execute = wrap(operator.post_execute)


def xcom_can_hold(value: Any, context: Context) -> bool:
    """Tell whether a task can return a value: Airflow serializes it after ``execute()``.

    Airflow's own serializer has no side effects. A configured backend may upload the value, so it is only
    asked about values that Airflow's own refuses.
    """
    own, configured = __getattr__("BaseXCom").serialize_value, __getattr__("XCom").serialize_value
    if _serializes(own, value):
        return True
    if configured is own:
        return False
    task_instance: Any = context["ti"]
    names = ("task_id", "dag_id", "run_id", "map_index")
    where = {name: getattr(task_instance, name) for name in names}
    return _serializes(functools.partial(configured, key="return_value", **where), value)


def _serializes(serialize: Callable[[Any], Any], value: Any) -> bool:
    try:
        serialized = serialize(value)
        if AIRFLOW_VERSION >= (3, 0):
            # The worker sends it to the API server as JSON, where NaN is no number.
            json.dumps(serialized, allow_nan=False, ensure_ascii=False).encode()
        return True
    except Exception:  # whatever a serializer raises
        return False


def is_mapped_over(operator: Any, context: Context) -> bool:
    """Tell whether a task is mapped over another one's result, which then must be a list or a dict.

    Airflow checks that after ``execute()``. What an instance of a mapped task returns may be anything.
    """
    if not operator.has_dag() or next(iter(operator.iter_mapped_dependants()), None) is None:
        return False
    task_instance: Any = context["ti"]
    return task_instance.map_index in (None, -1)


def runs_async_functions() -> bool:
    """Tell whether a PythonOperator runs functions that are ``async``: from Airflow 3.2 on, it does."""
    return hasattr(__getattr__("PythonOperator"), "aexecute_callable")


def is_deferral_timeout(next_method: str, next_kwargs: dict[str, Any] | None) -> bool:
    """Tell whether a task resumes because its deferral timed out.

    Airflow 3 has an exception for this, Airflow 2.11 has only a text. The two texts differ.
    """
    words = "Trigger/execution timeout" if AIRFLOW_VERSION < (3, 0) else "Trigger timeout"
    return next_method == "__fail__" and (next_kwargs or {}).get("error") == words


def deferral_limit(task: BaseOperator, context: Context, timeout: timedelta) -> timedelta:
    """Return after what time Airflow ends a deferral that has a timeout.

    Airflow 2.11 ends it by the task's ``execution_timeout``, too, which counts from the start of the try.
    Airflow 3 ignores that once a task has deferred. `airflow dags test` of 2.11 notes no start.
    """
    if AIRFLOW_VERSION >= (3, 0) or not task.execution_timeout:
        return timeout
    if (started := context["ti"].start_date) is None:
        return timeout
    return max(min(timeout, started + task.execution_timeout - datetime.now(UTC)), timedelta(0))


def deferral_ends_at(trigger: Any) -> datetime | None:
    """Return when Airflow ends the deferral of a trigger's task; None outside of a triggerer.

    The time is in Airflow's database. Airflow 2.11 computes it by the worker's clock, Airflow 3 by the API
    server's. Airflow 3 sets the attribute of the trigger, which no base class declares.
    """
    if AIRFLOW_VERSION < (3, 0):
        return getattr(trigger.task_instance, "trigger_timeout", None)
    return getattr(trigger, "timeout_after", None)


def is_left_over(context: Context, try_number: int) -> bool:
    """Tell whether a task resumes with the event of an earlier try.

    Airflow 3.0 keeps a deferral's method and event when the task fails, and starts the next try with them.
    """
    return (3, 0) <= AIRFLOW_VERSION < (3, 1) and try_of(context) != try_number


def try_of(context: Context) -> int:
    """Return the number of a task's try; 0 outside of Airflow, as in a test that calls the operator."""
    number: int = context["ti"].try_number if "ti" in context else 0
    return number


#: Writes whose triggers may be cancelled meanwhile. They are kept here: an event loop keeps no task alive.
_writes: set[asyncio.Future[None]] = set()
#: One write at a time, and not in asgiref's own thread, where the read of a connection could wait for
#: thousands of them. Each write takes a turn of the triggerer's other process.
_writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stability-xcom")


async def success_event(task_instance: Any, returned: float, *, do_xcom_push: bool) -> TaskSuccessEvent:
    """Return the event that ends a task in the triggerer, after pushing its return value to XCom.

    Airflow 2.11 writes the event's XComs. Some versions of Airflow 3 encode them twice, so that a number
    comes back as a string. So on Airflow 3 the XCom is written before the event.

    :param task_instance: the trigger's task instance.
    :param returned: the return value.
    """
    from airflow.triggers.base import TaskSuccessEvent

    if not do_xcom_push:
        return TaskSuccessEvent()
    if AIRFLOW_VERSION < (3, 0):
        return TaskSuccessEvent(xcoms={"return_value": returned})
    from airflow.sdk.execution_time.xcom import XCom
    from asgiref.sync import sync_to_async

    write = asyncio.ensure_future(
        sync_to_async(XCom.set, thread_sensitive=False, executor=_writer)(
            key="return_value",
            value=returned,
            dag_id=task_instance.dag_id,
            task_id=task_instance.task_id,
            run_id=task_instance.run_id,
            map_index=task_instance.map_index,
        )
    )
    # Airflow 3.0 and 3.1 match responses to requests by their order. If a request were cancelled with its
    # trigger, the next request would get its response, and the whole triggerer would end.
    _writes.add(write)
    write.add_done_callback(_writes.discard)
    await asyncio.shield(write)
    return TaskSuccessEvent()


def stats() -> Any:
    """Return the object that takes metrics. It moved to the Task SDK in Airflow 3.2.

    A triggerer of 3.2 or 3.3 sets up another copy for itself. This copy works there, too, because loading the
    SDK's serializers sets it up.
    """
    if AIRFLOW_VERSION >= (3, 2):
        return importlib.import_module("airflow.sdk.observability.stats").Stats
    return importlib.import_module("airflow.stats").Stats


async def read_connection(conn_id: str) -> Connection:
    """Read a connection on an event loop, such as a triggerer's.

    From 3.1 on, Airflow has an asynchronous call. In ``DAG.test()``, which runs triggers without a triggerer,
    that call finds no connection of Airflow's database, because it cannot ask for one. The synchronous call
    can.
    """
    if TYPE_CHECKING or AIRFLOW_VERSION >= (3, 1):
        try:
            return await BaseHook.aget_connection(conn_id)
        except __getattr__("AirflowNotFoundException"):
            if _in_triggerer():
                raise  # there is no such connection
    return await call_in_thread(BaseHook.get_connection, conn_id)


async def call_in_thread(function: Callable[[_Argument], _Result], argument: _Argument) -> _Result:
    """Call a synchronous function that asks Airflow, such as for a connection, on an event loop.

    In a triggerer, the call goes through asgiref, which Airflow installs: Airflow leads the question back to
    the loop. Called directly, the function blocks the loop, or fails outside the trigger's own asyncio task.

    From Airflow 3.1 on, ``DAG.test()`` runs a trigger in ``asyncio.run()``, which waits at its end for
    asyncio's own threads only. Airflow has one global for whom its process asks. A thread that ends later
    sets it back to the trigger's, and what the resumed task says of its end is lost: "None is not a valid
    TerminalStateNonSuccess".
    """
    if AIRFLOW_VERSION >= (3, 1) and not _in_triggerer():
        return await asyncio.to_thread(function, argument)
    from asgiref.sync import sync_to_async

    return await sync_to_async(function)(argument)


def _in_triggerer() -> bool:
    """Tell whether Airflow 3 runs a triggerer in this process. ``DAG.test()`` has no asynchronous calls."""
    from airflow.sdk.execution_time import task_runner

    return hasattr(getattr(task_runner, "SUPERVISOR_COMMS", None), "asend")


def read_connections_as_a_command() -> None:
    """Let this process read connections as the commands of ``airflow connections`` do.

    From Airflow 3.1 on, a process that is neither a task nor a server gets no connections from the database.
    This is how Airflow's own commands ask for them.
    """
    if AIRFLOW_VERSION >= (3, 1):
        os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"


def xcom_of(key: str, *, dag_id: str, run_id: str, task_id: str, map_index: int) -> Any:
    """Return the value of an XCom of any task, or None if there is none. Only a running task may call this.

    The public ``xcom_pull`` of Airflow 2.11 only finds XComs of the same logical date.
    """
    return __getattr__("XCom").get_one(
        key=key, dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index
    )


def task_state_store(context: Context) -> Any:
    """Return the store whose entries the task's page shows; None before Airflow 3.3."""
    return context.get("task_state_store")


def asset_state_store(trigger: BaseEventTrigger) -> Any:
    """Return the store in which a watcher's trigger keeps its state; None before Airflow 3.3.

    The triggerer sets the attribute before the trigger runs.
    """
    return getattr(trigger, "asset_state_store", None)
