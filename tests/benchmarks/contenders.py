"""Who takes part, and how."""

from __future__ import annotations

from dataclasses import dataclass

INTERVAL = 5


@dataclass(frozen=True)
class Contender:
    """One way to wait for credit.

    :param dag: the id of its DAG: one gate, run once for each gate that waits.
    :param name: for tables.
    :param path: what it asks the server for.
    :param setup: how it is configured.
    """

    dag: str
    name: str
    path: str
    setup: str

    @property
    def ours(self) -> bool:
        """Whether it is this package's."""
        return self.dag.startswith("ours")


CONTENDERS = (
    Contender(
        "ours_classic",
        "ours, classic",
        "/v1/user/balance",
        "`StabilityBalanceSensor(deferrable=True)`: looks once on a worker, waits in the triggerer, "
        "ends on a worker.",
    ),
    Contender(
        "ours_end",
        "ours, end_from_trigger",
        "/v1/user/balance",
        "The same, and it ends in the triggerer.",
    ),
    Contender(
        "ours_start_end",
        "ours, start and end_from_trigger",
        "/v1/user/balance",
        "The same, and it starts in the triggerer, too: it never sees a worker.",
    ),
    Contender(
        "ours_no_xcom",
        "ours, start and end, no XCom",
        "/v1/user/balance",
        "The same with `do_xcom_push=False`: as little as the others, which hand nothing on.",
    ),
    Contender(
        "http_sensor",
        "HttpSensor",
        "/v1/user/account",
        "`HttpSensor(deferrable=True)`. Its trigger waits for as long as it is answered 404 and cannot "
        "look at a balance (with `response_check` it does not defer at all, and holds its worker). So the "
        "server answers it 404 until the top-up, which the real API does not.",
    ),
    Contender(
        "http_event_trigger",
        "hand-written",
        "/v1/user/balance",
        "A gate on `HttpEventTrigger` that does look at the balance, and starts in the triggerer "
        "(`start_from_trigger`), as a skilled user writes it. The check stands in a module of its own, "
        "since the trigger loads that anew at every poll; it is handed no threshold, so that another one "
        "is another function. It ends on a worker, since the trigger fires no event that ends a task. "
        "After ten failures in a row, less than a minute of an outage, it fails.",
    ),
)
