"""Make an image in object storage, such as S3, and use it in another task.

The folder is a URL, and `conn_id` is the Airflow connection with the rights to read, write and delete there.
Workers share no disk. A retry on another worker finds the image, or the marker of a call that may have been
paid for. XCom gets the image's address, which names the connection, too. It does not get the image itself.

For S3, install `apache-airflow-providers-amazon[s3fs]`.
"""

from __future__ import annotations

from datetime import datetime

try:
    from airflow.sdk import ObjectStoragePath, dag, task
except ImportError:  # Airflow 2.11
    from airflow.decorators import dag, task
    from airflow.io.path import ObjectStoragePath


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["stability"],
    params={"prompt": "a lighthouse in a storm", "folder": "s3://bucket/images", "conn_id": "aws_default"},
    doc_md=__doc__,
)
def stability_object_storage():
    @task.stability(credits=3, wait_timeout=6 * 60 * 60, retries=2)
    def generate_image(client, params=None, run_id=None) -> str:
        image = client.generate(
            "stable-image/generate/core",
            to=f"{params['folder']}/{run_id}",
            conn_id=params["conn_id"],
            prompt=params["prompt"],
        )
        return image.path

    @task
    def measure(path: str) -> int:
        return ObjectStoragePath(path).stat().st_size

    measure(generate_image())


stability_object_storage()
