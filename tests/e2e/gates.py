"""The gates that wait in a real Airflow, for the test and for its DAGs."""

from __future__ import annotations

from airflow_stability.simulator import Fault

POKE_INTERVAL = 3.0
MINIMUM = 8.5
#: What every wallet has at first, and what a top-up adds: a gate that opens has seen their sum.
POOR, TOP_UP = 5.25, 20.25
RICH = POOR + TOP_UP
#: Enough for everything but what is to time out.
TIMEOUT = 600.0
#: Of the gates that are to time out.
DEADLINE = 75.0
#: Seconds for which a key that has worked may be refused, instead of ten minutes.
GRACE = 10.0
#: Seconds of trouble.
LASTS = 60.0
REQUEST_TIMEOUT = 2

#: What happens to gates that wait. Refused connections are no fault of an answer: nothing listens.
TROUBLES: dict[str, Fault | None] = {
    "outage": Fault.status(503),
    "lock_out": Fault.status(429),
    "refused": None,
    "hang": Fault.hang(),
}
#: All of them on one connection and organization, topped up at the end.
SHARED: dict[str, dict[str, bool]] = {
    "classic": {},
    "end": {"end_from_trigger": True},
    "start": {"start_from_trigger": True},
    "start_and_end": {"start_from_trigger": True, "end_from_trigger": True},
    "end_without_xcom": {"end_from_trigger": True, "do_xcom_push": False},
}
#: They start when all others wait, so that their time is over after the triggerer was killed and not before.
LATE = ("deadline", "deadline_start")
#: One gate and one connection each, with an organization of that name.
ALONE = (*TROUBLES, "rotated", "revoked", "never_worked", "soft", *LATE)
#: Two organizations on one key.
TWO = ("two_a", "two_b")
MAPPED = ("mapped_a", "mapped_b")
MAPPED_GATES = {f"mapped_{name}": SHARED[name] for name in ("classic", "end", "start", "start_and_end")}
#: In a DAG of their own.
STOPPED = ("marked_failed", "cleared")
#: DAGs that start at a crossing of the minimum, by the direction, and when a budget reaches its soft limit.
EVENTS = ("restored", "low", "soft_limit")
BUDGET = "watched"
#: The budget's soft limit: a part of its limit, in percent.
SOFT_PERCENT = 50
