"""What a sensor and an operator do alike on a worker: look at a gate, hand it over to a trigger, fail."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_stability import metrics
from airflow_stability.compat import (
    AirflowFailException,
    AirflowNotFoundException,
    BaseOperator,
    Context,
    task_state_store,
)
from airflow_stability.errors import StabilityError, StabilityPermanentError
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.rules.gate import Decision, Gate
from airflow_stability.validation import format_number

#: Airflow's own timeout of a deferral comes this much after the trigger's, in case no triggerer runs at all.
BACKSTOP = timedelta(minutes=5)

#: Under this name the page of a task shows why it waits, or has waited last.
LAST_WAIT = "last_wait"

_log = logging.getLogger(__name__)


def look(gate: Gate, hook: StabilityHook, organization: str | None) -> Decision:
    """Ask for the balance once, and tell the gate.

    After a failure that will not pass, the connection is read again, and a changed one tried at once.

    :param gate: it learns whose balance it is, too.
    :param hook: with a ``retry_deadline`` of 0; close it when done.
    :param organization: whose balance; None for the connection's organization, else the key's default.
    """
    failure: StabilityError
    try:
        try:
            credits = _read_balance(gate, hook, organization)
        except StabilityPermanentError:
            key = hook.key_id
            if not hook.reload():
                raise
            hook.log.info("Connection %r has changed: trying it at once.", hook.stability_conn_id)
            if hook.key_id != key:
                gate.key_changed()
            credits = _read_balance(gate, hook, organization)
    except StabilityError as error:
        failure = error
    except AirflowNotFoundException as error:
        from airflow_stability.hooks.connection import missing_connection

        failure = missing_connection(error)
    else:
        metrics.polled(hook.stability_conn_id, gate.organization, credits)
        return gate.observe_balance(credits, datetime.now(UTC))
    metrics.polled(hook.stability_conn_id, gate.organization, failure)
    return gate.observe_failure(failure, datetime.now(UTC))


def _read_balance(gate: Gate, hook: StabilityHook, organization: str | None) -> float:
    client = hook.get_conn()
    gate.organization = organization or client.organization
    with metrics.timed_call(hook.stability_conn_id, gate.organization):
        return client.get_balance(organization).credits


def show_wait(context: Context, text: str) -> None:
    """Show on the task's page why it waits, where Airflow has a place for that.

    It stays there when the wait is over, and says of when it is.
    """
    if (store := task_state_store(context)) is None:
        return
    try:
        store.set(LAST_WAIT, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S %Z}: {text}")
    except Exception as error:  # whatever Airflow's API raises: no task fails for it
        _log.debug("%s was not shown on the task's page: %s.", LAST_WAIT, type(error).__name__)


def known_to(gate: Gate) -> dict[str, Any]:
    """Return what a gate has learned till now, as arguments of the trigger that goes on with it."""
    balance, failure, not_before = gate.last_balance, gate.last_failure, gate.not_before
    return {
        "last_organization": gate.organization,
        "last_credits": gate.last_credits,
        "last_credits_at": balance and balance[1].isoformat(),
        "last_failure": str(failure) if failure else None,
        "not_before": not_before.isoformat() if not_before else None,
        "deferred_at": datetime.now(UTC).isoformat(),
    }


def starting_over(event: Mapping[str, Any]) -> str:
    """Say why a task starts over with an event that is no verdict here.

    Its triggerer has an earlier release of this package than the one under which it deferred, or a later one,
    which knows more verdicts. A task that is handed back must neither fail nor be lost for that.
    """
    return (
        "Starting over, since this task waited under two releases of airflow-provider-stability (verdict "
        f"{event['verdict']!r}). {event.get('text', '')}"
    )


def timed_out_by_airflow(task: BaseOperator, limit: str, seconds: float) -> str:
    """Say what is known when Airflow, and not the trigger, ended a deferral.

    :param limit: the name of the task's argument that bounds it.
    :param seconds: its value.
    """
    limits = [f"{limit} of {format_number(seconds)} s"]
    if task.execution_timeout:
        limits.append(f"execution_timeout of {format_number(task.execution_timeout.total_seconds())} s")
    return (
        f"Timed out in the triggerer ({' and '.join(limits)}). This task's log from there says what the "
        "gate saw last; if there is none, no triggerer ran it."
    )


def failed(text: str, failure: str | None) -> Exception:
    """Return what to raise for a gate that has failed.

    :param failure: the name of the error that failed it.
    """
    from airflow_stability.hooks.connection import CONNECTION_NOT_FOUND

    # Airflow calls a connection undefined, too, when a secrets backend is out of order. That may pass, so
    # Airflow's retries count.
    return AirflowNotFoundException(text) if failure == CONNECTION_NOT_FOUND else AirflowFailException(text)
