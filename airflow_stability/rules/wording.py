"""The texts that tasks log and fail with.

:mod:`airflow_stability.validation` says how numbers are written.
"""

from __future__ import annotations

from datetime import datetime

from airflow_stability.errors import CREDITS_URL
from airflow_stability.validation import format_number, safe_repr

BUY_CREDITS = f"Buy credits at {CREDITS_URL}; a top-up takes 1 to 15 minutes to show."


#: What can be done about a failure after a call that may have been charged.
PAY_AGAIN = (
    "Before you clear the task, see what the function has left. Clearing runs the function again, and its "
    "calls without a folder pay again. With retry_after_paying=True, Airflow's retries do the same."
)

#: Why a task that waits by reschedule does not wait after such a call.
NO_WAIT = (
    "Nor does the task wait: with deferrable=False it does not remember what it has paid for, and would pay "
    "again after each wait."
)


def organization_label(organization: str | None) -> str:
    """Return how a text names an organization; None is the API key's default organization."""
    return f"organization {organization}" if organization else "the key's default organization"


def credits_needed(minimum: float | None, expected: float) -> str:
    """Return how many credits suffice: ``more than 50``, ``30 beyond 50`` or ``30``.

    :param minimum: credits that must be exceeded; None if the expected credits are enough.
    :param expected: credits that are to be spent; 0.0 where that is not known.
    """
    if minimum is None:
        return format_number(expected)
    if not expected:
        return f"more than {format_number(minimum)}"
    return format_number(expected) + (f" beyond {format_number(minimum)}" if minimum else "")


def clock_time(time: datetime) -> str:
    """Return an aware time as log lines show it."""
    return f"{time:%Y-%m-%d %H:%M:%S %Z}"


def balance_text(organization: str | None, credits: float, reserved: float, needs: str) -> str:
    """Return what a balance is, and what is needed.

    :param reserved: credits of it that are reserved for other tasks.
    """
    of_which = f" of which {format_number(reserved)} are reserved for other tasks," if reserved else ""
    return f"{organization_label(organization)} has {format_number(credits)} credits,{of_which} {needs}"


def held_text(held: float, credits: float) -> str:
    """Return why a task waits although the balance is enough: others hold credits of it in the ledger."""
    return (
        f"the ledger holds {format_number(held)} credits of the balance for other tasks, and this one needs "
        f"{format_number(credits)}."
    )


def no_ledger_text(budget: str, conn_id: str) -> str:
    """Return why a task with a budget fails if its connection has no ledger."""
    return (
        f"budget is {safe_repr(budget)}, but the connection {conn_id!r} has no ledger: set "
        "extra.ledger_conn_id, or leave budget out."
    )


def budget_text(budget: str, credits: float) -> str:
    """Return why a task waits for its budget.

    :param budget: the budget, how much of it is used, and when it renews.
    """
    return f"{budget}, and this task needs {format_number(credits)}."


def opens_text(balance: str) -> str:
    """Return the text of a gate that opens.

    :param balance: see :func:`balance_text`.
    """
    return f"The gate opens: {balance}."


def waits_text(reason: str, *, again: bool) -> str:
    """Return the text of a gate that waits.

    :param again: whether the same reason was logged before.
    """
    return f"{'Still waiting' if again else 'Waiting'}: {reason}"


def history_text(failures: int, balance: tuple[float, datetime] | None) -> str:
    """Return how many polls have failed since the last balance.

    :param balance: the last balance and when it was read; None if none was read.
    """
    polls = "1 poll" if failures == 1 else f"{failures} polls"
    if balance is None:
        return f" No balance was read yet; {polls} failed."
    credits, at = balance
    return f" Last balance {format_number(credits)} at {clock_time(at)}; {polls} failed since."


def grace_text(ends: datetime) -> str:
    """Return the text for a refused key that gets time to be replaced."""
    return (
        "the key has worked before and may be about to be replaced; if it is still refused at "
        f"{clock_time(ends)}, the task fails."
    )


def timeout_text(timeout: float, reason: str) -> str:
    """Return the text of a timeout, with its reason.

    :param timeout: seconds that the task was given.
    """
    return f"Timed out after {format_number(timeout)} s: {reason}"


def locked_out_text(until: datetime, timeout: float, reason: str) -> str:
    """Return the text for a key that is locked out until after the timeout.

    :param timeout: seconds that the task was given.
    """
    return (
        f"Gave up, since the server allows no call until {clock_time(until)} and that is after the timeout "
        f"of {format_number(timeout)} s: {reason}"
    )


def airflow_timeout_text(limits: dict[str, float]) -> str:
    """Return the text for a deferral that Airflow ended, not the trigger.

    :param limits: seconds by the name of the task's argument that set this limit.
    """
    shown = " and ".join(f"{name} of {format_number(seconds)} s" for name, seconds in limits.items())
    return (
        f"Timed out in the triggerer ({shown}). This task's log from there says what the gate saw last; if "
        "there is none, no triggerer ran it."
    )


def final_text(reason: str, paid: int) -> str:
    """Return why a task that spends has failed for good.

    :param reason: what went wrong, as a sentence.
    :param paid: number of calls of this run that may have been charged, and would be again.
    """
    reason = reason if reason.endswith((".", "!", "?")) else f"{reason}."
    calls = "1 call of this run" if paid == 1 else f"{paid} calls of this run"
    charged = f" {calls} may have been paid for." if paid else ""
    return f"{reason}{charged} Airflow's retries are not used."


def runs_again_text(maybe_paid: int, durably: int) -> str:
    """Return the log line of a function that runs again after calls that may have been charged.

    :param maybe_paid: how many there are.
    :param durably: how many of them are not charged again.
    """
    again = f" Durable ones, which are not charged again: {durably}." if durably else ""
    return (
        f"Calls that may have been charged before one was refused: {maybe_paid}.{again} "
        "The function runs again."
    )


def job_timeout_text(job_id: str | None, seconds: float) -> str:
    """Return why a task stops waiting for an asynchronous job.

    :param seconds: how long it may wait in all: its ``wait_timeout``, or less by ``execution_timeout``.
    """
    return (
        f"The job {job_id} is not finished, and the task may wait for {format_number(seconds)} s in total. "
        "The job has been paid for, and its result is kept for 24 hours: clear the task to wait for it again."
    )
