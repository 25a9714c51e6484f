"""The table of what a waiting sensor does: outcome x mode x flags. One set of semantics for every mode.

Each outcome is a way that the API (or the connection) behaves towards one gate, which has an API key and a
connection of its own. Where a mode cannot do the same as the others, the outcome has an entry for it, with
the reason.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from airflow_stability.simulator import Fault, StabilitySimulator

MODES = ("poke", "reschedule", "deferrable")
FLAGS = ("none", "soft_fail", "never_fail", "silent_fail")

#: What a gate may come to, and the state that the task then has under each flag.
OPENS = {"none": "success", "soft_fail": "success", "never_fail": "success", "silent_fail": "success"}
TIMES_OUT = {"none": "failed", "soft_fail": "skipped", "never_fail": "skipped", "silent_fail": "failed"}
FAILS = {"none": "failed", "soft_fail": "failed", "never_fail": "skipped", "silent_fail": "failed"}

MINIMUM = 8
POKE_INTERVAL = 0.2
TIMEOUT = 0.6
#: For those who are locked out for a second and must still come to an end that is not the timeout.
LONG_TIMEOUT = 300.0


@dataclass(frozen=True)
class Outcome:
    """How the world behaves towards one gate, and what the gate has to come to.

    :param name: for the task's id.
    :param ends: the state under each flag.
    :param text: what the failure's text says.
    :param credits: the balance.
    :param faults: what the next calls meet, one after another; the last one for ever if ``for_ever``.
    :param calls: how many calls the API may have seen: a number where it is certain.
    :param tries: how many tries the task makes that is given one retry, if it fails.
    :param least_interval: seconds that at least lie between two calls.
    :param timeout: the sensor's.
    :param connection: whether there is one.
    :param then: done to the world as soon as the first call was answered.
    :param no_memory: what mode reschedule, which remembers nothing between two pokes, comes to instead.
    """

    name: str
    ends: dict[str, str]
    text: str = ""
    credits: float = 50.25
    faults: tuple[Fault, ...] = ()
    for_ever: bool = False
    calls: int | None = None
    tries: int = 1
    least_interval: float = 0.0
    timeout: float = TIMEOUT
    then: str = ""
    no_memory: tuple[dict[str, str], str] | None = None
    connection: bool = True


OUTCOMES = (
    Outcome("enough", OPENS, calls=1),
    Outcome("just_the_minimum", TIMES_OUT, "has 8 credits, needs more than 8", credits=8.0),
    Outcome("topped_up", OPENS, credits=3.2, then="top_up", timeout=LONG_TIMEOUT),
    Outcome(
        "outage",
        TIMES_OUT,
        "is unknown, needs more than 8.",
        faults=(Fault.status(503),),
        for_ever=True,
    ),
    Outcome("outage_passes", OPENS, faults=(Fault.status(503),) * 3, calls=4, timeout=LONG_TIMEOUT),
    Outcome("refused_connections_pass", OPENS, faults=(Fault.reset(),) * 3, calls=4, timeout=LONG_TIMEOUT),
    Outcome("firewall_passes", OPENS, faults=(Fault.html(403),) * 2, calls=3, timeout=LONG_TIMEOUT),
    Outcome(
        "nonsense_passes",
        OPENS,
        faults=(Fault.html(200), Fault.body(b'{"credits": true}'), Fault.truncated(), Fault.empty()),
        calls=5,
        timeout=LONG_TIMEOUT,
    ),
    Outcome(
        "lock_out_passes",
        OPENS,
        faults=(Fault.status(429, retry_after=1),),
        calls=2,
        least_interval=1.0,
        timeout=LONG_TIMEOUT,
    ),
    Outcome(
        "locked_out_for_longer_than_the_timeout",
        TIMES_OUT,
        "429 rate_limit_exceeded",
        faults=(Fault.status(429),),
        calls=1,
    ),
    Outcome("refused_key", FAILS, "401 unauthorized", faults=(Fault.status(401),), for_ever=True, calls=1),
    Outcome("forbidden", FAILS, "403 permission_denied", faults=(Fault.status(403),), for_ever=True, calls=1),
    Outcome("not_found", FAILS, "404 not_found", faults=(Fault.status(404),), for_ever=True, calls=1),
    Outcome(
        "redirected",
        FAILS,
        "answered 302 to http://127.0.0.1:1/",
        faults=(Fault.body(b"", status=302, headers={"location": "http://127.0.0.1:1/"}),),
        for_ever=True,
        calls=1,
    ),
    Outcome(
        "to_be_paid_for", FAILS, "402 payment_required", faults=(Fault.status(402),), for_ever=True, calls=1
    ),
    Outcome(
        "temporary_passes",
        OPENS,
        faults=(Fault.status(400, temporary=True), Fault.status(408), Fault.status(425)),
        calls=4,
        timeout=LONG_TIMEOUT,
    ),
    # Airflow says the same when it could not ask a secrets backend: its retries count.
    Outcome("missing_connection", FAILS, "isn't defined", connection=False, calls=0, tries=2),
    Outcome(
        "key_revoked_while_waiting",
        TIMES_OUT,
        "The last failure: GET /v1/user/balance for organization key_revoked",
        credits=3.2,
        timeout=6.0,  # a second look, on a busy machine too
        then="revoke",
        # That the key has worked before is not known to the next poke, so there is no grace.
        no_memory=(FAILS, "401 unauthorized"),
    ),
    Outcome("key_rotated_while_waiting", OPENS, credits=3.2, then="rotate", timeout=LONG_TIMEOUT),
)


@dataclass(frozen=True)
class Case:
    """One cell of the table."""

    outcome: Outcome
    mode: str
    flag: str

    @property
    def task_id(self) -> str:
        """Its task, its connection and its user in the simulator have this name."""
        return f"{self.outcome.name}-{self.mode}-{self.flag}"

    @property
    def expected(self) -> tuple[str, str]:
        """The state that the task has to end in, and what its failure has to say."""
        ends, text = self.outcome.ends, self.outcome.text
        if self.mode == "reschedule" and self.outcome.no_memory:
            ends, text = self.outcome.no_memory
        return ends[self.flag], text


def cases(mode: str) -> list[Case]:
    """Return all cells of one mode."""
    return [Case(outcome, mode, flag) for outcome in OUTCOMES for flag in FLAGS]


#: Task id -> the text of the failure: the DAG's callbacks fill it while the run goes on in this process.
FAILURES: dict[str, str] = {}


class World:
    """Gives each case an organization, a key, faults and a connection, and changes them while it waits."""

    def __init__(
        self, simulator: StabilitySimulator, keep_connection: Callable[[str, str], None], mode: str
    ) -> None:
        self._simulator = simulator
        self._cases = cases(mode)
        self._keep_connection = keep_connection
        self.every_key: list[str] = []
        self._keys = {case.task_id: self._set_up(case) for case in self._cases}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._change)

    def __enter__(self) -> World:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        for case in self._cases:
            os.environ.pop(f"AIRFLOW_CONN_{case.task_id.upper()}", None)

    def credits(self, case: Case) -> float:
        """Return the balance that a case has now."""
        return self._simulator.credits(case.task_id)

    def calls(self, case: Case) -> list[float]:
        """Return when the calls of a case came, in seconds of the monotonic clock."""
        return [
            record.monotonic for record in self._simulator.requests if record.organization == case.task_id
        ]

    def _set_up(self, case: Case) -> str:
        simulator, outcome = self._simulator, case.outcome
        simulator.add_organization(case.task_id, credits=outcome.credits)
        simulator.add_account(f"user-{case.task_id}", "someone@example.org", [case.task_id])
        key = self._add_key(case)
        for number, fault in enumerate(outcome.faults, start=1):
            last = number == len(outcome.faults)
            simulator.inject(fault, times=None if last and outcome.for_ever else 1, key=key)
        if outcome.connection:
            self._connect(case, key)
        return key

    def _add_key(self, case: Case) -> str:
        key = self._simulator.add_key(account=f"user-{case.task_id}")
        self.every_key.append(key)
        return key

    def _connect(self, case: Case, key: str, *, running: bool = False) -> None:
        uri = f"{self._simulator.connection_uri(key)}?api_version=v1"
        # SQLite is not to be written to beside the run. What the environment says counts before the database.
        if running:
            os.environ[f"AIRFLOW_CONN_{case.task_id.upper()}"] = uri
        else:
            self._keep_connection(case.task_id, uri)

    def _change(self) -> None:
        waiting = [case for case in self._cases if case.outcome.then]
        while waiting and not self._over.wait(0.02):
            seen = {record.organization for record in self._simulator.requests if record.status}
            for case in [case for case in waiting if case.task_id in seen]:
                waiting.remove(case)
                match case.outcome.then:
                    case "top_up":
                        self._simulator.top_up(10.0, case.task_id)
                    case "revoke":
                        self._simulator.revoke_key(self._keys[case.task_id])
                    case "rotate":
                        # In this order, or a poke in between would find the old key refused and no other.
                        new = self._add_key(case)
                        self._connect(case, new, running=True)
                        self._simulator.revoke_key(self._keys[case.task_id])
                        self._simulator.set_credits(50.25, case.task_id)
