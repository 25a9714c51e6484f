"""Upscale an image with a call that takes minutes, and hold no worker meanwhile.

The API answers this call with the id of a job. The task is deferred, and the triggerer asks for the result.
When the job is done, the function runs again from its beginning. `generate` finds the id of the job that was
paid for, and fetches its result without paying.
"""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

try:
    from airflow.sdk import dag, task
except ImportError:  # Airflow 2.11
    from airflow.decorators import dag, task


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["stability"],
    params={
        "image": "/srv/images/lighthouse.png",
        "prompt": "a lighthouse in a storm",
        "output_folder": str(Path(tempfile.gettempdir()) / "stability_images"),
    },
    doc_md=__doc__,
)
def stability_upscale_job():
    @task.stability(credits=60, deferrable=True, wait_timeout=6 * 60 * 60)
    def upscale(client, params=None, run_id=None) -> str:
        image = client.generate(
            "stable-image/upscale/creative",
            to=Path(params["output_folder"]) / run_id,
            image=Path(params["image"]),
            prompt=params["prompt"],
        )
        return image.path

    upscale()


stability_upscale_job()
