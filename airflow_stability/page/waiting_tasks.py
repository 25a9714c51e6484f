"""Tasks that wait for credits, and which of them a section of the page shows. This module uses no Airflow."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

#: How many tasks a section shows at most.
MAX_SHOWN_TASKS = 50


@dataclass(frozen=True)
class Wallet:
    """The connection and organization whose credits a task uses.

    :param organization: None for the connection's own.
    """

    conn_id: str
    organization: str | None


@dataclass(frozen=True)
class WaitingTask:
    """A task that waits for credits, or one that may spend them and runs.

    :param wallet: None if it is unknown until the task runs.
    :param needs: how many credits it waits for, as text.
    :param since: when the wait began.
    :param until: when it gives up; None if that is unknown.
    :param where: where it waits, as text.
    :param budget: the budget that it names; None for the connection's, if it expects to spend credits.
    :param spends: whether it expects to spend credits, so that it waits for a budget, too.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    wallet: Wallet | None
    needs: str
    since: datetime | None
    until: datetime | None
    where: str
    budget: str | None = None
    spends: bool = False


def task_list(tasks: Sequence[WaitingTask], dag_ids: Collection[str]) -> dict[str, Any]:
    """Return the tasks to show, how many more the user may read, and how many the user may not read.

    :param dag_ids: the DAGs that the user may read.
    """
    readable = [task for task in tasks if task.dag_id in dag_ids]
    shown = readable[:MAX_SHOWN_TASKS]
    return {"shown": shown, "more": len(readable) - len(shown), "hidden": len(tasks) - len(readable)}
