"""StabilitySpendOperator: runs a function that spends credits, and waits for credit when it is refused.

It is imported from :mod:`airflow_stability.operators.stability`. A balance that was read is old at once: the
server alone knows whether a call can be paid for, so the task that spends asks it by spending. "Too little"
(402) sends it back to waiting, on the same gate as the sensor's; then the function runs again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_stability.compat import (
    AirflowFailException,
    AirflowRescheduleException,
    Context,
    PythonOperator,
    can_be_rescheduled,
    conf,
    execute_as,
    first_start,
    is_deferral_timeout,
    is_left_over,
    try_of,
)
from airflow_stability.errors import (
    StabilityError,
    StabilityNetworkError,
    StabilityOutcomeUnknownError,
    StabilityPaymentRequiredError,
    StabilityRateLimitError,
    StabilityTimeoutError,
)
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.rules.gate import Decision, Gate, Verdict, suffices
from airflow_stability.rules.pacing import RESERVATION_SECONDS
from airflow_stability.validation import (
    check_credits,
    check_credits_as_given,
    check_organization,
    check_seconds,
    format_number,
    is_template,
    safe_repr,
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

if TYPE_CHECKING:
    from airflow_stability.client import StabilityClient

#: Seconds that a task waits after a refusal at the most, however often it was refused: a top-up takes up to
#: 15 minutes to show.
LONGEST_PAUSE = 900.0

#: What is passed to the function under this name.
CLIENT = "client"


@dataclass(frozen=True)
class _Wait:
    """What a task has to remember while it waits, as plain JSON types: one of the trigger's arguments.

    :param since: when it began to wait first; None before. Times are aware, in ISO format.
    :param waited: seconds that it has waited before.
    :param began: when it began to wait this time.
    :param pause: seconds that its last pause lasted at the least; 0.0 before the first.
    :param refusals: how often the function was refused although the balance was enough.
    :param refusal: what the last refusal said.
    :param try_number: the try that waits.
    :param join_at: before this the function must not run again; None for at once.
    """

    since: str | None = None
    waited: float = 0.0
    began: str | None = None
    pause: float = 0.0
    refusals: int = 0
    refusal: str | None = None
    try_number: int = 0
    join_at: str | None = None

    @classmethod
    def recalled(cls, memory: Mapping[str, Any]) -> _Wait:
        """Return what was remembered, less what only a later release knows."""
        return cls(**{each.name: memory[each.name] for each in fields(cls) if each.name in memory})

    def over(self, now: datetime) -> _Wait:
        """Return what is remembered when this time of waiting has ended."""
        began = datetime.fromisoformat(self.began or "")
        return replace(self, waited=self.waited + (now - began).total_seconds())


@can_be_rescheduled
class StabilitySpendOperator(PythonOperator):
    """Runs a function that spends credits; goes back to waiting when it is refused for want of credit.

    The function is given a :class:`~airflow_stability.client.StabilityClient` of the connection as its
    argument ``client``, if it has one of that name, and what a PythonOperator's function is given. What it
    returns is the task's XCom.

    The balance is asked for before each run of the function: too little, or no answer, and the task waits
    without running it. It waits, too, when the function raises StabilityPaymentRequiredError (402), or, as
    long as no call that it made with the client may have been paid for, StabilityRateLimitError (429), status
    503, or a failure to reach the API; then **the function runs again, from its beginning**. Waiting takes no
    worker, and none of Airflow's retries. After a refusal it lasts ``poke_interval`` at least, and twice as
    long after each further one, up to 15 minutes.

    What else the function raises is its own: Airflow does with it what it always does. But after
    StabilityOutcomeUnknownError, which says that a call may have been paid for, the task fails without
    Airflow's retries; a function that knows better catches it.

    :param python_callable: the function.
    :param credits: what one run is expected to spend: a number, 0 or more, or a string that is one
        (templated). The task waits for a balance of as many.
    :param wait_timeout: seconds that the task may wait in all, over all refusals, in one try; the time in
        which the function runs does not count. Default: Airflow's ``[sensors] default_timeout``, a week.
    :param max_refusals: the task fails when it was refused this often although the balance was enough, before
        and after, or after another call of the same run may have been paid for. Not counted without
        ``deferrable``, where nothing is remembered.
    :param organization: whose balance is looked at: an id such as ``org-123456``; None for the connection's
        organization, else the key's default (templated). Image generation bills the key's default.
    :param stability_conn_id: a connection of type ``stability`` (templated).
    :param deferrable: wait in a triggerer, where all that wait for one connection and organization share one
        poll, and are let go in turn. Without, the task is rescheduled: its time then counts from its first
        reschedule, with the function's runs, and a pause after a refusal is as long as it took till then.
    :param poke_interval: seconds between two looks at the balance.
    :param reservation_seconds: seconds for which a triggerer counts ``credits`` as spent once it has let the
        task go.
    :param kwargs: what a PythonOperator takes: ``op_args``, ``op_kwargs``, ``templates_dict`` and so on.
    :raises ValueError: an argument that cannot be what it should; for a template, when the task runs.
    """

    template_fields: Sequence[str] = (
        *PythonOperator.template_fields,
        "credits",
        "organization",
        "stability_conn_id",
    )
    ui_color = "#d9d2f2"

    _client: StabilityClient

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        credits: float | str,
        wait_timeout: float | None = None,
        max_refusals: int = 3,
        organization: str | None = None,
        stability_conn_id: str = StabilityHook.default_conn_name,
        deferrable: bool = True,
        poke_interval: float = 60,
        reservation_seconds: float = RESERVATION_SECONDS,
        **kwargs: Any,
    ) -> None:
        super().__init__(python_callable=without_client(python_callable), **kwargs)
        if inspect.iscoroutinefunction(python_callable) and not hasattr(PythonOperator, "is_async"):
            raise ValueError(
                "python_callable must not be async: this Airflow's PythonOperator runs no coroutine."
            )
        if isinstance(self.op_kwargs, Mapping) and CLIENT in self.op_kwargs:
            raise ValueError("op_kwargs must not name a client: the function is given the connection's.")
        if not is_template(credits):
            credits = check_credits_as_given(credits, argument="credits")
        if not is_template(organization):
            check_organization(organization)
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

    @property
    def reschedule(self) -> bool:
        """Whether the task waits by reschedule."""
        return not self.deferrable

    def execute(self, context: Context) -> Any:
        """Run the function once there is credit, and return what it returns.

        :raises ValueError: a rendered argument that cannot be what it should.
        :raises AirflowFailException: a failure that will not pass, ``wait_timeout`` or ``max_refusals``, or
            an outcome that is unknown.
        :raises AirflowNotFoundException: there is no such connection; Airflow's retries count.
        """
        if event := self.__dict__.pop("_event", None):  # see the decorator
            return StabilitySpendOperator.execute_complete(self, context, event)
        wait = _Wait()
        if self.reschedule and (started := first_start(context)):
            # Nothing else is remembered; of the time that has passed, all counts as waiting.
            passed = (datetime.now(UTC) - started).total_seconds()
            wait = _Wait(waited=passed, pause=passed / 2)
        return self._spend(context, wait)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after a deferral; see :meth:`execute`.

        :param event: what :class:`StabilityBalanceTrigger` fired.
        """
        wait, now = _Wait.recalled(event["memory"]), datetime.now(UTC)
        if is_left_over(context, wait.try_number):
            return self._spend(context, _Wait())
        match event["verdict"]:
            case "open":
                self.log.info("%s", event["text"])
                return self._spend(context, wait.over(now), balance=(event["credits"], now))
            case "timeout":
                raise AirflowFailException(self._timeout_text(event["text"], event["credits"], wait))
            case "unusable":
                raise ValueError(event["text"])
            case "fail":
                raise failed(event["text"], event["failure"])
            case _:
                self.log.warning("%s", starting_over(event))
                return self._spend(context, wait.over(now), again=True)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after a deferral; see :meth:`execute` for what is raised."""
        if is_deferral_timeout(next_method, next_kwargs):
            raise AirflowFailException(timed_out_by_airflow(self, "wait_timeout", self.wait_timeout))
        return super().resume_execution(next_method, next_kwargs, context)

    def _spend(
        self,
        context: Context,
        wait: _Wait,
        *,
        balance: tuple[float, datetime] | None = None,
        again: bool = False,
    ) -> Any:
        """Look at the balance, then run the function or wait.

        :param balance: the credits that let a waiting task go, and when.
        :param again: whether the task starts over, and may have come back before its time.
        """
        wait = replace(wait, try_number=try_of(context))
        gate = Gate(
            0,
            expected_credits=check_credits(self.credits, argument="credits"),
            organization=self.organization,
            stateful=self.deferrable,
        )
        gate.restore(balance, None)
        least = 0.0
        if again:
            from airflow_stability.triggers.stability import START_OVER_AFTER

            least = START_OVER_AFTER
            now = datetime.now(UTC)
            if wait.join_at and (join_at := datetime.fromisoformat(wait.join_at)) > now:
                self._wait(gate, wait, pause=max((join_at - now).total_seconds(), least))
        hook = StabilityHook(self.stability_conn_id, retry_deadline=0)
        try:
            decision = self._look(gate, hook)
            if decision.verdict is Verdict.WAIT:
                self.log.info("%s", decision.text)
                show_wait(context, decision.text)
                if gate.last_failure and self.deferrable:
                    # A triggerer may get an answer where this worker gets none, and send it back at once.
                    wait = self._paused(wait)
                    self._wait(gate, wait, pause=max(wait.pause, least))
                self._wait(gate, wait, pause=least)
            hook.close()
            hook.retry_deadline = None
            return self._try(context, hook, gate, wait)
        finally:
            hook.close()

    def _try(self, context: Context, hook: StabilityHook, gate: Gate, wait: _Wait) -> Any:
        """Run the function; wait if it is refused."""
        client = hook.get_conn()
        refusal: StabilityError
        try:
            return self._run(context, client)
        except StabilityOutcomeUnknownError as unknown:
            raise AirflowFailException(f"{unknown} Airflow's retries are not used for it.") from unknown
        except StabilityPaymentRequiredError as error:
            refusal = error
        except StabilityError as error:
            if client.maybe_paid or not _accepted_nothing(error):
                raise
            refusal = error
        self.log.warning("Refused: %s", refusal)
        show_wait(context, f"Refused: {refusal}")
        if client.maybe_paid:
            self.log.warning(
                "%d calls of this run may have been paid for before one was refused: all of it runs again.",
                client.maybe_paid,
            )
        hook.close()
        hook.retry_deadline = 0
        return self._wait_after(refusal, gate, hook, wait, costs_more=client.maybe_paid > 0)

    def _look(self, gate: Gate, hook: StabilityHook) -> Decision:
        decision = look(gate, hook, self.organization)
        if decision.verdict is Verdict.FAIL:
            raise failed(decision.text, decision.failure.name if decision.failure else None)
        return decision

    def _run(self, context: Context, client: StabilityClient) -> Any:
        op_kwargs, self._client = self.op_kwargs, client
        try:
            return execute_as(PythonOperator, self, context)
        finally:
            self.op_kwargs = op_kwargs  # a PythonOperator has put what the function got there
            del self._client

    def determine_kwargs(self, context: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the function is called with: a PythonOperator's, and the client."""
        kwargs: Mapping[str, Any] = super().determine_kwargs(context)
        return {**kwargs, CLIENT: self._client} if _takes_client(self.python_callable) else kwargs

    def _wait_after(
        self, refusal: StabilityError, gate: Gate, hook: StabilityHook, wait: _Wait, *, costs_more: bool
    ) -> NoReturn:
        """Wait since the function was refused, or fail if that has happened too often.

        :param costs_more: whether the run may have spent something before it was refused.
        """
        wait = self._paused(replace(wait, refusal=str(refusal)))
        if isinstance(refusal, StabilityPaymentRequiredError):
            before = gate.last_credits or 0.0
            enough = self._look(gate, hook).verdict is Verdict.OPEN
            # Has somebody else spent the credit meanwhile, or bought some? Or does another wallet pay?
            counts = costs_more or (enough and (gate.last_credits or 0.0) <= before)
            wait = replace(wait, refusals=wait.refusals + counts)
            if self.deferrable and wait.refusals >= self.max_refusals:
                begin = f"The balance is {format_number(gate.last_credits or 0.0)},"
                raise AirflowFailException(self._refused_text(begin, wait))
        elif refusal.retry_after is not None:
            gate.observe_failure(refusal, datetime.now(UTC))  # the balance is not to be asked for either
        pause = max(wait.pause, refusal.retry_after or 0.0)
        self.log.info("The function runs again in %s s at the earliest.", format_number(round(pause, 1)))
        self._wait(gate, wait, pause=pause)

    def _paused(self, wait: _Wait) -> _Wait:
        """Return what is remembered of a wait that lasts for a while at the least, longer each time."""
        return replace(wait, pause=max(self.poke_interval, min(2 * wait.pause, LONGEST_PAUSE)))

    def _wait(self, gate: Gate, wait: _Wait, *, pause: float) -> NoReturn:
        """Go on waiting, for the pause at least; or fail if the time for that is over."""
        now = datetime.now(UTC)
        left = self.wait_timeout - wait.waited
        locked_out = gate.seconds_until_poll(now)
        if left <= 0:
            text = self._timeout_text(gate.timeout_text(self.wait_timeout), gate.last_credits, wait)
            raise AirflowFailException(text)
        if self.reschedule:
            if locked_out > left:  # after the wait it would not remember that, and ask
                text = self._timeout_text(gate.hopeless_text(self.wait_timeout), gate.last_credits, wait)
                raise AirflowFailException(text)
            from airflow_stability.triggers.stability import MIN_DEFERRAL_SECONDS

            seconds = max(pause, self.poke_interval, locked_out)
            # What is left may be next to nothing, and the scheduler must have seen the worker end before.
            again = now + timedelta(seconds=min(seconds, max(left, MIN_DEFERRAL_SECONDS)))
            raise AirflowRescheduleException(again)  # type: ignore[no-untyped-call]  # Airflow's

        from airflow_stability.triggers.stability import StabilityBalanceTrigger

        since = wait.since or now.isoformat()
        join_at = (now + timedelta(seconds=pause)).isoformat() if pause else None
        self.defer(
            trigger=StabilityBalanceTrigger(
                stability_conn_id=self.stability_conn_id,
                organization=self.organization,
                minimum_credits=gate.minimum_credits,
                expected_credits=gate.expected_credits,
                poke_interval=self.poke_interval,
                reservation_seconds=self.reservation_seconds,
                timeout=self.wait_timeout,
                deadline=(now + timedelta(seconds=left)).isoformat(),
                since=since,
                join_at=join_at,
                memory=asdict(replace(wait, since=since, began=now.isoformat(), join_at=join_at)),
                **known_to(gate),
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=left) + BACKSTOP,
        )

    def _timeout_text(self, text: str, credits: float | None, wait: _Wait) -> str:
        if wait.refusals and credits is not None and suffices(credits, 0, check_credits(self.credits)):
            return self._refused_text(f"{text} The balance was enough,", wait)
        return f"{text} The last refusal: {wait.refusal}" if wait.refusal else text

    def _refused_text(self, begin: str, wait: _Wait) -> str:
        return (
            f"{begin} the call is still refused: is another organization billed? Image generation bills the "
            "key's default organization, whichever is looked at. Or does a run cost more than the "
            f"{format_number(check_credits(self.credits))} credits that this task expects? The last refusal: "
            f"{wait.refusal}"
        )


