"""The kinds of trouble that a gate has to live through, for the test and for its DAG."""

from __future__ import annotations

from airflow_stability.simulator import Fault

LASTS = 60.0
POKE_INTERVAL = 3.0
TIMEOUT = 180.0
REQUEST_TIMEOUT = 2

#: Refused connections are no fault of an answer: after a first call, nothing listens.
TROUBLES: dict[str, Fault | None] = {
    "outage": Fault.status(503),
    "refused": None,
    "html": Fault.html(200),
    "firewall": Fault.html(403),
    "hang": Fault.hang(),
    "lock_out": Fault.status(429),
    "lock_out_named": Fault.status(429, retry_after=61),
}
