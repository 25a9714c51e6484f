"""The first runs of the two example DAGs: what the demo prints, and does to the simulator meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

from airflow_stability.simulator import Fault, StabilitySimulator
from tests.demo.airflow_setup import DemoAirflow
from tests.demo.errors import DemoError
from tests.demo.folders import IMAGES, display_path
from tests.demo.ledger import DemoLedger
from tests.demo.rest_api import TaskStates
from tests.demo.scenario import (
    ACCOUNT_DAG,
    BUDGET,
    CREDITS_PER_IMAGE,
    FIRST_TOP_UP,
    IMAGE_PATH,
    PARALLEL_IMAGES,
    PIPELINE_DAG,
    PROMPTS,
    SECOND_TOP_UP,
    SPENT_ELSEWHERE,
    image_statuses,
)
from tests.demo.task_log import TaskLog
from tests.demo.terminal import Terminal


class ImagePipelineStory:
    """The first run of the image pipeline.

    The story has steps. Each step is a method that acts when its moment has come, and returns whether it has
    acted. The next step is tried only after that. To tell more, add a method to the list of steps.
    """

    def __init__(
        self, terminal: Terminal, airflow: DemoAirflow, simulator: StabilitySimulator, ledger: DemoLedger
    ) -> None:
        self._terminal = terminal
        self._say = terminal.say
        self._airflow = airflow
        self._simulator = simulator
        self._ledger = ledger
        self._gate = TaskLog(PIPELINE_DAG, "wait_for_credit")
        self._images = [TaskLog(PIPELINE_DAG, "generate_image", index) for index in range(len(PROMPTS))]
        self._report = TaskLog(PIPELINE_DAG, "report")
        self._finished_images: set[int] = set()
        self._released_requests = 0
        self._steps = [
            self._top_up_for_the_gate,
            self._release_image_requests,
            self._spend_elsewhere,
            self._top_up_for_the_images,
            self._let_the_day_end,
        ]

    def start(self) -> None:
        """Start the run."""
        # The simulator makes no image before two tasks have requested one. So both tasks have seen enough
        # credits for themselves before the first pays, however slow the machine is.
        self._hold_image_requests()
        self._airflow.api.start_run(PIPELINE_DAG, {"prompts": list(PROMPTS), "output_folder": str(IMAGES)})
        self._say("pipeline", f"run started: {len(PROMPTS)} images at {CREDITS_PER_IMAGE} credits each")

    def follow(self) -> None:
        """Print what happens as it happens, and take the steps, until the run is over.

        :raises DemoError: the run has failed, or it has succeeded before all steps were taken.
        """
        self._airflow.wait_for("Running the pipeline", self._look)
        if self._steps:
            raise DemoError("the pipeline succeeded, but not every task that should wait was seen waiting")
        self._say("pipeline", "the run succeeded")

    def _look(self) -> bool:
        """Print what is new, and try the next step. Return whether the run is over and all of it printed."""
        succeeded = self._airflow.run_succeeded(PIPELINE_DAG)
        states = self._airflow.api.task_states(PIPELINE_DAG)
        self._ledger.tell_midnight()
        self._print_news(states)
        if self._steps and self._steps[0](states):
            del self._steps[0]
        return succeeded and len(self._finished_images) == len(PROMPTS)

    # What is printed

    def _print_news(self, states: TaskStates) -> None:
        for text in self._gate.provider_messages():
            self._say("gate", text)
        for index, log in enumerate(self._images):
            for text in log.provider_messages():
                self._say(f"image {index + 1}", text)
            if index not in self._finished_images and states.get(("generate_image", index)) == "success":
                self._print_image(index)
                self._finished_images.add(index)
        for text in self._report.new_messages(logger="task.stdout"):
            if "credits left" in text:  # the other lines are the paths of the images
                self._say("report", text.rstrip(":"))

    def _print_image(self, index: int) -> None:
        path = Path(self._airflow.return_value(PIPELINE_DAG, "generate_image", index))
        size = path.stat().st_size
        self._say(f"image {index + 1}", f"{display_path(path)} ({size} bytes): {PROMPTS[index]}")

    # The steps

    def _top_up_for_the_gate(self, states: TaskStates) -> bool:
        """Top up, too little for all images, when the gate waits in the triggerer and has said so."""
        if states.get(("wait_for_credit", -1)) != "deferred" or not self._gate.last_message:
            return False
        self._say("gate", "The gate is deferred to the triggerer: it holds no worker while it waits.")
        self._top_up(FIRST_TOP_UP)
        return True

    def _release_image_requests(self, _states: TaskStates) -> bool:
        """Let the simulator respond to image requests when as many as possible are pending at once."""
        if not self._requests_are_pending():
            return False
        self._simulator.clear_faults()
        self._hold_image_requests()
        return True

    def _spend_elsewhere(self, states: TaskStates) -> bool:
        """Let somebody else spend before the simulator responds, so that it refuses one of the requests."""
        if not self._requests_are_pending():
            return False
        credits = self._simulator.credits() - SPENT_ELSEWHERE
        self._simulator.set_credits(credits)
        somebody = f"somebody spends {SPENT_ELSEWHERE:g} credits on the web site"
        self._say("simulator", f"{somebody}; the balance is {credits:g} credits now")
        self._simulator.clear_faults()
        self._hold_image_requests()
        return True

    def _top_up_for_the_images(self, states: TaskStates) -> bool:
        """Top up when all images that are not made yet wait in the triggerer and have said so."""
        waiting = self._waiting_images(states)
        if not waiting or not all(log.last_message for log in waiting):
            return False
        self._say("image", f"{len(waiting)} tasks are deferred: they hold no worker while they wait.")
        self._top_up(SECOND_TOP_UP)
        self._simulator.clear_faults()
        return True

    def _let_the_day_end(self, states: TaskStates) -> bool:
        """Let the budget's day end when the last image waits for the budget. Meanwhile, run another DAG."""
        waiting = self._waiting_images(states)
        if not waiting or not all(f"budget {BUDGET}:" in log.last_message for log in waiting):
            return False
        self._say("image", "There is credit, but the budget is used up. So this task is deferred, too.")
        self._ledger.let_the_day_end()
        show_account(self._terminal, self._airflow)
        return True

    def _requests_are_pending(self) -> bool:
        """Return whether as many image requests as possible are pending; if so, print it."""
        requests = len(image_statuses(self._simulator))
        if requests - self._released_requests != PARALLEL_IMAGES:
            return False
        self._released_requests = requests
        credits = self._simulator.credits()
        self._say(
            "simulator",
            f"received {PARALLEL_IMAGES} image requests at once; the balance is {credits:g} credits",
        )
        return True

    def _waiting_images(self, states: TaskStates) -> list[TaskLog]:
        """Return the logs of the waiting images; an empty list unless all images not made yet wait."""
        waiting = [
            log
            for index, log in enumerate(self._images)
            if states.get(("generate_image", index)) == "deferred"
        ]
        return waiting if len(waiting) + len(self._finished_images) == len(PROMPTS) else []

    def _hold_image_requests(self) -> None:
        self._simulator.inject(Fault.hang(), path=IMAGE_PATH)

    def _top_up(self, credits: float) -> None:
        self._simulator.top_up(credits)
        balance = self._simulator.credits()
        self._say("simulator", f"topped up with {credits:g} credits; the balance is {balance:g} credits now")


def show_account(terminal: Terminal, airflow: DemoAirflow) -> None:
    """Run the DAG that reads the account, and print its XComs."""
    airflow.api.start_run(ACCOUNT_DAG, {})
    airflow.wait_for("Reading the account", lambda: airflow.run_succeeded(ACCOUNT_DAG))
    for source, task in (("account", "read_account"), ("balance", "read_balance"), ("", "summarize")):
        value = airflow.return_value(ACCOUNT_DAG, task)
        terminal.say(source, value if isinstance(value, str) else f"XCom: {json.dumps(value)}")
