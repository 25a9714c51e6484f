"""What must hold at the end of the demo. Each check returns the sentence that the demo prints for it."""

from __future__ import annotations

from cryptography.fernet import Fernet

from airflow_stability.simulator import StabilitySimulator
from tests.demo.errors import DemoError
from tests.demo.folders import IMAGES, display_path
from tests.demo.scenario import FINAL_CREDITS, PROMPTS, image_statuses
from tests.real_airflow import RealAirflow


def check_tasks(airflow: RealAirflow) -> str:
    """Check that all tasks succeeded at the first try.

    :raises DemoError: a task failed or was retried.
    """
    tasks = [tuple(task) for task in airflow.query("SELECT task_id, state, try_number FROM task_instance")]
    wrong = [str(task) for task in tasks if task[1:] != ("success", 1)]
    if wrong:
        raise DemoError(f"not all tasks succeeded at the first try: {', '.join(wrong)}")
    return f"all {len(tasks)} tasks succeeded at the first try"


def check_images() -> str:
    """Check that there is one PNG file for each prompt.

    :raises DemoError: there are more or fewer files, or a file is not a PNG file.
    """
    files = list(IMAGES.iterdir()) if IMAGES.exists() else []
    wrong = [file.name for file in files if not file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")]
    if wrong or len(files) != len(PROMPTS):
        raise DemoError(f"{len(files)} files for {len(PROMPTS)} prompts in {IMAGES}; not PNG files: {wrong}")
    return f"{display_path(IMAGES)} holds {len(files)} PNG files, one for each prompt"


def check_credits(simulator: StabilitySimulator) -> str:
    """Check that the simulator sold each image once, and refused at least one request.

    :raises DemoError: the images or credits do not add up, or no request was refused.
    """
    made, credits, statuses = simulator.images_made, simulator.credits(), image_statuses(simulator)
    if made != len(PROMPTS) or credits != FINAL_CREDITS:
        raise DemoError(
            f"the simulator made {made} images and has {credits:g} credits, "
            f"not {len(PROMPTS)} images and {FINAL_CREDITS:g} credits"
        )
    refused = statuses.count(402)
    if statuses.count(200) != len(PROMPTS) or not refused:
        raise DemoError(
            f"the image requests got the statuses {statuses}: some images missing, or none refused"
        )
    return (
        f"the simulator sold {made} images, refused {refused} for lack of credits, "
        f"and has {credits:g} credits left, as expected"
    )


def check_api_key(airflow: RealAirflow, api_key: str) -> str:
    """Check that Airflow holds the API key nowhere but in the connection, encrypted.

    The search includes each half of the key, and its encodings.

    :raises DemoError: the key stands elsewhere, or the connection does not hold it.
    """
    places, files, rows = airflow.places_of(api_key)
    [(encrypted,)] = airflow.query("SELECT password FROM connection")
    if Fernet(airflow.fernet_key).decrypt(encrypted.encode()).decode() != api_key:
        raise DemoError("the connection in Airflow's database does not hold the API key")
    if places:
        raise DemoError(f"the API key stands in {'; '.join(sorted(map(display_path, set(places))))}")
    return (
        f"the API key is only in its connection, encrypted: searched {files} files and all {rows} rows of "
        "the database for the key, each half of it, and its base64, hex and URL encodings"
    )
