"""Where the workers of the story "paid once" are killed, and what follows. The DAG and the test use it."""

from __future__ import annotations

from dataclasses import dataclass

#: Environment variables with the folder for the outputs, and for what tasks say of themselves.
OUTPUTS = "PAID_ONCE_OUTPUTS"
NOTES = "PAID_ONCE_NOTES"

#: Seconds that a call may be silent. A marker counts for twice as long and ten seconds more.
TIMEOUT = 5
RETRIES = 2
#: Credits that an image costs.
COST = 3.0


@dataclass(frozen=True)
class Boundary:
    """A moment at which a worker dies.

    :param name: of the task, and of its output.
    :param images_paid: how many images are paid for in all.
    :param succeeds: whether the next try finds the output or pays for it; else it reports an unknown outcome.
    :param event: the audit event of Python before which the worker dies in a local folder.
    :param ending: of the file that the event is about.
    :param hangs: whether the simulator keeps the request until the worker dies; with ``bills``, it has
        billed it before.
    """

    name: str
    images_paid: int
    succeeds: bool
    event: str = ""
    ending: str = ""
    hangs: bool = False
    bills: bool = False


BOUNDARIES = [
    Boundary("before_the_marker", 1, True, "open", ".paying.json"),
    Boundary("after_the_marker", 0, False, "socket.connect"),
    Boundary("in_the_post_before_it_is_billed", 0, False, hangs=True),
    Boundary("in_the_post_after_it_was_billed", 1, False, hangs=True, bills=True),
    Boundary("before_the_output_is_written", 1, False, "open", ".png.part"),
    Boundary("before_the_output_is_moved", 1, False, "os.rename", ".png"),
    Boundary("before_the_marker_goes", 1, True, "os.remove", ".paying.json"),
    Boundary("after_the_marker_has_gone", 1, True),
]