def _accepted_nothing(error: StabilityError) -> bool:
    """Tell whether an error says that its call was not accepted, and that another one may be."""
    kinds = (StabilityRateLimitError, StabilityNetworkError, StabilityTimeoutError)
    return isinstance(error, kinds) or error.status == 503


def without_client(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function as a DAG calls it: without the argument that the operator fills in.

    Airflow checks the arguments that a DAG gives against the signature, before there is a client.
    """
    if not callable(function) or _takes_client(function):
        return function
    signature = inspect.signature(function)
    if CLIENT not in signature.parameters:
        return function
    without = [each for each in signature.parameters.values() if each.name != CLIENT]
    seen = signature.replace(parameters=without)

    def bound(args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        given = {CLIENT: kwargs.pop(CLIENT), **seen.bind(*args, **kwargs).arguments}
        in_order = {name: given[name] for name in signature.parameters if name in given}
        return inspect.BoundArguments(signature, in_order)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            arguments = bound(args, kwargs)
            return await function(*arguments.args, **arguments.kwargs)
    else:

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            arguments = bound(args, kwargs)
            return function(*arguments.args, **arguments.kwargs)

    call.__signature__ = seen  # type: ignore[attr-defined]
    call.takes_client = True  # type: ignore[attr-defined]
    return call


def _takes_client(function: Callable[..., Any]) -> bool:
    return bool(getattr(function, "takes_client", False))
