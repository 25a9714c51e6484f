"""The demo from its first step to its last."""

from __future__ import annotations

import secrets
import signal
import time

from sqlalchemy.exc import SQLAlchemyError

from airflow_stability.simulator import StabilitySimulator
from tests.demo.airflow_setup import USER, DemoAirflow
from tests.demo.checks import (
    check_api_key,
    check_credits,
    check_images,
    check_killed_run,
    check_ledger,
    check_tasks,
)
from tests.demo.errors import DemoError
from tests.demo.folders import IMAGES, LOGS, display_path, prepare_folder
from tests.demo.killed_worker import KilledWorkerStory
from tests.demo.ledger import DemoLedger
from tests.demo.scenario import INITIAL_CREDITS, PIPELINE_DAG, RUN_ID
from tests.demo.signals import StopRequested, StopSignals
from tests.demo.story import ImagePipelineStory
from tests.demo.terminal import Terminal
from tests.real_airflow import AirflowError


class Demo:
    """The steps of the demo, and their outcome.

    :param keep: leave Airflow's web pages up at the end, until a signal comes.
    """

    def __init__(
        self, terminal: Terminal, signals: StopSignals, simulator: StabilitySimulator, *, keep: bool
    ) -> None:
        self._started = time.monotonic()
        self._say = terminal.say
        self._terminal = terminal
        self._simulator = simulator
        self._keep = keep
        self._finished = False
        self._password = secrets.token_urlsafe(12)
        prepare_folder(USER, self._password)
        self.airflow = DemoAirflow(terminal, signals, self._password, self._started)

    def run(self) -> int:
        """Run the demo, and print why if it does not get to its end.

        :returns: the exit status.
        """
        try:
            self._run_steps()
            if self._keep:
                self._leave_airflow_up()
        except StopRequested as stop:
            self._say("stopped", f"by {stop} after {self._elapsed()}")
            # Ctrl-C is the normal end of a demo that leaves Airflow up.
            return 0 if self._finished and stop.number == signal.SIGINT else 128 + stop.number
        except (DemoError, AirflowError, OSError, SQLAlchemyError) as error:
            self._say("failed", f"The demo failed: {error}")
            return 1
        return 0

    def _run_steps(self) -> None:
        simulator, airflow = self._simulator, self.airflow
        balance = f"the balance is {simulator.credits():g} credits"
        self._say("simulator", f"a simulated Stability API runs at {simulator.url}; {balance}")
        airflow.start()
        airflow.create_connections(simulator.url, simulator.api_key)
        ledger = DemoLedger(self._terminal, airflow)
        story = ImagePipelineStory(self._terminal, airflow, simulator, ledger)
        story.start()
        if self._keep:
            self._say_address(f"/dags/{PIPELINE_DAG}/runs/{RUN_ID}")
        ledger.set_up()  # while Airflow starts the run; its gate is closed
        story.follow()
        KilledWorkerStory(self._terminal, airflow, simulator).tell()
        ledger.show_spends()
        if not self._keep:
            airflow.stop()
        self._say("check", check_tasks(airflow.real))
        self._say("check", check_images())
        self._say("check", check_killed_run(airflow.real))
        self._say("check", check_credits(simulator))
        self._say("check", check_ledger(simulator, ledger.midnight))
        self._say("check", check_api_key(airflow.real, simulator.api_key))
        where = f"images: {display_path(IMAGES)}, logs: {display_path(LOGS)}"
        self._say("done", f"The demo succeeded in {self._elapsed()}; {where}")
        self._finished = True

    def _leave_airflow_up(self) -> None:
        """Wait for a signal.

        :raises StopRequested: a signal has come.
        """
        self._say_address("/", "(stays up until Ctrl-C)")
        while True:
            self.airflow.pause()

    def _say_address(self, path: str, note: str = "") -> None:
        address = f"{self.airflow.api.url}{path}  user: {USER}  password: {self._password}  {note}"
        self._say("airflow", address.rstrip())

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._started:.0f} s"


def run_demo(terminal: Terminal, signals: StopSignals, *, keep: bool) -> int:
    """Run the demo, and stop in any case what it has started.

    :returns: the exit status.
    :raises DemoError: a process could not be stopped.
    :raises OSError: the demo's folder could not be prepared.
    """
    with StabilitySimulator(credits=INITIAL_CREDITS) as simulator:
        demo = Demo(terminal, signals, simulator, keep=keep)
        try:
            return demo.run()
        finally:
            demo.airflow.stop()
