"""Make five images in one task, each of which is paid for once.

If the third call is refused for lack of credit, the task waits and then runs the function again from its
beginning. The first two calls find their images in the folder, and pay nothing. So five images cost five.
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
        "prompts": ["a heron", "a ferry", "a windmill", "a bakery", "a harbour at night"],
        "output_folder": str(Path(tempfile.gettempdir()) / "stability_images"),
    },
    doc_md=__doc__,
)
def stability_five_images():
    @task.stability(credits=15, poke_interval=10, wait_timeout=6 * 60 * 60)
    def generate_images(client, params=None, run_id=None) -> list[str]:
        folder = Path(params["output_folder"]) / run_id
        images = []
        for prompt in params["prompts"]:
            image = client.generate("stable-image/generate/core", to=folder, prompt=prompt)
            images.append(image.path)
        return images

    generate_images()


stability_five_images()
