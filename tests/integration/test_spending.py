"""Tasks that spend, run by Airflow in this process; what becomes of them otherwise is in tests/e2e."""

from __future__ import annotations

import os

import pytest

from airflow_stability.simulator import StabilitySimulator
from tests.integration.dags.spending import IMAGE
from tests.integration.decision_table import FAILURES
from tests.integration.written import Written
from tests.real_airflow import XCOM_TABLE


@pytest.fixture(scope="module")
def finished(request, run_dag):
    with StabilitySimulator(credits=100.0) as simulator:
        simulator.add_organization("org-watched", credits=120.0)
        simulator.add_organization("org-empty", credits=0.0)
        keys = {"stability_default": simulator.api_key}
        for mode in ("deferrable", "reschedule"):
            conn_id = f"another_pays_{mode}"
            # The first organization is the one that pays.
            simulator.add_account(conn_id, "someone@example.org", ["org-empty", "org-watched"])
            keys[conn_id] = simulator.add_key(account=conn_id)
        names = [f"AIRFLOW_CONN_{conn_id.upper()}" for conn_id in keys]
        for name, key in zip(names, keys.values(), strict=True):
            os.environ[name] = f"{simulator.connection_uri(key)}?api_version=v1"
        try:
            result = run_dag("spending")
            yield result, simulator, list(keys.values()), Written(request.config, FAILURES.values())
        finally:
            for name in names:
                del os.environ[name]


@pytest.mark.parametrize(
    ("task_id", "returned"),
    [
        ("by_position", "a friend in 1k for a friend"),
        ("by_name", "a fox in 2k for a friend"),
        ("decorated", "a fox in 4k for a friend"),
        ("paint_two_sizes", {"small": "paint_two_sizes", "large": 2}),
        ("count_without_client", 3),
    ],
)
def test_a_function_gets_the_client_beside_its_own_arguments(finished, task_id, returned):
    result, *_ = finished

    assert result.states[task_id] == "success"
    assert result.xcom(task_id) == returned


def test_a_mapped_task_spends_once_for_each(finished):
    result, simulator, *_ = finished

    prompts = ["a fox", "a boat", "a lighthouse"]
    assert result.xcoms("mapped") == [f"{prompt} in 1k for a friend" for prompt in prompts]
    assert simulator.images_made == len(["by_position", "by_name", "decorated", *prompts])


def test_each_item_of_a_dict_is_an_xcom_if_that_is_wanted(finished):
    result, *_ = finished

    assert (result.xcom("paint_two_sizes", "small"), result.xcom("paint_two_sizes", "large")) == (
        "paint_two_sizes",
        2,
    )


@pytest.mark.parametrize(
    ("mode", "key_label", "spent", "text"),
    [
        ("deferrable", "key-2", range(3, 4), "The balance is 120,"),
        # Each pause is as long as all before: after 0, 0.2, 0.4, 0.8 ... seconds, and after 5 at the latest.
        ("reschedule", "key-3", range(2, 8), "Timed out after 5 s: organization org-watched has 120 credits"),
    ],
)
def test_a_wallet_that_is_watched_but_not_billed_is_not_asked_for_ever(
    finished, mode, key_label, spent, text
):
    result, simulator, *_ = finished
    task_id = f"another_pays_{mode}"

    assert (result.states[task_id], result.tries[task_id]) == ("failed", 1)
    assert FAILURES[task_id].startswith(text)
    assert "the call is still refused: is another organization billed?" in FAILURES[task_id]
    paths = [record.path for record in simulator.requests if record.key_label == key_label]
    assert paths.count(IMAGE) in spent
    # One look before each run, one after, and one or two of the feed while it waits.
    assert len(paths) <= 5 * paths.count(IMAGE)


def test_no_key_stands_anywhere(finished):
    *_, keys, written = finished

    assert written.places_of(*keys) == []


def test_the_search_for_keys_would_find_one(finished):
    *_, written = finished
    places = written.places_of("organization org-watched has 120 credits", "a lighthouse in 1k for a friend")

    assert {place.partition(": first half")[0] for place in places} >= {
        "output: secret 0",
        "elsewhere: secret 0",
        f"table {XCOM_TABLE}, column value: secret 1",
    }
