"""How spends ended that the ledger has not heard of, because it was out of reach, or because a worker died.

A task that cannot write how a spend ended leaves that in an XCom of its own. What next spends with this
ledger looks for such an XCom, and for the output of a durable call, and writes down what it finds. Each spend
has an XCom of its own, so that a later one of the same task does not replace it. Airflow keeps the XComs of a
task while it is deferred, and deletes them when the task starts anew.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any

from airflow_stability.client.recording import POSTED, UNKNOWN, VOID
from airflow_stability.client.storage import Folder
from airflow_stability.compat import get_current_context, xcom_of
from airflow_stability.daemon_threads import start_in_thread
from airflow_stability.hooks.storage import AirflowStorage
from airflow_stability.ledger.ledger import NOTHING_LEFT, Ledger, Unreported

_log = logging.getLogger(__name__)

#: The key of the XCom for a spend.
XCOM_KEY = "stability_spend_{}"

#: How many spends of each kind a task takes from the ledger, and how many of them it looks into.
#: It takes them by lot. So many tasks at once share the work, and one spend does not stop that of others.
TAKEN, LOOKED_INTO = 500, 10

#: Seconds after which a task looks into no more of them, and for which it waits for a storage.
SECONDS = 3.0

#: The most characters of a reason in an XCom.
REASON_LENGTH = 200


def leave(key: str, outcome: str, reason: str | None) -> bool:
    """Leave how a spend ended in an XCom of the task that is under way; return whether this was possible."""
    value = {"state": outcome, "reason": reason and reason[:REASON_LENGTH]}
    try:
        task_instance: Any = get_current_context()["ti"]
        task_instance.xcom_push(key=XCOM_KEY.format(key), value=value)
    except Exception as error:  # whatever Airflow raises, and outside of a task
        _log.debug("The spend %s cannot be left in an XCom: %s", key, type(error).__name__)
        return False
    return True


def left_by_task(spend: Unreported) -> tuple[str, str | None] | None:
    """Return how a spend ended, and why, as its task has left it; None if it has left nothing.

    :raises Exception: whatever Airflow raises if it cannot be read.
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
    """Tell whether there is an output of this address.

    :raises Exception: whatever a storage raises, or TimeoutError if it does not answer soon.
    """
    parent, _, file = output.rpartition("/")
    name, _, ending = file.rpartition(".")
    folder = Folder(parent or "/", conn_id=None, name=name, ending=ending, storage=AirflowStorage())
    # Opening it asks Airflow for a connection, which must not happen in a thread. A storage may hang.
    return start_in_thread(folder.find).result(timeout=SECONDS) is not None


def write_what_was_left(
    ledger: Ledger,
    left: Callable[[Unreported], tuple[str, str | None] | None] = left_by_task,
    has_output: Callable[[str], bool] = is_there,
) -> None:
    """Write down how unreported spends ended, as far as it can be found out. It raises no Exception.

    If this ends anywhere in the middle, a spend that was not written yet keeps counting, and the next task
    looks for it again.

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
    except Exception as error:  # the ledger went away, for example: what follows will say it
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
        _log.debug("What its task has left of the spend %s cannot be read: %s", key, type(error).__name__)
        return
    finding = NOTHING_LEFT
    if word is not None:
        outcome, reason = word
        if ledger.end(key, outcome, reason):
            _log.info("The spend %s is %s: its task had left word, and the ledger was away.", key, outcome)
        finding = reason or finding
    elif output is not None:
        try:
            output_is_there = has_output(output)
        except Exception as error:
            _log.warning("The output of the spend %s cannot be looked for: %s", key, type(error).__name__)
            output_is_there, finding = False, "Its output could not be looked for."
        if output_is_there:
            ledger.output_found(output)
            finding = "Its output is there, and another call may have made it."
    # It does not keep each task that follows busy.
    ledger.note(key, finding)
