"""What spends in a real Airflow, for the test and for its DAGs: many tasks on one wallet, and a table of
what may become of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from airflow_stability.compat import AIRFLOW_VERSION
from airflow_stability.simulator import Fault

IMAGE_PATH = "/v2beta/stable-image/generate/core"
#: What an image costs.
COST = 3
POKE_INTERVAL = 3.0
#: Of those that wait for long, by reschedule, too: each look there takes the processor time of a task.
LONG_POKE_INTERVAL = 8.0
#: Airflow's own retries that every task here has, and its time between two: who may use them, does so soon.
RETRIES, RETRY_DELAY = 2, 0.5
#: Enough for everything but what is to time out.
TIMEOUT = 900.0
#: The folder for the images of the many: one of its own for each run of the test.
IMAGES = "SPENDING_IMAGES"
#: The folder for when those of the pool began and ended, how many there are, and how many slots the pool has.
POOLED, POOLED_TASKS, POOL_SLOTS = "SPENDING_POOLED", 5, 7

#: The many: how many tasks on one wallet, and for how many of them there is credit at first, after a first
#: top-up, and after another one once a triggerer was killed. The last top-up is for all that are left.
MANY, AT_FIRST, THEN, AFTER_THE_KILL = (200, 73, 20, 40) if AIRFLOW_VERSION >= (3, 3) else (40, 15, 5, 8)
#: Seconds for which a triggerer counts the credits as spent: on two cores it takes as long until they are.
RESERVATION_SECONDS = 20.0 if AIRFLOW_VERSION >= (3, 3) else 10.0

#: By mode, whether that is ``deferrable``.
MODES = {"deferrable": True, "reschedule": False}
RICH, POOR, TOP_UP = 50.25, 2.5, 5.0
#: Seconds for those that are to time out.
DEADLINE = 15.0
#: What the API answers if it does not make what the prompt asks for.
MODERATED = Fault.body(
    '{"id": "e1", "name": "content_moderation", "errors": ["It was flagged, you were not charged."]}',
    status=403,
)
#: Calls that are answered as usual, before one that meets a fault.
NONE, PAID = Fault.slow(0), "1 call of this run may have been paid for. Airflow's retries are not used."


def fail_afterwards(context: Any, result: Any = None) -> None:
    """Fail after the task's execution."""
    raise RuntimeError("The archive is full.")


@dataclass(frozen=True)
class Outcome:
    """How the world behaves towards one task that spends, and what becomes of the task.

    :param name: for the ids of the task, its connection, and its organization and account at the simulator.
    :param state: the task's in the end.
    :param images: how many were paid for.
    :param posts: how many calls that cost were made, at the least and at the most.
    :param tries: how many of Airflow's tries the task took; it may take three.
    :param text: what its log says.
    :param credits: the balance at first.
    :param faults: what these calls meet, one after another; the last one for ever if ``for_ever``.
    :param least_pause: seconds that at least lie between two of them.
    :param meanwhile: what happens while the task waits, before the top-up; none comes without.
    :param function: the name of the one that spends; see the DAG.
    :param wait_timeout: the task's.
    :param poke_interval: the task's.
    :param modes: in which modes there is such a task.
    :param arguments: further arguments of the task.
    :param no_memory: posts and text in mode reschedule, which remembers nothing between two starts.
    """

    name: str
    state: str
    images: int
    posts: tuple[int, int]
    tries: int = 1
    text: str = ""
    credits: float = RICH
    faults: tuple[Fault, ...] = ()
    for_ever: bool = False
    least_pause: float = 0.0
    meanwhile: str = ""
    function: str = "paint"
    wait_timeout: float = TIMEOUT
    poke_interval: float = POKE_INTERVAL
    modes: tuple[str, ...] = tuple(MODES)
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    no_memory: tuple[tuple[int, int], str] | None = None


