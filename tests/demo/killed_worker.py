"""The second run of the image pipeline, in which the demo kills a worker between payment and picture."""

from __future__ import annotations

import contextlib

import psutil

from airflow_stability.simulator import Fault, StabilitySimulator
from tests.demo.airflow_setup import DemoAirflow
from tests.demo.errors import DemoError
from tests.demo.folders import IMAGES
from tests.demo.scenario import (
    IMAGE_PATH,
    KILLED_RUN_ID,
    LOST_PROMPT,
    PIPELINE_DAG,
    image_statuses,
)
from tests.demo.task_log import TaskLog
from tests.demo.terminal import Terminal

#: How the error begins in the task's log.
UNKNOWN_OUTCOME = "StabilityOutcomeUnknownError: "


class KilledWorkerStory:
    """A run with one image, which is paid for and lost. Airflow's retry must not pay again."""

    def __init__(self, terminal: Terminal, airflow: DemoAirflow, simulator: StabilitySimulator) -> None:
        self._say = terminal.say
        self._airflow = airflow
        self._simulator = simulator
        self._images_before = simulator.images_made
        self._second_try = False

    def tell(self) -> None:
        """Start the run, kill its worker, and follow the retry to its end.

        :raises DemoError: the run went otherwise.
        """
        self._start()
        self._airflow.wait_for("Waiting for the payment", self._is_paid)
        credits = self._simulator.credits()
        self._say("simulator", f"billed the image, but holds it back; the balance is {credits:g} credits now")
        self._kill(self._airflow.wait_for("Finding the task's process", self._find_process))
        requests = len(image_statuses(self._simulator))
        self._airflow.wait_for("Waiting for Airflow's retry", self._has_failed)
        self._simulator.clear_faults()  # not before: the simulator would respond to the dead process
        self._say("image", self._airflow.wait_for("Reading the task's log", self._unknown_outcome))
        if len(image_statuses(self._simulator)) != requests:
            raise DemoError("the retry has requested the image again")
        self._say("pipeline", "the second run failed and paid nothing more. A person must decide now.")

    def _start(self) -> None:
        self._simulator.inject(Fault.hang(after_work=True), path=IMAGE_PATH)
        conf: dict[str, object] = {"prompts": [LOST_PROMPT], "output_folder": str(IMAGES)}
        self._airflow.api.start_run(PIPELINE_DAG, conf, KILLED_RUN_ID)
        self._say("pipeline", "second run started: 1 image, whose worker will be killed after the payment")

    def _is_paid(self) -> bool:
        if self._state() == "failed":
            raise DemoError("the second run failed before its image was paid for")
        return self._simulator.images_made > self._images_before

    def _find_process(self) -> psutil.Process | None:
        """Return the process of the task: the one below the scheduler that is connected to the simulator."""
        for process in self._airflow.real.process("scheduler").children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # other processes end meanwhile
                for connection in process.net_connections("tcp"):
                    if connection.raddr and connection.raddr.port == self._simulator.port:
                        return process
        return None

    def _kill(self, process: psutil.Process) -> None:
        process.kill()
        self._say("demo", f"killed the task's process {process.pid} (SIGKILL) between payment and picture")

    def _has_failed(self) -> bool:
        """Return whether the run has failed, and print when the second try begins."""
        state = self._state()
        if state == "success":
            raise DemoError("the second run succeeded, although its image was lost")
        if not self._second_try and self._log().path.name == "attempt=2.log":
            self._second_try = True
            self._say("airflow", "tries the task again: it may be retried once")
        return state == "failed"

    def _unknown_outcome(self) -> str:
        """Return the error's text: who was about to pay, and what to do. Empty if it is not in the log."""
        for text in self._log().new_messages(level="error"):
            if UNKNOWN_OUTCOME in text:
                return text.rpartition(UNKNOWN_OUTCOME)[2]
        return ""

    def _state(self) -> str | None:
        return self._airflow.api.run_state(PIPELINE_DAG, KILLED_RUN_ID)

    def _log(self) -> TaskLog:
        return TaskLog(PIPELINE_DAG, "generate_image", 0, KILLED_RUN_ID)
