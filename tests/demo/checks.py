"""What must hold at the end of the demo. Each check returns the sentence that the demo prints for it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet
from sqlalchemy import create_engine, select

from airflow_stability.ledger.budgets import COUNTING
from airflow_stability.ledger.schema import spends
from airflow_stability.rules.credits import from_microcredits
from airflow_stability.simulator import StabilitySimulator
from tests.demo.airflow_setup import CONNECTION
from tests.demo.errors import DemoError
from tests.demo.folders import IMAGES, LEDGER, display_path
from tests.demo.scenario import (
    BUDGET,
    BUDGET_LIMIT,
    CREDITS_PER_IMAGE,
    FINAL_CREDITS,
    KILLED_RUN_ID,
    PAID_IMAGES,
    PIPELINE_DAG,
    PROMPTS,
    RUN_ID,
    image_statuses,
)
from tests.real_airflow import TASK_INSTANCE, RealAirflow


def check_tasks(airflow: RealAirflow) -> str:
    """Check that all tasks succeeded at the first try, except in the run whose worker was killed.

    The DAG of the account is a daily one. Airflow starts a run of its own for it, which may not be over yet.

    :raises DemoError: a task failed or was retried.
    """
    query = f"SELECT task_id, state, try_number FROM {TASK_INSTANCE} WHERE run_id = :run"
    tasks = [tuple(task) for task in airflow.query(query, run=RUN_ID)]
    wrong = [str(task) for task in tasks if task[1:] != ("success", 1)]
    if wrong:
        raise DemoError(f"not all tasks succeeded at the first try: {', '.join(wrong)}")
    return f"all {len(tasks)} tasks succeeded at the first try, except in the run whose worker was killed"


def check_killed_run(airflow: RealAirflow) -> str:
    """Check that the run whose worker was killed failed at the second try, and that only the marker is left.

    :raises DemoError: the run ended otherwise, or its folder holds something else.
    """
    query = f"SELECT task_id, state, try_number FROM {TASK_INSTANCE} WHERE dag_id = :dag AND run_id = :run"
    tasks = {row[0]: tuple(row[1:]) for row in airflow.query(query, dag=PIPELINE_DAG, run=KILLED_RUN_ID)}
    if tasks.get("generate_image") != ("failed", 2) or tasks["report"][0] != "upstream_failed":
        raise DemoError(f"the run {KILLED_RUN_ID} did not fail at the second try of its image: {tasks}")
    files = [path.name for path in _files_of(KILLED_RUN_ID)]
    if len(files) != 1 or not files[0].endswith(".paying.json"):
        raise DemoError(f"the run {KILLED_RUN_ID} has left these files, not one marker: {files}")
    return "the run whose worker was killed failed at the second try, and only its marker is left"


def check_images() -> str:
    """Check that there is one PNG file for each prompt, with the facts about it beside it.

    :raises DemoError: there are more or fewer files, or a file is not a PNG file.
    """
    files = _files_of(RUN_ID)
    images = [file for file in files if file.suffix == ".png"]
    wrong = [file.name for file in images if not file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")]
    expected = sorted(path for image in images for path in (image, Path(f"{image}.json")))
    if wrong or len(images) != len(PROMPTS) or files != expected:
        names = ", ".join(file.name for file in files)
        raise DemoError(
            f"not an image and its facts for each of {len(PROMPTS)} prompts: {names}; no PNG: {wrong}"
        )
    return f"{display_path(IMAGES / RUN_ID)} holds {len(images)} PNG files, one for each prompt"


def _files_of(run_id: str) -> list[Path]:
    """Return what a run of the image pipeline has left in its folder."""
    folder = IMAGES / run_id
    return sorted(folder.iterdir()) if folder.exists() else []


def check_credits(simulator: StabilitySimulator) -> str:
    """Check that the simulator sold each image once, the lost one too, and refused at least one request.

    :raises DemoError: the images or credits do not add up, or no request was refused.
    """
    made, credits, statuses = simulator.images_made, simulator.credits(), image_statuses(simulator)
    if made != PAID_IMAGES or credits != FINAL_CREDITS:
        raise DemoError(
            f"the simulator made {made} images and has {credits:g} credits, "
            f"not {PAID_IMAGES} images and {FINAL_CREDITS:g} credits"
        )
    refused = statuses.count(402)
    if statuses.count(200) != len(PROMPTS) or not refused:
        raise DemoError(
            f"the image requests got the statuses {statuses}: some images missing, or none refused"
        )
    return (
        f"the simulator sold {made} images (one of them is lost, none was paid for twice), "
        f"refused {refused} for lack of credits, and has {credits:g} credits left, as expected"
    )


def check_ledger(simulator: StabilitySimulator, midnight: datetime | None) -> str:
    """Check that the ledger has every credit that the simulator got, and that no day exceeded the budget.

    The lost image is not posted: a dead worker cannot report whether it has paid.

    :param midnight: when the first day of the budget ended.
    :raises DemoError: a sum differs, or a spend is not in the budget.
    """
    engine = create_engine(f"sqlite:///{LEDGER}")
    with engine.connect() as connection:
        rows = list(connection.execute(select(spends).where(spends.c.state.in_(COUNTING))))
    engine.dispose()

    def total(spends: Iterable[Any]) -> float:
        return from_microcredits(sum(spend.microcredits for spend in spends))

    paid = sum(charge.credits for charge in simulator.charges)
    posted = total(row for row in rows if row.state == "posted")
    lost = total(row for row in rows if row.state != "posted" and row.run_id == KILLED_RUN_ID)
    sums = f"{posted:g} credits posted, and {lost:g} held or unknown for the lost image"
    if (posted, lost) != (len(PROMPTS) * CREDITS_PER_IMAGE, CREDITS_PER_IMAGE) or total(rows) != paid:
        raise DemoError(f"the simulator was paid {paid:g} credits, but the ledger has {sums}")
    first = total(row for row in rows if midnight and row.held_at.replace(tzinfo=UTC) < midnight)
    second = total(rows) - first
    days = f"{first:g} credits on the first day, {second:g} on the second; its limit is {BUDGET_LIMIT} a day"
    if first != BUDGET_LIMIT or second > BUDGET_LIMIT or {row.budget for row in rows} != {BUDGET}:
        raise DemoError(f"the budget {BUDGET} does not count these spends as it should: {days}")
    return f"the ledger has every credit that the simulator was paid: {sums}. The budget counts {days}"


def check_api_key(airflow: RealAirflow, api_key: str) -> str:
    """Check that Airflow holds the API key nowhere but in the connection, encrypted.

    The search includes each half of the key, and its encodings.

    :raises DemoError: the key stands elsewhere, or the connection does not hold it.
    """
    places, files, rows = airflow.places_of(api_key)
    [(encrypted,)] = airflow.query("SELECT password FROM connection WHERE conn_id = :id", id=CONNECTION)
    if Fernet(airflow.fernet_key).decrypt(encrypted.encode()).decode() != api_key:
        raise DemoError("the connection in Airflow's database does not hold the API key")
    if places:
        raise DemoError(f"the API key stands in {'; '.join(sorted(map(display_path, set(places))))}")
    return (
        f"the API key is only in its connection, encrypted: searched {files} files and all {rows} rows of "
        "the database for the key, each half of it, and its base64, hex and URL encodings"
    )
