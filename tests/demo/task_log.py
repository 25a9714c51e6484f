"""The logs of the demo's tasks, as they grow."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.demo.folders import TASK_LOGS
from tests.demo.scenario import RUN_ID

#: Beginnings of messages that Airflow itself logs under the name of the sensor's or operator's class.
AIRFLOW_MESSAGES = ("Success criteria met. Exiting.", "Done. Returned value was: ")


class TaskLog:
    """The log of the latest try of a task in a run of a DAG, from workers and triggerers."""

    def __init__(self, dag: str, task: str, map_index: int = -1, run_id: str = RUN_ID) -> None:
        folder = TASK_LOGS / f"dag_id={dag}" / f"run_id={run_id}" / f"task_id={task}"
        if map_index >= 0:
            folder /= f"map_index={map_index}"
        self.path = max(folder.glob("attempt=?.log"), default=folder / "attempt=1.log")
        self._offsets: Counter[Path] = Counter()
        #: The last message of the provider package; empty if there is none yet.
        self.last_message = ""

    def provider_messages(self) -> Iterator[str]:
        """Yield new messages of the provider package.

        A worker may log the same message as a triggerer before it. Such a repetition is left out.
        """
        for text in self.new_messages(logger="airflow_stability"):
            if text != self.last_message and not text.startswith(AIRFLOW_MESSAGES):
                self.last_message = text
                yield text

    def new_messages(self, *, logger: str = "", level: str = "") -> Iterator[str]:
        """Yield each new message, with the errors in its record.

        :param logger: text that the logger's name must contain.
        :param level: text that the level must contain.
        """
        files = self.path.parent.glob(f"{self.path.name}*")  # each triggerer has a file of its own
        records = [record for file in files for record in self._new_records(file)]
        for record in sorted(records, key=lambda record: str(record.get("timestamp"))):
            if logger in str(record.get("logger")) and level in str(record.get("level")):
                details = record.get("error_detail") or []
                errors = [f"{detail['exc_type']}: {detail['exc_value']}" for detail in details]
                yield " ".join([record["event"], *errors])

    def _new_records(self, path: Path) -> Iterator[dict[str, Any]]:
        with path.open("rb") as file:
            file.seek(self._offsets[path])
            for line in file:
                if not line.endswith(b"\n"):  # Airflow is still writing this line
                    return
                self._offsets[path] += len(line)
                if line.startswith(b"{"):
                    yield json.loads(line)
