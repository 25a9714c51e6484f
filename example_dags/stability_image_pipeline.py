"""Wait for credit, generate an image for each prompt, and report the images and the remaining credits.

The gate holds the run back until there are more credits than the first image costs. It cannot guarantee the
credit for the other images, because other tasks and programs spend from the same balance. So a spending task
makes each image:

- It checks whether the balance is enough for its image, and then makes the image.
- If the balance is too low, or the API refuses the call, the task waits again.

Neither the gate nor a spending task holds a worker while it waits. Without the gate, all tasks of a run would
start and then find no credit. Without spending tasks, a run would fail halfway when the credit is used up.

Each image is paid for once. A marker is written before the call, and removed when the image is there. If a
worker is killed in between, the retry finds the marker: it pays nothing, fails, and says what to do.
"""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.sensors.stability import StabilityBalanceSensor

try:
    from airflow.sdk import dag, task
except ImportError:  # Airflow 2.11
    from airflow.decorators import dag, task

CREDITS_PER_IMAGE = 3


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["stability"],
    params={
        "prompts": ["a lighthouse in a storm", "a paper boat on a calm lake", "a fox reading a newspaper"],
        "output_folder": str(Path(tempfile.gettempdir()) / "stability_images"),
    },
    doc_md=__doc__,
)
def stability_image_pipeline():
    wait_for_credit = StabilityBalanceSensor(
        task_id="wait_for_credit",
        minimum_credits=CREDITS_PER_IMAGE,
        deferrable=True,
        poke_interval=10,
        timeout=6 * 60 * 60,
    )

    @task
    def list_prompts(params=None) -> list[str]:
        return params["prompts"]

    @task.stability(
        credits=CREDITS_PER_IMAGE,
        poke_interval=10,
        wait_timeout=6 * 60 * 60,
        max_active_tis_per_dagrun=2,
        # Waiting uses no retry.
        retries=1,
    )
    def generate_image(client, prompt: str, params=None, run_id=None) -> str:
        # The folder may also be a URL such as s3://bucket/images, with conn_id=... (never as a Path)
        folder = f"{params['output_folder']}/{run_id}"
        image = client.generate("stable-image/generate/core", to=folder, prompt=prompt, output_format="png")
        return image.path

    @task
    def report(images: list[str]) -> None:
        balance = StabilityHook().get_balance()
        print(f"{len(list(images))} images, {balance.credits} credits left:", *images, sep="\n")

    prompts = list_prompts()
    wait_for_credit >> prompts
    report(generate_image.expand(prompt=prompts))


stability_image_pipeline()
