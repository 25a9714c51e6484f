"""The contenders of the benchmark: ways to wait for credit, and how each is set up."""

from __future__ import annotations

from dataclasses import dataclass

INTERVAL = 5


@dataclass(frozen=True)
class Contender:
    """One way to wait for credit.

    :param dag: the id of its DAG, which has one gate. Each gate that waits is a run of its own.
    :param name: in tables.
    :param path: of its requests to the server.
    :param setup: its configuration, in Markdown.
    """

    dag: str
    name: str
    path: str
    setup: str

    @property
    def ours(self) -> bool:
        """Whether it is a gate of this package."""
        return self.dag.startswith("ours")


CONTENDERS = (
    Contender(
        "ours_classic",
        "ours, classic",
        "/v1/user/balance",
        "`StabilityBalanceSensor(deferrable=True)`. The first look at the balance is on a worker. The task "
        "then waits in the triggerer, and ends on a worker.",
    ),
    Contender(
        "ours_end",
        "ours, end_from_trigger",
        "/v1/user/balance",
        "The same with `end_from_trigger=True`: the task ends in the triggerer.",
    ),
    Contender(
        "ours_start_end",
        "ours, start and end_from_trigger",
        "/v1/user/balance",
        "The same, with `start_from_trigger=True` as well: the task also starts in the triggerer, and needs "
        "no worker at all.",
    ),
    Contender(
        "ours_no_xcom",
        "ours, start and end, no XCom",
        "/v1/user/balance",
        "The same with `do_xcom_push=False`. The two contenders below push no XCom either.",
    ),
    Contender(
        "http_sensor",
        "HttpSensor",
        "/v1/user/account",
        "`HttpSensor(deferrable=True)`. Its trigger waits while the response has status 404, and cannot look "
        "at a balance. (With `response_check` the sensor does not defer at all, and holds its worker.) So "
        "the server sends it status 404 until the top-up. The real API does not do that.",
    ),
    Contender(
        "http_event_trigger",
        "hand-written",
        "/v1/user/balance",
        "A gate on Airflow's `HttpEventTrigger`, as an experienced user would write it. It looks at the "
        "balance, and starts in the triggerer (`start_from_trigger`). Its check is in a module of its own, "
        "because the trigger reloads that module at every poll. The check gets no threshold as an argument, "
        "so each threshold needs a function of its own. The task ends on a worker, because the trigger fires "
        "no event that ends a task. The task fails after ten failed polls in a row: an outage of less than "
        "a minute is enough for that.",
    ),
)
