"""Rewrite `.ci/constraints-<airflow>.txt`: what people have who installed that Airflow when it was released.

Resolves this package, its tests, tools and benchmark together with one Airflow release, from the index as of
three days after that release. The release's day is found by asking the index with uv's ``--exclude-newer``
until the release appears, so that no index has to be named here. The files hold names and versions, nothing
else. The one called ``lowest`` has the lowest versions of our own dependencies that `pyproject.toml` allows.

Usage: python constraints.py UV AIRFLOW=RELEASE...   e.g.  constraints.py uv 2.11=2.11.2 3.3=3.3.2
"""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Airflow's own constraints appear with the release; a few days let its last-minute providers in.
DAYS_AFTER_RELEASE = 3
#: The groups of pyproject.toml that all of them have.
GROUPS = ["dev", "ui", "bench", "cluster"]
#: Object storage is tested on the oldest and the newest release only: its packages would change other pins.
WITH_OBJECT_STORAGE = ("2.11", "3.3")

#: Flask-AppBuilder's logins are tested on the newest only: before Airflow 3, they are Airflow's own.
WITH_LOGINS = ("3.3",)


def resolve(uv: str, requirement: str, as_of: date, *more: str) -> subprocess.CompletedProcess[str]:
    """Resolve a requirement, and more of uv's arguments, with the index as it was that day.

    For every platform and every Python from 3.11.
    """
    command = [uv, "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--no-header"]
    command += ["--fork-strategy=fewest", "--no-annotate", "--exclude-newer", as_of.isoformat(), "-", *more]
    return subprocess.run(command, input=requirement, text=True, capture_output=True, cwd=ROOT, check=False)


def released_on(uv: str, release: str) -> date:
    """Return the first day as of which the index has this Airflow release."""
    early, late = date(2020, 1, 1), datetime.now(UTC).date() + timedelta(days=1)
    while early < late:
        middle = early + (late - early) // 2
        if resolve(uv, f"apache-airflow=={release}", middle, "--no-deps").returncode == 0:
            late = middle
        else:
            early = middle + timedelta(days=1)
    return early


def lowest(uv: str, as_of: date) -> str:
    """Return the lowest versions of this package's own dependencies, as requirements."""
    own = ["pyproject.toml", "--extra=simulator", "--extra=ledger", "--resolution=lowest-direct", "--no-deps"]
    resolved = resolve(uv, "", as_of, *own)
    if resolved.returncode:
        sys.exit(f"The lowest versions as of {as_of} cannot be found:\n{resolved.stderr}")
    return resolved.stdout


def write(uv: str, airflow: str, release: str) -> None:
    """Write the constraints of one Airflow."""
    as_of = released_on(uv, release) + timedelta(days=DAYS_AFTER_RELEASE)
    requirements = f"apache-airflow=={release}\n" + (lowest(uv, as_of) if airflow == "lowest" else "")
    names = GROUPS + (["s3"] if airflow in WITH_OBJECT_STORAGE else [])
    names += ["fab"] if airflow in WITH_LOGINS else []
    groups = [f"--group={name}" for name in names]
    resolved = resolve(
        uv, requirements, as_of, "pyproject.toml", "--extra=simulator", "--extra=ledger", *groups
    )
    if resolved.returncode:
        sys.exit(f"Airflow {release} as of {as_of} cannot be resolved:\n{resolved.stderr}")
    # A constraint holds only where the package is wanted at all, so environment markers add nothing ...
    pins = sorted({re.sub(r"\s*;.*", "", line) for line in resolved.stdout.splitlines() if "==" in line})
    packages = [pin.partition("==")[0] for pin in pins]
    twice = {name for name in packages if packages.count(name) > 1}
    if twice:  # ... unless one package is pinned differently for different environments.
        sys.exit(f"Airflow {release} needs several versions of {', '.join(sorted(twice))}.")
    path = ROOT / ".ci" / f"constraints-{airflow}.txt"
    path.write_text("\n".join(pins) + "\n")
    print(f"{path.relative_to(ROOT)}: Airflow {release}, {len(pins)} packages as of {as_of}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    for pair in sys.argv[2:]:
        write(sys.argv[1], *pair.split("="))
