"""StabilityBalanceSensor: the driver of the gate on a worker. It holds a DAG back until there is credit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_stability import deferral
from airflow_stability.compat import (
    RENDERS_IN_TRIGGERER,
    STARTS_IN_TRIGGERER,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    Context,
    PokeReturnValue,
    SensorBase,
    TaskDeferralError,
    TaskDeferred,
    conf,
    execute_as,
    is_deferral_timeout,
    try_of,
)
from airflow_stability.deferral import DeferralEvent
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.rules.gate import Decision, Gate, Verdict
from airflow_stability.rules.pacing import RESERVATION_SECONDS
from airflow_stability.validation import (
    check_budget,
    check_conn_id,
    check_credits,
    check_credits_as_given,
    check_organization,
    check_seconds,
    is_template,
    safe_repr,
)

#: The names that a template may use if it is rendered in the triggerer. The rest of a task's context is
#: missing there, or a request for it (an XCom, an earlier run) is never answered.
TRIGGERER_TEMPLATE_NAMES = {
    *("dag_run", "params", "run_id", "logical_date", "data_interval_start", "data_interval_end"),
    *("ds", "ds_nodash", "ts", "ts_nodash", "ts_nodash_with_tz"),
}

#: The attributes of ``dag_run`` that are the same there. Others are missing: who triggered it, for example.
TRIGGERER_DAG_RUN_ATTRIBUTES = {
    *("conf", "dag_id", "run_id", "logical_date", "data_interval_start", "data_interval_end"),
}


class _GateFailed(AirflowFailException):
    """A permanent failure, on its way out of ``poke`` or ``execute_complete``.

    BaseSensorOperator turns an AirflowFailException into a skip under soft_fail and never_fail, and keeps it
    as the cause of that skip. :meth:`StabilityBalanceSensor._ending` recovers it from there.

    :param failure: name of the error class.
    """

    def __init__(self, text: str, failure: str | None) -> None:
        super().__init__(text)
        self.failure = failure


class StabilityBalanceSensor(SensorBase):
    """A sensor that waits until an organization has more than a number of credits.

    Its XCom is the balance, a float.

    An outage, a rate limit or a firewall neither opens the gate nor fails it: the sensor goes on waiting, up
    to ``timeout``. A permanent failure, such as a refused key, fails the task at once and without retries.
    ``soft_fail`` skips the task only at a timeout, ``never_fail`` in both cases. After a permanent failure,
    the connection is first read again. If it has changed, it is tried at once. In mode ``poke`` and in a
    triggerer, a key that has worked before may be refused for ten minutes first.

    :param minimum_credits: the gate opens on more credits than this: a finite number, 0 or more, or a string
        that is one once rendered (templated).
    :param organization: id such as ``org-123456``; None for the connection's organization, else the key's
        default (templated).
    :param stability_conn_id: a connection of type ``stability`` (templated).
    :param expected_credits: credits that the run behind the gate will spend (templated). The gate then opens
        when that much is there beyond the minimum. In a triggerer it takes turns with other gates that expect
        to spend, so that they do not all open on credit for one. None: it opens on the balance alone.
    :param reservation_seconds: seconds, or a timedelta, for which a triggerer reserves the expected credits
        once the gate has opened; default 60.
    :param budget: the budget of the ledger that the expected credits are taken from (templated); None for the
        connection's. It needs ``expected_credits``, and ``extra.ledger_conn_id`` in the connection. The gate
        waits until the budget has that much left. With a ledger, the expected credits are held in it for
        ``reservation_seconds``, in every mode.
    :param deferrable: wait in a triggerer after a first poll on the worker. All gates there on one connection
        and organization share one poll. Default: Airflow's ``[operators] default_deferrable``.
    :param start_from_trigger: with ``deferrable``, start in the triggerer, without a first poll on a worker.
        Where Airflow cannot do that, the task defers from a worker at once and logs so: on Airflow 3.1 and
        3.2, when mapped, with most templates, and under ``airflow dags test``.
    :param end_from_trigger: with ``deferrable``, succeed in the triggerer, without another start on a worker.
        All other ends go through a worker. ``outlets``, listeners and, on Airflow 3, ``on_success_callback``
        have no effect.
    :param kwargs: the arguments of every sensor: ``poke_interval`` (seconds or a timedelta, default 60),
        ``timeout`` (seconds or a timedelta), ``mode`` (``poke`` or ``reschedule``), ``soft_fail``,
        ``never_fail`` and so on.
    :raises ValueError: an argument is unusable; for a template, when the task runs.
    """

    template_fields: Sequence[str] = (
        "minimum_credits",
        "expected_credits",
        "organization",
        "stability_conn_id",
        "budget",
    )
    ui_color = "#d9d2f2"

    def __init__(
        self,
        *,
        minimum_credits: float | str,
        organization: str | None = None,
        stability_conn_id: str = StabilityHook.default_conn_name,
        expected_credits: float | str | None = None,
        reservation_seconds: float | timedelta = RESERVATION_SECONDS,
        budget: str | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        start_from_trigger: bool = False,
        end_from_trigger: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # With 0, all gates that share its poll in a triggerer would poll without a pause.
        check_seconds(self.poke_interval, argument="poke_interval", allow_zero=not deferrable)
        check_seconds(self.timeout, argument="timeout", allow_zero=True)
        if self.execution_timeout is not None:
            check_seconds(self.execution_timeout, argument="execution_timeout", allow_zero=True)
        self.deferrable = deferrable
        self.end_from_trigger = end_from_trigger
        if not is_template(minimum_credits):
            minimum_credits = check_credits_as_given(minimum_credits)
        if expected_credits is not None and not is_template(expected_credits):
            expected_credits = check_credits_as_given(expected_credits, argument="expected_credits")
        if not is_template(organization):
            check_organization(organization)
        if not is_template(stability_conn_id):
            check_conn_id(stability_conn_id)
        if not is_template(budget):
            check_budget(budget)
        if budget is not None and expected_credits is None:
            raise ValueError(
                f"budget is {safe_repr(budget)}, and expected_credits is missing: say how many credits the "
                "run behind the gate will take from the budget."
            )
        self.minimum_credits = minimum_credits
        self.expected_credits = expected_credits
        self.reservation_seconds = check_seconds(reservation_seconds, argument="reservation_seconds")
        self.organization = organization
        self.stability_conn_id = stability_conn_id
        self.budget = budget
        # With a timeout of 0, the first poll is the only one.
        self._skips_first_poll = deferrable and start_from_trigger and self.timeout > 0
        if self._skips_first_poll and self._can_start_in_triggerer():
            from airflow.triggers.base import StartTriggerArgs

            # Airflow reads both from the instance.
            self.start_from_trigger = True
            self.start_trigger_args = StartTriggerArgs(
                trigger_cls=deferral.TRIGGER_PATH,
                trigger_kwargs=self._trigger_arguments(self.minimum_credits, self.expected_credits),
                next_method=deferral.RESUME_METHOD,
                timeout=timedelta(seconds=self.timeout),
            )
        self._gate: Gate = None  # type: ignore[assignment]  # both are made when the task runs
        self._hook: StabilityHook = None  # type: ignore[assignment]

    def execute(self, context: Context) -> Any:
        """Wait for credit and return the balance.

        :raises ValueError: a rendered argument is unusable.
        :raises AirflowSensorTimeout: not enough credit, or no response, within ``timeout``.
        :raises AirflowFailException: a permanent failure.
        :raises StabilityConnectionNotFoundError: there is no such connection; Airflow's retries apply.
        :raises AirflowSkipException: instead of a timeout under ``soft_fail``; instead of a timeout and of a
            permanent failure under ``never_fail``.
        """
        return self._wait_for_credit(context, poll_first=not self._skips_first_poll)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> float:
        """Return the balance that opened the gate in the triggerer, without another poll.

        :param event: the payload of the event that :class:`StabilityBalanceTrigger` fired.
        :raises ValueError: an argument that was rendered in the triggerer is unusable.
        """
        fired = DeferralEvent.from_payload(event)
        if fired.is_left_over(context):
            return self._wait_for_credit(context, poll_first=not self._skips_first_poll)
        match fired.verdict:
            case DeferralEvent.OPEN:
                self.log.info("%s", fired.text)
                return float(fired.credits or 0.0)
            case DeferralEvent.TIMEOUT:
                raise AirflowSensorTimeout(fired.text)
            case DeferralEvent.UNUSABLE:
                raise ValueError(fired.text)
            case DeferralEvent.FAIL:
                raise _GateFailed(fired.text, fired.failure)
            case _:
                self.log.warning("%s", fired.unknown_verdict_text)
                waited = float((fired.memory or {}).get("waited", 0.0)) + fired.seconds
                return self._wait_for_credit(context, poll_first=True, waited=waited)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after a deferral; see :meth:`execute` for what is raised."""
        try:
            if is_deferral_timeout(next_method, next_kwargs):
                raise AirflowSensorTimeout(deferral.airflow_timeout(self, "timeout"))
            return super().resume_execution(next_method, next_kwargs, context)
        except (AirflowFailException, AirflowSensorTimeout, AirflowSkipException, TaskDeferralError) as ended:
            ending = self._ending(ended)
        raise ending

    def _wait_for_credit(self, context: Context, *, poll_first: bool, waited: float = 0.0) -> float:
        """Wait from the beginning.

        :param poll_first: whether to poll before deferring.
        :param waited: seconds for which this try has waited before.
        """
        began = time.monotonic() - waited
        self._start()
        try:
            if self.deferrable:
                return self._poll_once_and_defer(context, poll_first, began)
            balance: float = execute_as(BaseSensorOperator, self, context)
            return balance
        except (AirflowSensorTimeout, AirflowSkipException, AirflowFailException) as ended:
            if ended.__cause__ is not None and not isinstance(ended.__cause__, _GateFailed):
                raise  # something else than a failed gate or a timeout, from a subclass
            timed_out = ended.__cause__ is None and not isinstance(ended, AirflowFailException)
            ending = self._ending(AirflowSensorTimeout(self._timeout_text()) if timed_out else ended)
        finally:
            self._hook.close()
        raise ending

    def _ending(self, ended: Exception) -> Exception:
        """Return the exception that ends the task, by one rule for all modes and versions of Airflow.

        :param ended: an exception that has passed the handlers of BaseSensorOperator.
        """
        error = ended
        while isinstance(error, AirflowSkipException) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        text = str(error)
        if isinstance(error, AirflowSensorTimeout):
            skips = self.soft_fail or self.never_fail
            return AirflowSkipException(text) if skips else AirflowSensorTimeout(text)
        if isinstance(error, AirflowFailException | TaskDeferralError):
            if self.never_fail:
                return AirflowSkipException(text)
            return (
                deferral.failure_exception(text, error.failure) if isinstance(error, _GateFailed) else error
            )
        return error if isinstance(error, AirflowSkipException) else ended

    def _timeout_text(self) -> str:
        now = datetime.now(UTC)
        if self.reschedule and self._gate.seconds_until_poll(now) > 0:
            return self._gate.locked_out_text(self.timeout, now)
        return self._gate.timeout_text(self.timeout)

    def _poll_once_and_defer(self, context: Context, poll_first: bool, began: float) -> float:
        if poll_first:
            decision = self._poll(context)
            if decision.credits is not None:
                return decision.credits
            if self.timeout == 0:
                raise AirflowSensorTimeout
        else:
            self.log.info("Airflow started this task on a worker, not in the triggerer: deferring at once.")
        raise self._deferral(context, time.monotonic() - began)

    def _deferral(self, context: Context, waited: float) -> TaskDeferred:
        """Return the exception that makes the task go on in a triggerer.

        :param waited: seconds for which this try has waited, in the triggerer and on workers.
        """
        from airflow_stability.triggers.stability import StabilityBalanceTrigger

        timeout = float(self.timeout)
        if self.execution_timeout:  # Airflow 3 itself ignores it once a task has deferred
            timeout = min(timeout, self.execution_timeout.total_seconds())
        if self.exponential_backoff:
            self.log.warning("exponential_backoff is ignored in a triggerer, where gates share one poll.")
        expected_credits = None if self.expected_credits is None else self._gate.expected_credits
        trigger = StabilityBalanceTrigger(
            **{**self._trigger_arguments(self._gate.minimum_credits, expected_credits), "timeout": timeout},
            **deferral.handover_arguments(self._gate, datetime.now(UTC)),
            waited=waited,
            memory={"try_number": try_of(context), "waited": waited},
        )
        left = timedelta(seconds=max(timeout - waited, 0.0))
        return deferral.deferred(self, context, trigger, left + deferral.BACKSTOP)

    def _trigger_arguments(
        self, minimum_credits: float | str | None, expected_credits: float | str | None
    ) -> dict[str, Any]:
        """Return the trigger's arguments that are known before the task runs."""
        return {
            # Airflow renders these five in the triggerer if they have the names of the template fields.
            "minimum_credits": minimum_credits,
            "expected_credits": expected_credits,
            "organization": self.organization,
            "stability_conn_id": self.stability_conn_id,
            "budget": self.budget,
            "poke_interval": self.poke_interval,
            "timeout": self.timeout,
            "reservation_seconds": self.reservation_seconds,
            "end_from_trigger": self.end_from_trigger,
            "do_xcom_push": self.do_xcom_push,
        }

    def _can_start_in_triggerer(self) -> bool:
        if conf.getboolean("triggerer", "queues_enabled", fallback=False):
            # Airflow (3.2 to 3.4) gives such a trigger no queue, and a triggerer with queues runs no trigger
            # without one.
            return False
        templates = [value for name in self.template_fields if is_template(value := getattr(self, name))]
        if not templates:
            return STARTS_IN_TRIGGERER
        return RENDERS_IN_TRIGGERER and self._dag_renders_as_usual() and all(map(_renders_alike, templates))

    def _dag_renders_as_usual(self) -> bool:
        """Tell whether the DAG leaves the rendering of templates as it is: a triggerer does not know more."""
        if not self.has_dag():  # type: ignore[no-untyped-call]  # Airflow's; it may get one later
            return False
        from jinja2 import StrictUndefined

        dag = self.dag
        return dag.template_undefined is StrictUndefined and not (
            dag.render_template_as_native_obj or dag.user_defined_filters or dag.jinja_environment_kwargs
        )

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """Poll the balance once, unless the server wants no call yet, and tell whether the wait is over.

        :raises AirflowFailException: a permanent failure.
        """
        if self._gate is None:  # called directly, as tests do
            self._start()
        if self._gate.seconds_until_poll(datetime.now(UTC)) > 0:
            return False
        decision = self._poll(context)
        return PokeReturnValue(is_done=decision.verdict is Verdict.OPEN, xcom_value=decision.credits)

    def seconds_to_next_poke(self, interval: float, time_left: float) -> float:
        """Return the seconds to the next poke, which never comes inside a lock-out."""
        locked_out = self._gate.seconds_until_poll(datetime.now(UTC))
        if locked_out == 0:
            return interval
        if locked_out > time_left:
            if self.reschedule:
                # Between two pokes nothing is remembered, so the next one would come inside the lock-out.
                # Nothing can be learned before the timeout, so the wait ends now.
                raise AirflowSensorTimeout
            return time_left
        from airflow_stability.client.retry import with_jitter

        # Gates that were locked out together must not come back together.
        return max(interval, with_jitter(locked_out))

    def _start(self) -> None:
        self._gate = Gate(
            check_credits(self.minimum_credits),
            expected_credits=self.expected_credits,
            organization=self.organization,
            stateful=not self.reschedule,
        )
        check_budget(self.budget)
        self._hook = StabilityHook(check_conn_id(self.stability_conn_id), retry_deadline=0)

    def _poll(self, context: Context) -> Decision:
        """Poll the balance, log a decision that is news, show it on the task's page, and raise a failure."""
        # A DAG file needs none of it.
        from airflow_stability.polling import hold_expected_credits, read_and_decide, show_wait

        decision = read_and_decide(self._gate, self._hook, self.organization)
        decision = hold_expected_credits(
            self._gate, self._hook, decision, budget=self.budget, seconds=self.reservation_seconds
        )
        if decision.verdict is Verdict.FAIL:
            raise _GateFailed(decision.text, decision.failure)
        if decision.should_log:
            self.log.info("%s", decision.text)
            if decision.verdict is Verdict.WAIT:
                show_wait(context, decision.text)
        return decision


def _renders_alike(template: object) -> bool:
    """Tell whether a template renders the same in the triggerer, which does not know the DAG."""
    if not isinstance(template, str):  # an XComArg arrives there unresolved
        return False
    from jinja2 import TemplateError
    from jinja2.meta import find_undeclared_variables
    from jinja2.nodes import Filter, Getattr, Name
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment()
    try:
        tree = environment.parse(template)
        names = find_undeclared_variables(tree)
    except TemplateError:
        return False
    filters = {each.name for each in tree.find_all(Filter)}
    same = {id(each.node) for each in tree.find_all(Getattr) if each.attr in TRIGGERER_DAG_RUN_ATTRIBUTES}
    other = [each for each in tree.find_all(Name) if each.name == "dag_run" and id(each) not in same]
    return names <= TRIGGERER_TEMPLATE_NAMES and filters <= environment.filters.keys() and not other
