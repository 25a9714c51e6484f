"""Names and numbers of the waiting tasks in the browser tests, for the tests and for their DAGs."""

from __future__ import annotations

DAG_ID, OTHER_DAG_ID, BALANCES_DAG_ID = "image_pipeline", "video_pipeline", "daily_balance"
GATE, GATE_WITHOUT_WORKER, PAINT = "wait_for_credit", "wait_without_worker", "generate_image"
PROMPTS = ["a lighthouse in a storm", "a paper boat on a calm lake"]
POKE_INTERVAL = 3.0
#: A gate that waits for credits of a budget, with a connection that names a ledger.
GATE_WITH_BUDGET, WITH_LEDGER, LEDGER = "wait_for_budget", "with_ledger", "the_ledger"
#: The budgets, with their limits and soft limits in percent.
BUDGETS = {"marketing": (900, 80), "research": (400, None)}
#: What was spent: DAG, budget, credits, and how many days ago.
SPENDS = [
    *(("image_pipeline", "marketing", 25.5, day) for day in range(29)),
    *(("video_pipeline", "research", 12.0, day) for day in range(0, 29, 3)),
    ("thumbnails", None, 8.0, 2),
]
#: Two balances that were read in the last hours; nobody has written down why the second one is less.
READINGS = (200.0, 150.0)
#: The balance, the minimum of the gates, and the cost of an image.
CREDITS, MINIMUM, COST = 2.25, 50.0, 3.0
#: Balances of the last day: how many hours ago, and credits. They fall by 6 an hour, except for one top-up.
HISTORY = [(20.0, 62.25), (12.0, 14.25), (11.0, 68.25), (4.0, 26.25)]


def host_name() -> str:
    """Return the host name for Airflow, so that no page and no screenshot shows the real one."""
    return "worker-1"
