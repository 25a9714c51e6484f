"""StabilityBalanceSensor: holds a DAG back until there is credit. Drives the gate in a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from airflow_stability.compat import (
    RENDERS_IN_TRIGGERER,
    STARTS_IN_TRIGGERER,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    Context,
    PokeReturnValue,
    TaskDeferralError,
    conf,
    execute_as,
    is_deferral_timeout,
    is_left_over,
    try_of,
)
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.rules.gate import Decision, Gate, Verdict
from airflow_stability.rules.pacing import RESERVATION_SECONDS
from airflow_stability.validation import (
    check_credits_as_given,
    check_organization,
    check_seconds,
    is_template,
)
from airflow_stability.worker import (
    BACKSTOP,
    failed,
    known_to,
    look,
    show_wait,
    starting_over,
    timed_out_by_airflow,
)

#: What a template may name to be rendered in the triggerer. The rest of a task's context is not there, or is
#: asked for and never answered: an XCom, an earlier run.
TRIGGERER_TEMPLATE_NAMES = frozenset(
    {
        "dag_run",
        "data_interval_end",
        "data_interval_start",
        "ds",
        "ds_nodash",
        "logical_date",
        "params",
        "run_id",
        "ts",
        "ts_nodash",
        "ts_nodash_with_tz",
    }
)


class _Verdict(BaseException):
    """The gate's verdict on its way from poke or execute_complete to execute or resume_execution.

    What Airflow does between them makes a skip, a log line or nothing at all of any Exception, as soft_fail,
    never_fail and silent_fail have it for what happens by accident. This is none.
    """


class _GateTimedOut(_Verdict):
    pass


class _GateFailed(_Verdict):
    def __init__(self, text: str, failure: str | None) -> None:
        super().__init__(text)
        self.failure = failure  # the error's name


class StabilityBalanceSensor(BaseSensorOperator):
    """Waits until an organization has more than a number of credits. Its XCom is the balance, a float.

    An outage, a rate limit or a firewall neither opens the gate nor fails it: it waits on, up to
    ``timeout``. A failure that will not pass, such as a refused key, fails the task at once and without
    retries; with ``soft_fail`` too, which skips at a timeout only. ``never_fail`` skips in both cases.
    After a failure that will not pass the connection is read again first, and a changed one tried at
    once; in mode ``poke`` and in a triggerer, a key that has worked before may be refused for ten minutes.

    :param minimum_credits: the gate opens on more credits than this: a finite number, 0 or more, or a
        string that is one once rendered (templated).
    :param organization: id such as ``org-123456``; None for the connection's organization, else the key's
        default (templated).
    :param stability_conn_id: a connection of type ``stability`` (templated).
    :param expected_credits: what the run behind the gate is expected to spend: the gate then opens when that
        much is there beyond the minimum, and in a triggerer in turn with the others that say so, so that they
        do not open together on credit for one (templated). None: it opens on the balance alone.
    :param reservation_seconds: seconds for which a triggerer counts them as spent once the gate has opened.
    :param deferrable: wait in a triggerer, where all gates on one connection and organization share one poll,
        after a first look on the worker; default: Airflow's ``[operators] default_deferrable``.
    :param start_from_trigger: with ``deferrable``, start in the triggerer, without a first look on a worker.
        Where Airflow cannot, the task defers from a worker at once, and says so: on Airflow 3.1 and 3.2,
        mapped, with most templates, and under ``airflow dags test``. docs/gate.md says which templates can.
    :param end_from_trigger: with ``deferrable``, succeed in the triggerer, without another start on a worker.
        All other ends go through a worker. docs/gate.md says what is given up with both.
    :param kwargs: what every sensor takes: ``poke_interval`` (seconds, default 60), ``timeout`` (seconds),
        ``mode`` (``poke`` or ``reschedule``), ``soft_fail``, ``never_fail`` and so on.
    :raises ValueError: an argument that cannot be what it should; for a template, when the task runs.
    """

    template_fields: Sequence[str] = (
        "minimum_credits",
        "expected_credits",
        "organization",
        "stability_conn_id",
    )
    ui_color = "#d9d2f2"

    def __init__(
        self,
        *,
        minimum_credits: float | str,
        organization: str | None = None,
        stability_conn_id: str = StabilityHook.default_conn_name,
        expected_credits: float | str | None = None,
        reservation_seconds: float = RESERVATION_SECONDS,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        start_from_trigger: bool = False,
        end_from_trigger: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if deferrable:  # all that share its poll would poll without a pause
            check_seconds(self.poke_interval, argument="poke_interval")
        self.deferrable = deferrable
        self.end_from_trigger = end_from_trigger
        if not is_template(minimum_credits):
            minimum_credits = check_credits_as_given(minimum_credits)
        if expected_credits is not None and not is_template(expected_credits):
            expected_credits = check_credits_as_given(expected_credits, argument="expected_credits")
        if not is_template(organization):
            check_organization(organization)
        self.minimum_credits = minimum_credits
        self.expected_credits = expected_credits
        self.reservation_seconds = check_seconds(reservation_seconds, argument="reservation_seconds")
        self.organization = organization
        self.stability_conn_id = stability_conn_id
        self._skips_first_look = deferrable and start_from_trigger
        if self._skips_first_look and self._can_start_in_triggerer():
            from airflow.triggers.base import StartTriggerArgs

            # Airflow reads both from the instance.
            self.start_from_trigger = True
            self.start_trigger_args = StartTriggerArgs(
                trigger_cls="airflow_stability.triggers.stability.StabilityBalanceTrigger",
                trigger_kwargs=self._trigger_arguments(self.minimum_credits, self.expected_credits),
                next_method="execute_complete",
                timeout=timedelta(seconds=self.timeout),
            )
        self._gate: Gate = None  # type: ignore[assignment]  # both are made when the task runs
        self._hook: StabilityHook = None  # type: ignore[assignment]

    def execute(self, context: Context) -> Any:
        """Wait for credit and return the balance.

        :raises ValueError: a rendered argument that cannot be what it should.
        :raises AirflowSensorTimeout: not enough credit, or no answer, within ``timeout``.
        :raises AirflowFailException: a failure that will not pass.
        :raises AirflowNotFoundException: there is no such connection; Airflow's retries count.
        :raises AirflowSkipException: instead of a timeout under ``soft_fail``, of both under ``never_fail``.
        """
        return self._begin(context)

    def _begin(self, context: Context, memory: Mapping[str, Any] | None = None) -> float:
        """Wait from the beginning.

        :param memory: what a task stateful that starts over within its try; None for one that starts.
        """
        self._start()
        try:
            if self.deferrable:
                return self._look_once_and_defer(context, memory)
            balance: float = execute_as(BaseSensorOperator, self, context)
            return balance
        except (AirflowSensorTimeout, AirflowSkipException) as ended:
            if ended.__cause__ is not None:  # a skip by Airflow that is none of a timeout of the sensor's
                raise
            hopeless = self.reschedule and self._gate.seconds_until_poll(datetime.now(UTC)) > 0
            tell = self._gate.hopeless_text if hopeless else self._gate.timeout_text
            ending = self._ending(_GateTimedOut(tell(self.timeout)))
        except _Verdict as verdict:
            ending = self._ending(verdict)
        finally:
            self._hook.close()
        raise ending

    def execute_complete(self, context: Context, event: dict[str, Any]) -> float:
        """Return the balance that opened the gate in the triggerer; asks nothing, unless it starts over.

        :param event: what :class:`StabilityBalanceTrigger` fired.
        :raises ValueError: an argument that was rendered in the triggerer cannot be what it should.
        """
        memory = event.get("memory") or {}
        if memory and is_left_over(context, memory["try_number"]):
            return self._begin(context)
        match event["verdict"]:
            case "open":
                self.log.info("%s", event["text"])
                return float(event["credits"])
            case "timeout":
                raise _GateTimedOut(event["text"])
            case "unusable":
                raise ValueError(event["text"])
            case "fail":
                raise _GateFailed(event["text"], event["failure"])
            case _:
                self.log.warning("%s", starting_over(event))
                return self._begin(context, memory)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after a deferral; see :meth:`execute` for what is raised."""
        try:
            if is_deferral_timeout(next_method, next_kwargs):
                raise _GateTimedOut(timed_out_by_airflow(self, "timeout", self.timeout))
            return super().resume_execution(next_method, next_kwargs, context)
        except _Verdict as verdict:
            ending: BaseException = self._ending(verdict)
        except (AirflowSkipException, TaskDeferralError) as broken:
            # The trigger could not be made where it was to run, or ended with an error that is no verdict.
            # With soft_fail, Airflow would skip then, too.
            ending = broken.__cause__ or broken
            if self.never_fail:
                ending = AirflowSkipException(str(ending))
        raise ending

    def _ending(self, verdict: _Verdict) -> Exception:
        """Return what the flags make of a verdict: one rule for every mode."""
        text = str(verdict)
        if not isinstance(verdict, _GateFailed):
            skip = self.soft_fail or self.never_fail
            return AirflowSkipException(text) if skip else AirflowSensorTimeout(text)
        if self.never_fail:
            return AirflowSkipException(text)
        return failed(text, verdict.failure)

    def _look_once_and_defer(self, context: Context, memory: Mapping[str, Any] | None) -> float:
        if self._skips_first_look and memory is None:
            self.log.info("Airflow started this task on a worker, not in the triggerer: deferring at once.")
        else:
            decision = self._look()
            self._say(decision, context)
            if decision.credits is not None:
                return decision.credits
        if memory and (remembered := memory.get("started")):
            started = datetime.fromisoformat(remembered)
        else:
            # On Airflow 2.11, `airflow dags test` starts tasks without noting when.
            started = context["ti"].start_date or datetime.now(UTC)
        return self._defer(started, try_of(context), again=memory is not None)

    def _defer(self, started: datetime, try_number: int, *, again: bool) -> NoReturn:
        """Go on in a triggerer.

        :param started: when the try did, which stays when the task comes back to a worker.
        :param again: whether the task has started over.
        """
        from airflow_stability.triggers.stability import START_OVER_AFTER, StabilityBalanceTrigger

        deadline = started + timedelta(seconds=self.timeout)
        limit = deadline + BACKSTOP
        if self.execution_timeout:  # Airflow 3 itself does not mind it once a task has deferred
            limit = min(limit, started + self.execution_timeout)
        if self.exponential_backoff:
            self.log.warning("exponential_backoff is ignored in a triggerer, where gates share one poll.")
        expected_credits = None if self.expected_credits is None else self._gate.expected_credits
        join_at = (datetime.now(UTC) + timedelta(seconds=START_OVER_AFTER)).isoformat() if again else None
        self.defer(
            trigger=StabilityBalanceTrigger(
                **self._trigger_arguments(self._gate.minimum_credits, expected_credits),
                **known_to(self._gate),
                deadline=deadline.isoformat(),
                since=started.isoformat(),
                join_at=join_at,
                # Some versions of Airflow give another start when a task resumes.
                memory={"try_number": try_number, "started": started.isoformat()},
            ),
            method_name="execute_complete",
            timeout=max(limit - datetime.now(UTC), timedelta(0)),
        )

    def _trigger_arguments(
        self, minimum_credits: float | str, expected_credits: float | str | None
    ) -> dict[str, Any]:
        """Return those of the trigger's arguments that are known before the task runs."""
        from airflow_stability.triggers.stability import ARGUMENTS_VERSION

        return {
            # Airflow renders those four in the triggerer if they have the names of the template fields.
            "minimum_credits": minimum_credits,
            "expected_credits": expected_credits,
            "organization": self.organization,
            "stability_conn_id": self.stability_conn_id,
            "poke_interval": self.poke_interval,
            "timeout": self.timeout,
            "reservation_seconds": self.reservation_seconds,
            "end_from_trigger": self.end_from_trigger,
            "do_xcom_push": self.do_xcom_push,
            "arguments_version": ARGUMENTS_VERSION,
        }

    def _can_start_in_triggerer(self) -> bool:
        templates = [value for name in self.template_fields if is_template(value := getattr(self, name))]
        if not templates:
            return STARTS_IN_TRIGGERER
        # There, None would be the string "None".
        native = self.has_dag() and self.dag.render_template_as_native_obj  # type: ignore[no-untyped-call]
        return RENDERS_IN_TRIGGERER and not native and all(map(_renders_in_triggerer, templates))

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """Ask for the balance once, unless the server wants no call yet, and tell whether waiting is over."""
        if self._gate is None:  # called by itself, as tests do
            self._start()
        if self._gate.seconds_until_poll(datetime.now(UTC)) > 0:
            return False
        decision = self._look()
        self._say(decision, context)
        return PokeReturnValue(is_done=decision.verdict is Verdict.OPEN, xcom_value=decision.credits)

    def _say(self, decision: Decision, context: Context) -> None:
        """Log and show what there is to say, and raise the verdict of a gate that fails."""
        if decision.verdict is Verdict.FAIL:
            raise _GateFailed(decision.text, decision.failure.name if decision.failure else None)
        if decision.should_log:
            self.log.info("%s", decision.text)
            if decision.verdict is Verdict.WAIT:
                show_wait(context, decision.text)

    def _start(self) -> None:
        self._gate = Gate(
            self.minimum_credits,
            expected_credits=self.expected_credits,
            organization=self.organization,
            stateful=not self.reschedule,
        )
        self._hook = StabilityHook(self.stability_conn_id, retry_deadline=0)

    def _look(self) -> Decision:
        return look(self._gate, self._hook, self.organization)

    def _get_next_poke_interval(
        self, started_at: datetime | float, run_duration: Callable[[], float], poke_count: int
    ) -> float:
        """Never return into a lock-out, in either mode: Airflow asks here how long to wait."""
        interval: float = super()._get_next_poke_interval(started_at, run_duration, poke_count)
        locked_out = self._gate.seconds_until_poll(datetime.now(UTC))
        if locked_out == 0:
            return interval
        left = max(self.timeout - run_duration(), 0.0)
        if locked_out > left:
            if self.reschedule:
                # It stateful nothing between two pokes, so that after the wait it would poll inside the
                # lock-out. Nothing can be learned before the timeout: it is over now.
                raise AirflowSensorTimeout
            return left
        from airflow_stability.client.retry import with_jitter

        # The gates that were locked out together do not come back together.
        return max(interval, with_jitter(locked_out))


def _renders_in_triggerer(template: object) -> bool:
    """Tell whether a template comes to the same in the triggerer, which does not know the DAG."""
    if not isinstance(template, str):  # an XComArg arrives there as it is
        return False
    from jinja2 import TemplateError
    from jinja2.meta import find_undeclared_variables
    from jinja2.nodes import Filter
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment()
    try:
        tree = environment.parse(template)
        names = find_undeclared_variables(tree)
    except TemplateError:
        return False
    filters = {each.name for each in tree.find_all(Filter)}
    return names <= TRIGGERER_TEMPLATE_NAMES and filters <= environment.filters.keys()
