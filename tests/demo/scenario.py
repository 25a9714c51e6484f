"""The scenario: which DAGs run, with which prompts and how many credits."""

from __future__ import annotations

from airflow_stability.simulator import StabilitySimulator

PIPELINE_DAG = "stability_image_pipeline"
ACCOUNT_DAG = "stability_account"
#: The id of the demo's run of each DAG.
RUN_ID = "demo"
#: The id of the second run of the image pipeline, in which a worker is killed.
KILLED_RUN_ID = "killed"

PROMPTS = (
    "a lighthouse in a storm",
    "a paper boat on a calm lake",
    "a fox reading a newspaper",
    "an owl with a lantern",
    "a tram in the rain",
)
#: The prompt of the image that is paid for and lost.
LOST_PROMPT = "a letter in a bottle"
CREDITS_PER_IMAGE = 3
#: The number of images that the example DAG requests at the same time.
PARALLEL_IMAGES = 2
IMAGE_PATH = "/v2beta/stable-image/generate/core"

#: Too few credits for the gate.
INITIAL_CREDITS = 2.0
#: With the initial credits, enough for four images.
FIRST_TOP_UP = 10.0
#: What somebody else spends while two image requests are pending, so that one of them is refused.
SPENT_ELSEWHERE = 3.0
#: Enough for the remaining images, for the second run's gate, and for the image that is lost.
SECOND_TOP_UP = 12.0
#: The images that are paid for: one for each prompt, and the one that is lost.
PAID_IMAGES = len(PROMPTS) + 1
FINAL_CREDITS = (
    INITIAL_CREDITS + FIRST_TOP_UP + SECOND_TOP_UP - SPENT_ELSEWHERE - PAID_IMAGES * CREDITS_PER_IMAGE
)

BUDGET = "demo"
#: Enough for all images of the first run except one.
BUDGET_LIMIT = (len(PROMPTS) - 1) * CREDITS_PER_IMAGE


def image_statuses(simulator: StabilitySimulator) -> list[int | None]:
    """Return the status of each image request so far; None for a request without a response yet."""
    return [request.status for request in simulator.requests if request.path == IMAGE_PATH]
