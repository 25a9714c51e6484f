"""The paths of the demo. Everything that it writes is in the folder `.demo` of the repository.

Each Airflow has a folder of its own there, so that the demo can run on two of them at the same time.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.real_airflow import AIRFLOW_VERSION

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / ".demo" / "airflow-{}.{}".format(*AIRFLOW_VERSION)
#: The lock is on this file, since the demo's folder is deleted and created anew.
LOCK_FILE = DEMO.with_name(f"{DEMO.name}.lock")
IMAGES = DEMO / "images"
LOGS = DEMO / "logs"
TASK_LOGS = DEMO / "airflow" / "logs"
PASSWORD_FILE = DEMO / "password.json"
LEDGER = DEMO / "ledger.db"
TIME_ZONES = DEMO / "zoneinfo"


def prepare_folder(user: str, password: str) -> None:
    """Empty the demo's folder, and create the file from which Airflow reads the user's password."""
    if DEMO.exists():
        shutil.rmtree(DEMO)
    DEMO.mkdir(parents=True)
    PASSWORD_FILE.touch(mode=0o600)
    PASSWORD_FILE.write_text(json.dumps({user: password}))


def display_path(path: Path | str) -> str:
    """Return a path for the terminal: relative to the repository if that is the working directory."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if Path.cwd() == ROOT and path.is_relative_to(ROOT) else str(path)
