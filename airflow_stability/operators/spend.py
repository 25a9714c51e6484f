"""StabilitySpendOperator: runs a function that spends credits, and waits for credit when it is refused.

It is the driver of :mod:`airflow_stability.rules.spending` on a worker.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_stability import deferral
from airflow_stability.compat import (
    AirflowFailException,
    AirflowRescheduleException,
    AirflowTaskTimeout,
    Context,
    PythonOperator,
    can_be_rescheduled,
    conf,
    execute_as,
    first_start,
    is_control_flow,
    is_deferral_timeout,
    is_mapped_over,
    runs_async_functions,
    try_of,
    wrap_post_execute,
    xcom_can_hold,
)
from airflow_stability.deferral import DeferralEvent
from airflow_stability.errors import (
    StabilityError,
    StabilityJobPendingError,
    StabilityPaymentRequiredError,
    StabilityPermanentError,
)
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.operators.client_argument import CLIENT, is_async, takes_client, without_client
from airflow_stability.polling import hold_expected_credits, read_and_decide, show_wait
from airflow_stability.rules import wording
from airflow_stability.rules.gate import Decision, Gate, Verdict
from airflow_stability.rules.pacing import RESERVATION_SECONDS
from airflow_stability.rules.spending import (
    NOTHING_SENT,
    GiveUp,
    Payments,
    Run,
    Spending,
    SpendState,
    Wait,
    final_text,
    is_refusal,
    what_counts,
    why_no_result,
)
from airflow_stability.validation import (
    check_budget,
    check_conn_id,
    check_credits,
    check_credits_as_given,
    check_organization,
    check_seconds,
    format_number,
    is_template,
    safe_repr,
)

if TYPE_CHECKING:
    from airflow_stability.client import StabilityClient


@can_be_rescheduled
class StabilitySpendOperator(PythonOperator):
    """An operator that runs a function that spends credits, and waits for credit when it is refused.

    The function gets a :class:`~airflow_stability.client.StabilityClient` of the connection as its argument
    ``client``, if it has an argument of that name, and everything that a PythonOperator passes. Its return
    value is the task's XCom.

    The balance is polled before each run of the function. If it is too low, or there is no response, the task
    waits without running the function. The task also waits when the function raises
    StabilityPaymentRequiredError (402). It also waits after StabilityRateLimitError (429), status 503 or a
    failure to reach the API, unless a call that was made with the client may have been charged. Then **the
    function runs again, from its beginning**. Waiting uses no worker and none of Airflow's retries. After a
    refusal, it lasts at least ``poke_interval``. Each further refusal doubles it, up to 15 minutes.

    Any other exception of the function is handled by Airflow as usual, unless a call that was made with the
    client may have been charged and would be charged again. Then the task fails without Airflow's retries,
    whatever has ended it: the function, ``execution_timeout`` or ``post_execute``. It also does after
    StabilityOutcomeUnknownError, after an error about the content of a call (moderated, blurred, too large),
    and if XCom cannot hold what the function returns. Durable calls are not charged again. Exceptions that
    tell Airflow what to do next, such as AirflowSkipException, keep their meaning.

    :param python_callable: the function.
    :param credits: credits that one run will spend: a number, 0 or more, or a string that is one (templated).
        The task waits for a balance of that much.
    :param wait_timeout: seconds, or a timedelta, that the task may wait in all, over all refusals, in one
        try. The time in which the function runs does not count. Default: Airflow's
        ``[sensors] default_timeout``, a week.
    :param max_refusals: fail after this many 402 responses that low credit does not explain: the balance
        sufficed before and after, or an earlier call of this run may have been charged. Default 3. Not
        counted without ``deferrable``, because nothing is remembered then: a refusal after a call that may
        have been charged, and would be charged again, fails the task at once.
    :param organization: whose balance is watched: an id such as ``org-123456``; None for the connection's
        organization, else the key's default (templated). Image generation bills the key's default.
    :param stability_conn_id: a connection of type ``stability`` (templated).
    :param deferrable: wait in a triggerer (default), where all tasks on one connection and organization share
        one poll and are let go in turn. If False, the task is rescheduled. ``wait_timeout`` then runs from
        the first reschedule and includes time spent in the function; each pause equals the time elapsed.
    :param poke_interval: seconds, or a timedelta, between two polls of the balance; default 60.
    :param reservation_seconds: seconds, or a timedelta, for which a triggerer reserves ``credits`` once it
        has let the task go; default 60.
    :param budget: the budget of the ledger that the credits are taken from (templated); None for the
        connection's. It needs ``extra.ledger_conn_id`` in the connection.
    :param retry_after_paying: whether Airflow's retries apply after a call that may have been charged, and
        after StabilityOutcomeUnknownError. Each retry may pay again. Default False.
    :param kwargs: arguments of a PythonOperator: ``op_args``, ``op_kwargs``, ``templates_dict`` and so on.
    :raises ValueError: an argument is unusable; for a template, when the task runs.
    """

    template_fields: Sequence[str] = (
        *PythonOperator.template_fields,
        "credits",
        "organization",
        "stability_conn_id",
        "budget",
    )
    ui_color = "#d9d2f2"

    #: The event of the trigger while the task resumes.
    _event: DeferralEvent | None = None
    #: The client and the context while the function runs.
    _client: StabilityClient | None = None
    _context: Context | None = None

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        credits: float | str,
        wait_timeout: float | timedelta | None = None,
        max_refusals: int = 3,
        organization: str | None = None,
        stability_conn_id: str = StabilityHook.default_conn_name,
        deferrable: bool = True,
        poke_interval: float | timedelta = 60,
        reservation_seconds: float | timedelta = RESERVATION_SECONDS,
        budget: str | None = None,
        retry_after_paying: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(python_callable=without_client(python_callable), **kwargs)
        if is_async(python_callable) and not runs_async_functions():
            raise ValueError(
                "python_callable must not be async: this Airflow's PythonOperator runs no coroutine."
            )
        if isinstance(self.op_kwargs, Mapping) and CLIENT in self.op_kwargs:
            raise ValueError("op_kwargs must not name a client: the function gets the connection's.")
        if not is_template(credits):
            credits = check_credits_as_given(credits, argument="credits")
        if not is_template(organization):
            check_organization(organization)
        if not is_template(stability_conn_id):
            check_conn_id(stability_conn_id)
        if not is_template(budget):
            check_budget(budget)
        if self.execution_timeout is not None:
            check_seconds(self.execution_timeout, argument="execution_timeout", allow_zero=True)
        if wait_timeout is None:
            wait_timeout = conf.getfloat("sensors", "default_timeout")
        if isinstance(max_refusals, bool) or not isinstance(max_refusals, int) or max_refusals < 1:
            raise ValueError(
                f"max_refusals must be a whole number, 1 or more; got {safe_repr(max_refusals)}."
            )
        self.credits = credits
        self.wait_timeout = check_seconds(wait_timeout, argument="wait_timeout")
        self.max_refusals = max_refusals
        self.organization = organization
        self.stability_conn_id = stability_conn_id
        self.deferrable = deferrable
        self.poke_interval = check_seconds(poke_interval, argument="poke_interval")
        self.reservation_seconds = check_seconds(reservation_seconds, argument="reservation_seconds")
        self.budget = budget
        self.retry_after_paying = retry_after_paying

    @property
    def reschedule(self) -> bool:
        """Whether the task waits by reschedule."""
        return not self.deferrable

    def execute(self, context: Context) -> Any:
        """Run the function once there is credit, and return what it returns.

        :raises ValueError: a rendered argument is unusable.
        :raises AirflowFailException: permanent failure, ``wait_timeout``, ``max_refusals``, or a run that is
            not retried.
        :raises StabilityConnectionNotFoundError: there is no such connection; Airflow's retries apply.
        """
        event = self._event
        if event is not None and event.is_left_over(context):
            event = self._event = None  # its hold belongs to an earlier try, which may have paid
        if event is None:
            started = first_start(context) if self.reschedule else None
            state = SpendState.rescheduled(started, datetime.now(UTC)) if started else SpendState()
            return self._poll_and_run(context, self._spending(context, state))
        state = SpendState.from_memory(event.memory or {}).resumed(event.seconds)
        spending = self._spending(context, state)
        match event.verdict:
            case DeferralEvent.OPEN:
                self.log.info("%s", event.text)
                spending.gate.restore((event.credits or 0.0, datetime.now(UTC)))
            case DeferralEvent.TIMEOUT:
                raise AirflowFailException(spending.timeout_text(event.text, event.credits))
            case DeferralEvent.JOB:
                self.log.info("%s", event.text)
                return self._run(context, spending, StabilityHook(self.stability_conn_id, retry_deadline=0))
            case DeferralEvent.UNUSABLE:
                raise ValueError(event.text)
            case DeferralEvent.FAIL:
                raise deferral.failure_exception(event.text, event.failure)
            case _:
                self.log.warning("%s", event.unknown_verdict_text)
        return self._poll_and_run(context, spending)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after a deferral; see :meth:`execute`.

        :param event: the payload of the event that :class:`StabilityBalanceTrigger` fired.
        """
        self._event = DeferralEvent.from_payload(event)
        try:
            return self.resume(context)
        finally:
            self._event = None

    def resume(self, context: Context) -> Any:
        """Go on after a deferral. What a subclass does in its own ``execute`` runs only once in a try."""
        return execute_as(StabilitySpendOperator, self, context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after a deferral; see :meth:`execute` for what is raised."""
        if is_deferral_timeout(next_method, next_kwargs):
            raise AirflowFailException(deferral.airflow_timeout(self, "wait_timeout"))
        return super().resume_execution(next_method, next_kwargs, context)

    def _spending(self, context: Context, state: SpendState) -> Spending:
        check_conn_id(self.stability_conn_id)
        expected = check_credits(self.credits, argument="credits")
        return Spending(
            Gate(0, expected_credits=expected, organization=self.organization, stateful=self.deferrable),
            replace(state, try_number=try_of(context)),
            wait_timeout=self.wait_timeout,
            max_refusals=self.max_refusals,
            poke_interval=self.poke_interval,
            min_wait=deferral.MIN_DEFERRAL_SECONDS,
        )

    def _poll_and_run(self, context: Context, spending: Spending) -> Any:
        """Poll the balance, then run the function or wait."""
        hook = StabilityHook(self.stability_conn_id, retry_deadline=0)
        try:
            decision = self._poll(spending.gate, hook)
            step = spending.after_poll(decision, datetime.now(UTC))
            if isinstance(step, Run):
                return self._run(context, spending, hook)
            self.log.info("%s", decision.text)
            show_wait(context, decision.text)
        finally:
            hook.close()
        raise self._leave(context, spending, step)

    def _run(self, context: Context, spending: Spending, hook: StabilityHook) -> Any:
        """Run the function, and wait if it is refused."""
        hook.close()
        with contextlib.closing(hook.with_retry_deadline(None)) as hook_of_function:
            client = hook_of_function.get_conn()
            client.waits_for_jobs = self.reschedule
            if (step := self._begin_in_ledger(context, spending, client)) is not None:
                raise self._leave(context, spending, step)
            with self._not_retried_after_paying(context, client):
                try:
                    with self._ended_in_ledger(client):
                        result = self._call(context, client)
                except Exception as error:
                    refusal = what_counts(error)
                    if is_control_flow(error, context):
                        raise
                    payments = _payments(client)
                    if isinstance(refusal, StabilityJobPendingError) and not payments.unprotected:
                        raise self._wait_for_job(context, spending, refusal) from error
                    if not is_refusal(refusal, payments, stateful=self.deferrable):
                        raise
                else:
                    self._guard_post_execute(context, client)
                    return result
                hook_of_function.close()
                raise self._after_refusal(context, spending, hook, refusal, _payments(client))

    def _begin_in_ledger(
        self, context: Context, spending: Spending, client: StabilityClient
    ) -> Wait | GiveUp | None:
        """Hold the credits of a run in the ledger, if there is one; return what follows if they are not."""
        budget = check_budget(self.budget)
        if client.recorder is None:
            if budget is None:
                return None
            raise AirflowFailException(wording.no_ledger_text(budget, self.stability_conn_id))
        from airflow_stability.client.spend_recorder import WantedCredits  # a DAG file needs none of it

        gate, answered = spending.gate, True
        # A job is paid for: its result is fetched even if the budget has nothing left for further calls.
        is_paid = self._event is not None and self._event.verdict == DeferralEvent.JOB
        credits = 0.0 if is_paid else spending.credits
        reading = gate.last_reading(datetime.now(UTC))
        try:
            obstacle = client.recorder.begin_run(
                WantedCredits(credits, budget, gate.organization, reading),
                itemized=takes_client(self.python_callable),
                hold=self._event.hold if self._event else None,
                replays=spending.replays,
            )
        except StabilityPermanentError as error:
            raise deferral.failure_exception(str(error), type(error).__name__) from None
        except StabilityError as error:  # unknown is not poor: the run waits
            obstacle, answered = str(error), False
        if obstacle is None:
            return None
        self.log.info("Waiting: %s", obstacle)
        show_wait(context, f"Waiting: {obstacle}")
        return spending.after_obstacle(obstacle, datetime.now(UTC), answered=answered)

    @contextlib.contextmanager
    def _ended_in_ledger(self, client: StabilityClient) -> Iterator[None]:
        """End the hold of the run in the block, as it ends."""
        if client.recorder is None:
            yield
            return
        try:
            yield
        except BaseException as error:
            refused = isinstance(what_counts(error), (StabilityPaymentRequiredError, *NOTHING_SENT))
            client.recorder.end_run(completed=False, refused=refused)
            raise
        client.recorder.end_run(completed=True, refused=False)

    def _wait_for_job(
        self, context: Context, spending: Spending, pending: StabilityJobPendingError
    ) -> BaseException:
        """Return the exception with which the task leaves the worker until a job is finished."""
        self.log.info("%s", pending)
        show_wait(context, str(pending))
        now = datetime.now(UTC)
        step = spending.after_job_pending(now, wording.job_timeout_text(pending.job_id, self.wait_timeout))
        if isinstance(step, GiveUp):
            return AirflowFailException(step.text)
        if self.reschedule:
            return _rescheduled(step, now)
        from airflow_stability.triggers.jobs import StabilityJobTrigger

        trigger = StabilityJobTrigger(
            stability_conn_id=self.stability_conn_id,
            job_id=pending.job_id or "",
            result_path=pending.result_path or "",
            timeout=self.wait_timeout,
            waited=step.state.seconds_waited,
            memory=asdict(step.state),
        )
        return deferral.deferred(self, context, trigger, _backstop(step))

    def _after_refusal(
        self,
        context: Context,
        spending: Spending,
        hook: StabilityHook,
        refusal: StabilityError,
        payments: Payments,
    ) -> BaseException:
        """Return the exception with which the task leaves the worker after a refusal of the function."""
        if not takes_client(self.python_callable):
            # The next run needs a hold of its own: an XCom may say that this run has not spent its hold.
            self._event = None
        self.log.warning("Refused: %s", refusal)
        show_wait(context, f"Refused: {refusal}")
        if payments.maybe_paid:
            self.log.warning("%s", wording.runs_again_text(payments.maybe_paid, payments.durably))
        is_402 = isinstance(refusal, StabilityPaymentRequiredError)
        poll = self._poll(spending.gate, hook) if is_402 else None
        step = spending.after_refusal(refusal, payments, poll, datetime.now(UTC))
        if isinstance(step, Wait):
            pause = format_number(round(step.pause, 1))
            self.log.info("The function runs again in %s s at the earliest.", pause)
        return self._leave(context, spending, step)

    @contextlib.contextmanager
    def _not_retried_after_paying(self, context: Context, client: StabilityClient) -> Iterator[None]:
        """Let an exception in the block end the task without Airflow's retries, if they would pay again."""
        try:
            yield
        except BaseException as error:  # Airflow's timeout of an execution is not an Exception
            text = None
            if not is_control_flow(error, context):
                text = final_text(
                    what_counts(error), _payments(client), retry_after_paying=self.retry_after_paying
                )
            if text is None:
                raise
            if isinstance(error, AirflowTaskTimeout):
                self.on_kill()  # Airflow would call it, but does not see the timeout
            raise AirflowFailException(text) from error

    def _guard_post_execute(self, context: Context, client: StabilityClient) -> None:
        """Let a failure of ``post_execute`` end the task in the same way."""

        def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
            if inspect.isgeneratorfunction(function):  # Airflow exhausts it

                @functools.wraps(function)
                def call(*args: Any, **kwargs: Any) -> Any:
                    with self._not_retried_after_paying(context, client):
                        return (yield from function(*args, **kwargs))
            else:

                @functools.wraps(function)
                def call(*args: Any, **kwargs: Any) -> Any:
                    with self._not_retried_after_paying(context, client):
                        return function(*args, **kwargs)

            return call

        if _payments(client).unprotected:
            wrap_post_execute(self, guarded)

    def _poll(self, gate: Gate, hook: StabilityHook) -> Decision:
        decision = read_and_decide(gate, hook, self.organization)
        if decision.verdict is Verdict.WAIT:
            # It may never get its credits. If it goes on, they are held when its run begins.
            budget = check_budget(self.budget)
            decision = hold_expected_credits(gate, hook, decision, budget=budget, seconds=0.0)
        if decision.verdict is Verdict.FAIL:
            raise deferral.failure_exception(decision.text, decision.failure)
        return decision

    def _call(self, context: Context, client: StabilityClient) -> Any:
        op_kwargs, self._client, self._context = self.op_kwargs, client, context
        try:
            return execute_as(PythonOperator, self, context)
        finally:
            self.op_kwargs = op_kwargs  # a PythonOperator replaces them with what the function gets
            self._client = self._context = None

    def execute_callable(self) -> Any:
        """Return what the function returns, once it is certain that the task can return it, too."""
        return self._checked(super().execute_callable())

    async def aexecute_callable(self) -> Any:
        """Do the same for an ``async`` function. Only an Airflow that can run these calls this."""
        return self._checked(await super().aexecute_callable())

    def _checked(self, result: Any) -> Any:
        """Return a result that Airflow can push to XCom.

        Airflow would find out after the function, log a picture before, and retry the task.
        """
        if self._client is None or self._context is None:
            return result  # somebody calls this outside of a run
        pushed = result if self.do_xcom_push else None
        reason = why_no_result(
            pushed,
            can_hold=pushed is None or xcom_can_hold(pushed, self._context),
            multiple_outputs=self.multiple_outputs,
            mapped_over=is_mapped_over(self, self._context),
        )
        if reason is not None:
            raise AirflowFailException(wording.final_text(reason, _payments(self._client).unprotected))
        return result

    def determine_kwargs(self, context: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the arguments of the function: those of a PythonOperator, and the client."""
        kwargs: Mapping[str, Any] = super().determine_kwargs(context)
        return {**kwargs, CLIENT: self._client} if takes_client(self.python_callable) else kwargs

    def _leave(self, context: Context, spending: Spending, step: Wait | GiveUp) -> BaseException:
        """Return the exception with which the task leaves the worker, to wait or to fail."""
        if isinstance(step, GiveUp):
            return AirflowFailException(step.text)
        gate, now = spending.gate, datetime.now(UTC)
        if self.reschedule:
            return _rescheduled(step, now)
        from airflow_stability.triggers.stability import StabilityBalanceTrigger

        trigger = StabilityBalanceTrigger(
            stability_conn_id=self.stability_conn_id,
            organization=self.organization,
            minimum_credits=gate.minimum_credits,
            expected_credits=gate.expected_credits,
            budget=self.budget,
            hold=self._event.hold if self._event else None,  # what was held for this run, but did not begin
            is_of_task=True,
            run_credits=spending.credits if spending.replays else None,
            poke_interval=self.poke_interval,
            reservation_seconds=self.reservation_seconds,
            timeout=self.wait_timeout,
            waited=step.state.seconds_waited,
            pause=step.pause,
            memory=asdict(step.state),
            **deferral.handover_arguments(gate, now),
        )
        return deferral.deferred(self, context, trigger, _backstop(step))


def _backstop(step: Wait) -> timedelta:
    return timedelta(seconds=step.time_left) + deferral.BACKSTOP


def _rescheduled(step: Wait, now: datetime) -> BaseException:
    again = now + timedelta(seconds=step.pause)
    return AirflowRescheduleException(again)  # type: ignore[no-untyped-call]  # Airflow's


def _payments(client: StabilityClient) -> Payments:
    return Payments(client.maybe_paid, client.maybe_paid_durably)
