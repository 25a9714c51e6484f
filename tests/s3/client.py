"""What the tests run in a process of its own: one step on a path in object storage."""

from __future__ import annotations

import sys

from airflow_stability.compat import AIRFLOW_VERSION
from airflow_stability.hooks.unreported_spends import is_there

if AIRFLOW_VERSION >= (3, 0):
    from airflow.sdk import ObjectStoragePath
else:
    from airflow.io.path import ObjectStoragePath  # type: ignore[import-not-found,no-redef]

if __name__ == "__main__":
    step, url = sys.argv[1:]
    path = ObjectStoragePath(url, conn_id="aws_default")
    if step == "write":
        path.write_bytes(b"by the client")
    elif step == "create":
        path.fs.pipe_file(path.path, b"by the client", mode="create")
    elif step == "read":
        sys.stdout.write(path.read_bytes().decode())
    elif step == "find":
        sys.stdout.write(f"there: {is_there(str(path))}")
    else:
        sys.exit(f"There is no step {step}.")
