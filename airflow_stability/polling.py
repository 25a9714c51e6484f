"""One poll of the balance by a task on a worker, and the entry on the task's page that says why it waits."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from airflow_stability import errors, metrics
from airflow_stability.compat import Context, task_state_store
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.rules.gate import Decision, Gate, Verdict
from airflow_stability.rules.wording import clock_time, no_ledger_text

#: The name under which a task's page shows why the task waits, or why it waited last.
LAST_WAIT = "last_wait"

_log = logging.getLogger(__name__)


def read_and_decide(gate: Gate, hook: StabilityHook, organization: str | None) -> Decision:
    """Request the balance once, and pass it to the gate.

    After a permanent failure, the connection is read again. If it has changed, it is tried at once.

    :param gate: it also learns whose balance was polled.
    :param hook: with a ``retry_deadline`` of 0; the caller closes it.
    :param organization: whose balance; None for the connection's organization, else the key's default.
    """
    try:
        try:
            credits = _read_balance(gate, hook, organization)
        except errors.StabilityConnectionNotFoundError:
            raise  # it was read just now
        except errors.StabilityPermanentError:
            key = hook.key_id
            if not hook.reload():
                raise
            hook.log.info("Connection %r has changed: trying it at once.", hook.stability_conn_id)
            if hook.key_id != key:
                gate.key_changed()
            credits = _read_balance(gate, hook, organization)
    except errors.StabilityError as error:
        metrics.polled(hook.stability_conn_id, gate.organization, error)
        return gate.observe_failure(error, datetime.now(UTC))
    metrics.polled(hook.stability_conn_id, gate.organization, credits)
    return gate.observe_balance(credits, datetime.now(UTC))


def _read_balance(gate: Gate, hook: StabilityHook, organization: str | None) -> float:
    client = hook.get_conn()
    gate.organization = organization or client.organization
    with metrics.timed_call(hook.stability_conn_id, gate.organization):
        return client.get_balance(organization).credits


def hold_expected_credits(
    gate: Gate, hook: StabilityHook, decision: Decision, *, budget: str | None, seconds: float
) -> Decision:
    """Hold the credits that the run behind a gate will spend, if there is a ledger.

    While the gate waits for credit, the ledger holds nothing. But it reports at once if it can never hold the
    credits. Then the gate fails.

    :param decision: the gate's decision on the balance that was read.
    :param budget: the gate's own; None for the connection's.
    :param seconds: how long the credits are held.
    :returns: what follows: the gate opens, waits or fails.
    """
    if decision.verdict is Verdict.FAIL or gate.last_failure is not None:
        return decision
    recorder, now = hook.get_conn().recorder, datetime.now(UTC)
    if recorder is None:
        if budget is None:
            return decision
        text = no_ledger_text(budget, hook.stability_conn_id)
        return gate.observe_hold_failure(errors.StabilityConfigurationError(text), now)
    if not gate.expected_credits:
        return decision
    from airflow_stability.client.spend_recorder import WantedCredits  # a DAG file needs none of it

    # If the balance is too low, the ledger checks the budget first, and then refuses the hold.
    is_open = decision.verdict is Verdict.OPEN
    wanted = WantedCredits(gate.expected_credits, budget, gate.organization, gate.last_reading(now))
    try:
        obstacle = recorder.reserve(wanted, minimum=gate.minimum_credits, seconds=seconds)
    except errors.StabilityPermanentError as error:
        return gate.observe_hold_failure(error, now)
    except errors.StabilityError as error:
        return gate.observe_hold_failure(error, now) if is_open else decision
    return gate.observe_obstacle(obstacle, now) if is_open and obstacle is not None else decision


def show_wait(context: Context, text: str) -> None:
    """Show on the task's page why it waits, if this Airflow has a place for that.

    The entry outlives the wait, so it carries a timestamp.
    """
    if (store := task_state_store(context)) is None:
        return
    try:
        store.set(LAST_WAIT, f"{clock_time(datetime.now(UTC))}: {text}")
    except Exception as error:  # whatever Airflow's API raises; it must not fail a task
        _log.debug("%s was not shown on the task's page: %s.", LAST_WAIT, type(error).__name__)