OUTCOMES = (
    Outcome("enough", "success", 1, (1, 1)),
    Outcome(
        "topped_up",
        "success",
        1,
        (1, 1),
        credits=POOR,
        meanwhile="nothing",
        poke_interval=LONG_POKE_INTERVAL,
    ),
    Outcome(
        "timeout",
        "failed",
        0,
        (0, 0),
        text="Timed out after 15 s: organization timeout-{mode} has 2.5 credits, needs 3.",
        credits=POOR,
        wait_timeout=DEADLINE,
    ),
    # A triggerer is killed, and the scheduler. By reschedule those two do not run just then.
    Outcome(
        "killed",
        "success",
        1,
        (1, 1),
        credits=POOR,
        meanwhile="kill",
        poke_interval=LONG_POKE_INTERVAL,
    ),
    # What is cleared begins anew, with a try of its own.
    Outcome("cleared", "success", 1, (1, 1), credits=POOR, meanwhile="clear", tries=2, poke_interval=15.0),
    Outcome(
        "refused_once",
        "success",
        1,
        (2, 2),
        text="Refused: POST /v2beta/stable-image/generate/core answered 402",
        faults=(Fault.status(402),),
        least_pause=POKE_INTERVAL,
    ),
    Outcome(
        "refused_for_ever",
        "failed",
        0,
        (3, 3),
        text="is another organization billed?",
        faults=(Fault.status(402),),
        for_ever=True,
        least_pause=POKE_INTERVAL,
        wait_timeout=40.0,
        # Each wait is as long as all before, and no shorter than the interval; the last one ends in time:
        # calls at 0, 3, 6, 12, 24 and 40 seconds, or fewer.
        no_memory=((2, 6), "Timed out after 40 s"),
    ),
    Outcome(
        "locked_out",
        "success",
        1,
        (2, 2),
        text="429 rate_limit_exceeded",
        faults=(Fault.status(429, retry_after=6),),
        least_pause=6.0,
    ),
    Outcome(
        "unavailable",
        "success",
        1,
        (2, 2),
        text="Refused: POST /v2beta/stable-image/generate/core answered 503",
        faults=(Fault.status(503),),
        least_pause=POKE_INTERVAL,
    ),
    # All of it runs again, and the first image is paid for again: a task should make one.
    Outcome(
        "refused_after_an_image",
        "success",
        3,
        (4, 4),
        text="Calls that may have been charged before one was refused: 1. The function runs again.",
        credits=4.0,
        meanwhile="nothing",
        function="paint_two",
        modes=("deferrable",),
    ),
    # This mode would not remember the image, and would pay for it each time.
    Outcome(
        "refused_after_two_of_five",
        "failed",
        2,
        (3, 3),
        text="2 calls of this run may have been paid for. Airflow's retries are not used.",
        faults=(NONE, NONE, Fault.status(402)) * 4,
        function="paint_five",
        wait_timeout=40.0,
        modes=("reschedule",),
    ),
    # What was paid for is not paid for again, neither by the operator nor by Airflow.
    Outcome(
        "locked_out_after_an_image",
        "failed",
        1,
        (2, 2),
        text=PAID,
        faults=(NONE, Fault.status(429)),
        function="paint_two",
    ),
    Outcome(
        "own_failure",
        "failed",
        1,
        (1, 1),
        text=f"RuntimeError: The frame is broken. {PAID}",
        function="paint_and_fail",
    ),
    Outcome(
        "own_failure_accepted",
        "failed",
        3,
        (3, 3),
        tries=3,
        text="The frame is broken.",
        function="paint_and_fail",
        modes=("deferrable",),
        arguments={"retry_after_paying": True},
    ),
    *(
        Outcome(
            f"later_{status}",
            "failed",
            1,
            (2, 2),
            text=PAID,
            faults=(NONE, Fault.status(status)),
            function="paint_two",
            modes=("deferrable",),
        )
        for status in (404, 500)
    ),
    Outcome(
        "later_500_in_a_group",
        "failed",
        1,
        (2, 2),
        text=PAID,
        faults=(NONE, Fault.status(500)),
        function="paint_in_a_group",
        modes=("deferrable",),
    ),
    *(
        Outcome(
            f"returns_{kind}",
            "failed",
            1,
            (1, 1),
            text=f"returned an object of type {kind}. Save the picture, and return its path. {PAID}",
            function=f"return_{kind}",
            modes=("deferrable",),
        )
        for kind in ("bytes", "Response")
    ),
    Outcome(
        "returns_no_dict",
        "failed",
        1,
        (1, 1),
        text="multiple_outputs needs a dict",
        function="return_path",
        modes=("deferrable",),
        arguments={"multiple_outputs": True},
    ),
    Outcome("generator", "success", 1, (1, 1), function="paint_and_yield", modes=("deferrable",)),
    *(
        Outcome(
            f"post_execute_{form}",
            "failed",
            1,
            (1, 1),
            text=f"RuntimeError: The archive is full. {PAID}",
            modes=("deferrable",),
            arguments=arguments,
        )
        for form, arguments in (("argument", {"post_execute": fail_afterwards}), ("method", {}))
    ),
    Outcome(
        "execution_timeout",
        "failed",
        1,
        (1, 1),
        text=PAID,
        faults=(Fault.hang(after_work=True),),
        modes=("deferrable",),
        arguments={"execution_timeout": timedelta(seconds=3)},
    ),
    Outcome(
        "moderated",
        "failed",
        0,
        (1, 1),
        text="you were not charged",
        faults=(MODERATED,),
        modes=("deferrable",),
    ),
    Outcome(
        "gateway",
        "failed",
        0,
        (1, 1),
        text="A gateway has answered, not the API.",
        faults=(Fault.html(502),),
        modes=("deferrable",),
    ),
    # It may have been paid for, and was: neither the operator nor Airflow tries again.
    Outcome(
        "outcome_unknown",
        "failed",
        1,
        (1, 1),
        text="Airflow's retries are not used.",
        faults=(Fault.reset(after_work=True),),
    ),
)


@dataclass(frozen=True)
class Case:
    """A row of the table in one mode."""

    outcome: Outcome
    mode: str

    @property
    def task_id(self) -> str:
        """Its task, its connection, and its organization and account have this name."""
        return f"{self.outcome.name}-{self.mode}"


CASES = tuple(Case(outcome, mode) for outcome in OUTCOMES for mode in outcome.modes)
#: Two mapped tasks that wait by reschedule on one wallet.
MAPPED = "mapped-reschedule"
