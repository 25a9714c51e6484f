"""StabilitySpendOperator: runs a function that spends credits, and waits for credit when it is refused.

It is imported from :mod:`airflow_stability.operators.stability`. A balance that was read is old at once: the
server alone knows whether a call can be paid for, so the task that spends asks it by spending. "Too little"
(402) sends it back to waiting, on the same gate as the sensor's; then the function runs again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_stability.arguments import (
    check_credits,
    check_organization,
    check_seconds,
    format_number,
    is_template,
    show,
)
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
)
from airflow_stability.errors import (
    StabilityError,
    StabilityNetworkError,
    StabilityOutcomeUnknownError,
    StabilityPaymentRequiredError,
    StabilityRateLimitError,
    StabilityTimeoutError,
)
from airflow_stability.gate import Decision, Gate, Verdict
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.pace import SETTLE
from airflow_stability.worker import BACKSTOP, failed, known_to, look

if TYPE_CHECKING:
    from airflow_stability.client import StabilityClient

#: Seconds that a task waits after a refusal at the most, however often it was refused: a top-up takes up to
#: 15 minutes to show.
LONGEST_PAUSE = 900.0

#: What is passed to the function under this name.
CLIENT = "client"


@dataclass(frozen=True)
class _Wait:
    """What a task has to remember while it waits, as plain JSON types: the trigger keeps it.

    :param since: when it began to wait first; None before. Times are aware, in ISO format.
    :param waited: seconds that it has waited before.
    :param began: when it began to wait this time.
    :param pause: seconds that it waits at the least, since the function was refused.
    :param refusals: how often the function was refused although the balance was enough.
    :param refusal: what the last refusal said.
    """

    since: str | None = None
    waited: float = 0.0
    began: str | None = None
    pause: float = 0.0
    refusals: int = 0
    refusal: str | None = None


@can_be_rescheduled
class StabilitySpendOperator(PythonOperator):
    """Runs a function that spends credits; goes back to waiting when it is refused for want of credit.

    The function is given a :class:`~airflow_stability.client.StabilityClient` of the connection as its
    argument ``client``, if it has one of that name, and what a PythonOperator's function is given. What it
    returns is the task's XCom.

    The balance is asked for before each run of the function: too little, or no answer, and the task waits
    without running it. It waits, too, when the function raises StabilityPaymentRequiredError (402), or, as
    long as no other call of this run was accepted, StabilityRateLimitError (429), status 503, or a failure
    to reach the API; then **the function runs again, from its beginning**. Waiting takes no worker, and none
    of Airflow's retries. After a refusal it lasts ``poke_interval`` at least, and twice as long after each
    further one, up to 15 minutes.

    What else the function raises is its own: Airflow does with it what it always does. But after
    StabilityOutcomeUnknownError, which says that a call may have been paid for, the task fails without
    Airflow's retries; a function that knows better catches it.

    :param python_callable: the function.
    :param credits: what one run is expected to spend: a number, 0 or more, or a string that is one
        (templated). The task waits for a balance of as many.
    :param wait_timeout: seconds that the task may wait in all, over all refusals, in one try; the time in
        which the function runs does not count. Default: Airflow's ``[sensors] default_timeout``, a week.
    :param max_refusals: the task fails when it was refused this often although the balance was enough, before
        and after. Not counted without ``deferrable``, where nothing is remembered.
    :param organization: whose balance is looked at: an id such as ``org-123456``; None for the connection's
        organization, else the key's default (templated). Image generation bills the key's default.
    :param stability_conn_id: a connection of type ``stability`` (templated).
    :param deferrable: wait in a triggerer, where all that wait for one connection and organization share one
        poll, and are let go in turn. Without, the task is rescheduled: its time then counts from its first
        start, with all tries and the function's runs, and a pause after a refusal is as long as it took till
        then.
    :param poke_interval: seconds between two looks at the balance.
    :param settle: seconds for which a triggerer counts ``credits`` as spent once it has let the task go.
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
        settle: float = SETTLE,
        **kwargs: Any,
    ) -> None:
        super().__init__(python_callable=without_client(python_callable), **kwargs)
        if CLIENT in self.op_kwargs:
            raise ValueError("op_kwargs must not name a client: the function is given the connection's.")
        if not is_template(credits):
            number = check_credits(credits, argument="credits")
            credits = credits if isinstance(credits, str) else number
        if not is_template(organization):
            check_organization(organization)
        if wait_timeout is None:
            wait_timeout = conf.getfloat("sensors", "default_timeout")
        if isinstance(max_refusals, bool) or not isinstance(max_refusals, int) or max_refusals < 1:
            raise ValueError(f"max_refusals must be a whole number, 1 or more; got {show(max_refusals)}.")
        self.credits = credits
        self.wait_timeout = check_seconds(wait_timeout, argument="wait_timeout")
        self.max_refusals = max_refusals
        self.organization = organization
        self.stability_conn_id = stability_conn_id
        self.deferrable = deferrable
        self.poke_interval = check_seconds(poke_interval, argument="poke_interval")
        self.settle = check_seconds(settle, argument="settle")

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
        wait = _Wait()
        if self.reschedule and (started := first_start(context)):
            # Nothing else is remembered; of the time that has passed, all counts as waiting.
            passed = (datetime.now(UTC) - started).total_seconds()
            wait = _Wait(since=started.isoformat(), waited=passed, pause=passed / 2)
        return self._spend(context, wait)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after a deferral; see :meth:`execute`.

        :param event: what :class:`StabilityBalanceTrigger` fired.
        """
        wait = _Wait(**event["memory"])
        match event["verdict"]:
            case "open":
                self.log.info("%s", event["text"])
                passed = datetime.now(UTC) - datetime.fromisoformat(wait.began or "")
                return self._spend(context, replace(wait, waited=wait.waited + passed.total_seconds()))
            case "timeout":
                raise AirflowFailException(self._timeout_text(event["text"], wait))
            case "unusable":
                raise ValueError(event["text"])
            case _:
                raise failed(event["text"], event["failure"])

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after a deferral; see :meth:`execute` for what is raised."""
        if is_deferral_timeout(next_method, next_kwargs):
            raise AirflowFailException(
                f"Timed out in the triggerer (wait_timeout of {format_number(self.wait_timeout)} s). This "
                "task's log from there says what was seen last; if there is none, no triggerer ran it."
            )
        return super().resume_execution(next_method, next_kwargs, context)

    def _spend(self, context: Context, wait: _Wait) -> Any:
        gate = Gate(
            0,
            expected_credits=check_credits(self.credits, argument="credits"),
            organization=self.organization,
            remembers=self.deferrable,
        )
        decision = self._look(gate)
        if decision.verdict is Verdict.WAIT:
            self.log.info("%s", decision.text)
            self._wait(gate, wait, pause=0.0)
        hook = StabilityHook(self.stability_conn_id)
        client = hook.get_conn()
        refusal: StabilityError
        try:
            return self._run(context, client)
        except StabilityOutcomeUnknownError as unknown:
            raise AirflowFailException(f"{unknown} Airflow's retries are not used for it.") from unknown
        except StabilityPaymentRequiredError as error:
            refusal = error
        except StabilityError as error:
            if client.accepted or not _accepted_nothing(error):
                raise
            refusal = error
        finally:
            hook.close()
        if client.accepted:
            self.log.warning(
                "%d calls of this run were accepted before one was refused: all of it will run again.",
                client.accepted,
            )
        return self._wait_after(refusal, gate, wait)

    def _look(self, gate: Gate) -> Decision:
        hook = StabilityHook(self.stability_conn_id, retry_deadline=0)
        try:
            decision = look(gate, hook, self.organization)
        finally:
            hook.close()
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

    def _wait_after(self, refusal: StabilityError, gate: Gate, wait: _Wait) -> NoReturn:
        """Wait since the function was refused, or fail if that has happened too often."""
        self.log.warning("Refused: %s", refusal)
        wait = replace(wait, refusal=str(refusal))
        if isinstance(refusal, StabilityPaymentRequiredError):
            # Has somebody else spent the credit meanwhile, or does another wallet pay?
            enough = self._look(gate).verdict is Verdict.OPEN
            wait = replace(wait, refusals=wait.refusals + enough)
            if wait.refusals >= self.max_refusals:
                balance = gate.last_balance and format_number(gate.last_balance[0])
                raise AirflowFailException(self._refused_text(f"The balance is {balance},", wait))
        elif isinstance(refusal, StabilityRateLimitError):
            gate.observe_failure(refusal, datetime.now(UTC))  # the balance may not be asked for either
        pause = min(max(self.poke_interval, 2 * wait.pause), LONGEST_PAUSE)
        wait = replace(wait, pause=pause)
        pause = max(pause, refusal.retry_after or 0.0)
        self.log.info("The function runs again in %s s at the earliest.", format_number(round(pause, 1)))
        self._wait(gate, wait, pause=pause)

    def _wait(self, gate: Gate, wait: _Wait, *, pause: float) -> NoReturn:
        """Go on waiting, for the pause at least; or fail if the time for that is over."""
        now = datetime.now(UTC)
        left = self.wait_timeout - wait.waited
        locked_out = gate.seconds_until_poll(now)
        if left <= 0:
            raise AirflowFailException(self._timeout_text(gate.timeout_text(self.wait_timeout), wait))
        if self.reschedule:
            if locked_out > left:  # after the wait it would not remember that, and ask
                raise AirflowFailException(self._timeout_text(gate.hopeless_text(self.wait_timeout), wait))
            from airflow_stability.triggers.stability import SEEN_AFTER

            seconds = max(pause, self.poke_interval, locked_out)
            # What is left may be next to nothing, and the scheduler must have seen the worker end before.
            again = now + timedelta(seconds=min(seconds, max(left, SEEN_AFTER)))
            raise AirflowRescheduleException(again)  # type: ignore[no-untyped-call]  # Airflow's

        from airflow_stability.triggers.stability import StabilityBalanceTrigger

        since = wait.since or now.isoformat()
        self.defer(
            trigger=StabilityBalanceTrigger(
                stability_conn_id=self.stability_conn_id,
                organization=self.organization,
                minimum_credits=gate.minimum_credits,
                expected_credits=gate.expected_credits,
                poke_interval=self.poke_interval,
                settle=self.settle,
                timeout=self.wait_timeout,
                deadline=(now + timedelta(seconds=left)).isoformat(),
                since=since,
                join_at=(now + timedelta(seconds=pause)).isoformat() if pause else None,
                memory=asdict(replace(wait, since=since, began=now.isoformat())),
                **known_to(gate),
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=left) + BACKSTOP,
        )

    def _timeout_text(self, text: str, wait: _Wait) -> str:
        if wait.refusals:
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
