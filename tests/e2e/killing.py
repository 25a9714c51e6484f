"""Where the workers of the story "paid once" are killed, and what follows. The DAG and the test use it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

#: Environment variables: the folders of the outputs, as JSON by store, and the folder for what tasks say of
#: themselves.
OUTPUTS = "PAID_ONCE_OUTPUTS"
NOTES = "PAID_ONCE_NOTES"
SIMULATOR_PORT = "PAID_ONCE_SIMULATOR_PORT"
#: The connection to object storage.
S3_CONNECTION = "object_storage"

#: Seconds that a call may be silent. A marker counts for twice as long and ten seconds more.
TIMEOUT = 5
RETRIES = 2
#: Credits that an image costs.
COST = 3.0


#: The task that waits for an asynchronous job, whose triggerer is killed: its name, the credits that the job
#: costs, and the seconds that it takes.
JOB = "job"
JOB_CREDITS = 60.0
JOB_SECONDS = 25.0


@dataclass(frozen=True)
class Boundary:
    """A moment at which a worker dies.

    :param moment: in words, for the names of the task and of its output.
    :param images_paid: how many images are paid for in all.
    :param succeeds: whether the next try finds the output or pays for it; else it reports an unknown outcome.
    :param local: the audit event of Python before which the worker dies in a local folder, and the ending of
        the file that it is about; None for one that no file is about.
    :param remote: the request to object storage at which it dies, the ending of its key, and whether before
        or after the store has executed it; None for one that is no request.
    :param hangs: whether the simulator keeps the request until the worker dies.
    :param bills: whether it has billed the request before.
    """

    moment: str
    images_paid: int
    succeeds: bool
    local: tuple[str, str] | None = None
    remote: tuple[str, str, Literal["before", "after"]] | None = None
    hangs: bool = False
    bills: bool = False


BOUNDARIES = [
    Boundary("before_the_marker", 1, True, ("open", ".paying.json"), ("PUT", ".png.paying.json", "before")),
    Boundary("after_the_marker", 0, False, ("socket.connect", ""), ("PUT", ".png.paying.json", "after")),
    Boundary("in_the_post_before_it_is_billed", 0, False, hangs=True),
    Boundary("in_the_post_after_it_was_billed", 1, False, hangs=True, bills=True),
    Boundary("before_the_output_is_written", 1, False, ("open", ".png.part"), ("PUT", ".png", "before")),
    Boundary("before_the_output_is_moved", 1, False, local=("os.rename", ".png")),
    Boundary("after_the_output_was_written", 1, True, remote=("PUT", ".png", "after")),
    Boundary(
        "before_the_marker_goes",
        1,
        True,
        local=("os.remove", ".paying.json"),
        remote=("DELETE", ".png.paying.json", "before"),
    ),
    Boundary("after_the_marker_has_gone", 1, True, remote=("DELETE", ".png.paying.json", "after")),
    Boundary("after_the_call", 1, True),
]


@dataclass(frozen=True)
class Killed:
    """A task that is killed.

    :param boundary: when.
    :param store: ``local`` for a folder, ``s3`` for object storage.
    """

    boundary: Boundary
    store: str

    @property
    def name(self) -> str:
        """The name of the task, of its connection and of its output."""
        return f"{self.store}_{self.boundary.moment}"


def tasks(stores: Iterable[str]) -> list[Killed]:
    """Return the tasks: of each store those whose boundary it has."""
    return [
        Killed(boundary, store)
        for store in stores
        for boundary in BOUNDARIES
        if boundary.hangs or boundary.moment == "after_the_call" or has_moment(boundary, store)
    ]


def has_moment(boundary: Boundary, store: str) -> bool:
    """Tell whether something of a store is about to happen at a boundary."""
    return (boundary.local if store == "local" else boundary.remote) is not None
