"""The tasks that wait in the browser tests' Airflow, for the tests and for its DAG."""

from __future__ import annotations

DAG_ID, BALANCES_DAG_ID = "image_pipeline", "daily_balance"
GATE, GATE_WITHOUT_WORKER, PAINT = "wait_for_credit", "wait_without_worker", "generate_image"
PROMPTS = ["a lighthouse in a storm", "a paper boat on a calm lake"]
POKE_INTERVAL = 3.0
#: What the wallet has, what a gate needs more than, and what an image costs.
CREDITS, MINIMUM, COST = 2.25, 50.0, 3.0
#: Balances of the last day: how many hours ago, and credits. They fall by 6 an hour, but for a top-up.
HISTORY = [(20.0, 62.25), (12.0, 14.25), (11.0, 68.25), (4.0, 26.25)]


def host_name() -> str:
    """Return what Airflow is told that this machine is called: no page, and so no picture, shows its name."""
    return "worker-1"
