"""Outcomes of spends that the ledger does not know, because it was out of reach, or because a worker died.

A task that cannot write the outcome of a spend to the ledger leaves it in an XCom. The next task that spends
with this ledger looks for this XCom, and for the output of a durable call. It writes what it finds to the
ledger. Each spend has an XCom of its own, so that a later spend of the same task does not replace it. Airflow
keeps the XComs of a task while it is deferred, and deletes them when the task starts again.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any

from airflow_stability.client.durable_folder import Folder
from airflow_stability.client.spend_recorder import POSTED, UNKNOWN, VOID
from airflow_stability.compat import get_current_context, xcom_of
from airflow_stability.daemon_threads import start_in_thread
from airflow_stability.hooks.durable_folder import AirflowStorage
from airflow_stability.ledger.ledger import NOTHING_LEFT, Ledger, Unreported

_log = logging.getLogger(__name__)

#: The key of the XCom for a spend.
XCOM_KEY = "stability_spend_{}"

#: The most spends of each kind that a task reads from the ledger, and the most that it looks into. It picks
#: these at random. So tasks that run at the same time share the work, and one spend that cannot be looked
#: into does not block the others.
TAKEN, LOOKED_INTO = 500, 10

#: Seconds after which a task looks into no further spend. It waits as long for one answer of a storage.
SECONDS = 3.0

#: The most characters of a reason in an XCom.
REASON_LENGTH = 200


def leave(key: str, outcome: str, reason: str | None) -> bool:
    """Leave the outcome of a spend in an XCom of the running task; return whether that was possible."""
    value = {"state": outcome, "reason": reason and reason[:REASON_LENGTH]}
    try:
        task_instance: Any = get_current_context()["ti"]
        task_instance.xcom_push(key=XCOM_KEY.format(key), value=value)
    except Exception as error:  # whatever Airflow raises, and outside of a task
        _log.debug("The outcome of the spend %s cannot be left in an XCom: %s", key, type(error).__name__)
        return False
    return True


def left_by_task(spend: Unreported) -> tuple[str, str | None] | None:
    """Return the outcome of a spend, and the reason, that its task has left; None if it has left none.

    :raises Exception: whatever Airflow raises if the XCom cannot be read.
    """
    if spend.dag_id is None or spend.run_id is None or spend.task_id is None:
        return None
    map_index = -1 if spend.map_index is None else spend.map_index
    names = {"dag_id": spend.dag_id, "run_id": spend.run_id, "task_id": spend.task_id}
    found = xcom_of(XCOM_KEY.format(spend.spend_key), map_index=map_index, **names)
    if not isinstance(found, dict) or found.get("state") not in (POSTED, VOID, UNKNOWN):
        return None
    reason = found.get("reason")
    return found["state"], str(reason)[:REASON_LENGTH] if reason else None


def is_there(output: str) -> bool:
    """Tell whether there is an output at this address.

    :raises Exception: whatever a storage raises, or TimeoutError if it does not answer in time.
    """
    parent, _, file = output.rpartition("/")
    name, _, ending = file.rpartition(".")
    folder = Folder(parent or "/", conn_id=None, name=name, ending=ending, storage=AirflowStorage())
    # Opening the folder asks Airflow for a connection, which must not happen in a thread. The search runs in
    # a thread, because a storage may hang.
    return start_in_thread(folder.find).result(timeout=SECONDS) is not None


def write_what_was_left(
    ledger: Ledger,
    left: Callable[[Unreported], tuple[str, str | None] | None] = left_by_task,
    has_output: Callable[[str], bool] = is_there,
) -> None:
    """Write the outcomes of unreported spends to the ledger, if they can be found. It raises no Exception.

    If this is interrupted, the spends that were not written yet keep counting. Later tasks look into them.

    :param left: returns what the task of a spend has left; see :func:`left_by_task`.
    :param has_output: tells whether there is an output of an address; see :func:`is_there`.
    """
    until = time.monotonic() + SECONDS
    try:
        found = ledger.unreported(TAKEN)
        for spend in random.sample(found, min(len(found), LOOKED_INTO)):
            if time.monotonic() >= until:
                return
            _look_into(ledger, spend, left, has_output)
    except Exception as error:  # if the ledger went away, the next call to it says so
        _log.debug("The ledger's unreported spends could not be looked into: %s", error)


def _look_into(
    ledger: Ledger,
    spend: Unreported,
    left: Callable[[Unreported], tuple[str, str | None] | None],
    has_output: Callable[[str], bool],
) -> None:
    key, output = spend.spend_key, spend.output
    try:
        word = left(spend)
    except Exception as error:  # it may be readable later
        _log.debug("What the task of the spend %s has left cannot be read: %s", key, type(error).__name__)
        return
    finding = NOTHING_LEFT
    if word is not None:
        outcome, reason = word
        if ledger.end(key, outcome, reason):
            _log.info("The spend %s is %s: its task left that in an XCom.", key, outcome)
        finding = reason or finding
    elif output is not None:
        try:
            output_is_there = has_output(output)
        except Exception as error:
            _log.warning("The output of the spend %s cannot be looked for: %s", key, type(error).__name__)
            output_is_there, finding = False, "Its output could not be looked for."
        if output_is_there:
            ledger.output_found(output)
            finding = "Its output is there, but another call may have made it."
    # With this note, later tasks do not look into the spend again.
    ledger.note(key, finding)
