"""StabilityBalanceSensor: holds a DAG back until there is credit. Drives the gate in a worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from airflow_stability.arguments import check_credits, check_organization, is_template
from airflow_stability.compat import (
    AirflowFailException,
    AirflowNotFoundException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    Context,
    PokeReturnValue,
    execute_base_sensor,
)
from airflow_stability.errors import StabilityConfigurationError, StabilityError, StabilityPermanentError
from airflow_stability.gate import Decision, Gate, Verdict
from airflow_stability.hooks.stability import StabilityHook


class _GateFailed(BaseException):
    """The gate's verdict on its way from poke to execute.

    Airflow's loop between them makes a skip, a log line or nothing at all of any Exception, as soft_fail,
    never_fail and silent_fail have it for what happens by accident. This is none.
    """


class StabilityBalanceSensor(BaseSensorOperator):
    """Waits until an organization has more than a number of credits. Its XCom is the balance, a float.

    An outage, a rate limit or a firewall neither opens the gate nor fails it: it waits on, up to
    ``timeout``. A failure that will not pass, such as a refused key, fails the task at once and without
    retries; with ``soft_fail`` too, which skips at a timeout only. ``never_fail`` skips in both cases.
    After a failure that will not pass the connection is read again first, and a changed one tried at
    once; in mode ``poke``, a key that has worked before may be refused for ten minutes.

    :param minimum_credits: the gate opens on more credits than this: a finite number, 0 or more, or a
        string that is one once rendered (templated).
    :param organization: id such as ``org-123456``; None for the connection's organization, else the key's
        default (templated).
    :param stability_conn_id: a connection of type ``stability`` (templated).
    :param kwargs: what every sensor takes: ``poke_interval`` (seconds, default 60), ``timeout`` (seconds),
        ``mode`` (``poke`` or ``reschedule``), ``soft_fail``, ``never_fail`` and so on.
    :raises ValueError: an argument that cannot be what it should; for a template, when the task runs.
    """

    template_fields: Sequence[str] = ("minimum_credits", "organization", "stability_conn_id")
    ui_color = "#d9d2f2"

    def __init__(
        self,
        *,
        minimum_credits: float | str,
        organization: str | None = None,
        stability_conn_id: str = StabilityHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not is_template(minimum_credits):
            check_credits(minimum_credits)
        if not is_template(organization):
            check_organization(organization)
        self.minimum_credits = minimum_credits
        self.organization = organization
        self.stability_conn_id = stability_conn_id
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
        ending: Exception
        self._start()
        try:
            credits = execute_base_sensor(self, context)
        except (AirflowSensorTimeout, AirflowSkipException) as ended:
            if ended.__cause__ is not None:  # a skip by Airflow that is none of a timeout of the sensor's
                raise
            hopeless = self.reschedule and self._gate.seconds_until_poll(datetime.now(UTC)) > 0
            tell = self._gate.hopeless_text if hopeless else self._gate.timeout_text
            text = tell(self.timeout)
            skip = self.soft_fail or self.never_fail
            ending = AirflowSkipException(text) if skip else AirflowSensorTimeout(text)
        except _GateFailed as failed:
            # Airflow calls a connection undefined, too, when a secrets backend is out of order. That may
            # pass, so Airflow's retries count.
            kind = AirflowNotFoundException if self._connection_is_missing else AirflowFailException
            ending = AirflowSkipException(str(failed)) if self.never_fail else kind(str(failed))
        else:
            return credits
        finally:
            self._hook.close()
        raise ending

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """Ask for the balance once, unless the server wants no call yet, and tell whether waiting is over."""
        if self._gate is None:  # called by itself, as tests do
            self._start()
        if self._gate.seconds_until_poll(datetime.now(UTC)) > 0:
            return False
        decision = self._look()
        if decision.verdict is Verdict.FAIL:
            raise _GateFailed(decision.text)
        if decision.speak:
            self.log.info("%s", decision.text)
        if decision.verdict is Verdict.OPEN:
            return PokeReturnValue(is_done=True, xcom_value=decision.credits)
        return False

    def _start(self) -> None:
        self._gate = Gate(self.minimum_credits, organization=self.organization, remembers=not self.reschedule)
        self._hook = StabilityHook(self.stability_conn_id, retry_deadline=0)
        self._connection_is_missing = False

    def _look(self) -> Decision:
        failure: StabilityError
        self._connection_is_missing = False
        try:
            try:
                credits = self._read_balance()
            except StabilityPermanentError:
                key = self._hook.key_id
                if not self._hook.reload():
                    raise
                self.log.info("Connection %r has changed: trying it at once.", self.stability_conn_id)
                if self._hook.key_id != key:
                    self._gate.key_changed()
                credits = self._read_balance()
        except StabilityError as error:
            failure = error
        except AirflowNotFoundException as error:
            self._connection_is_missing = True
            failure = StabilityConfigurationError(
                f"{error}. Make the connection, or correct stability_conn_id; if it is there, Airflow could "
                "not read it, and its log says why."
            )
        else:
            return self._gate.observe_balance(credits, datetime.now(UTC))
        return self._gate.observe_failure(failure, datetime.now(UTC))

    def _read_balance(self) -> float:
        client = self._hook.get_conn()
        self._gate.organization = self.organization or client.organization
        return client.get_balance(self.organization).credits

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
                # It remembers nothing between two pokes, so that after the wait it would poll inside the
                # lock-out. Nothing can be learned before the timeout: it is over now.
                raise AirflowSensorTimeout
            return left
        from airflow_stability.client.retry import with_jitter

        # The gates that were locked out together do not come back together.
        return max(interval, with_jitter(locked_out))
