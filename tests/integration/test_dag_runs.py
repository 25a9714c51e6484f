"""DAGs run by Airflow in this process against the simulator: the examples, and each operator's XCom."""

from __future__ import annotations

import runpy
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_stability.compat import AIRFLOW_VERSION
from airflow_stability.simulator import Fault, StabilitySimulator
from tests.conftest import ROOT
from tests.integration.conftest import load_dag

CORE = "/v2beta/stable-image/generate/core"


@pytest.fixture
def simulator(set_connection):
    with StabilitySimulator(credits=25.5) as simulator:
        set_connection("stability_default", simulator.connection_uri())
        yield simulator


def test_the_image_pipeline_makes_an_image_for_each_prompt(simulator, run_dag, tmp_path):
    result = run_dag("stability_image_pipeline", {"prompts": ["a", "b"], "output_folder": str(tmp_path)})

    assert result.state == "success"
    assert result.xcom("wait_for_credit") == 25.5
    images = sorted(tmp_path.glob("*/*.png"))
    assert sorted(result.xcoms("generate_image")) == [str(image) for image in images]
    assert [image.read_bytes()[:8] for image in images] == [b"\x89PNG\r\n\x1a\n"] * 2
    assert simulator.credits() == 19.5


def test_an_image_of_the_pipeline_that_cannot_be_paid_waits_and_is_made_in_the_same_try(
    simulator, run_dag, tmp_path
):
    simulator.set_credits(5.5)

    def looks() -> int:
        balances = [each for each in simulator.requests if each.path == "/v1alpha/user/balance"]
        return sum(each.status == 200 for each in balances)

    def top_up_after_the_look_of_the_second_image() -> None:
        give_up = time.monotonic() + 60
        while looks() < 3 and time.monotonic() < give_up:  # the gate looked first
            time.sleep(0.01)
        simulator.top_up(20)

    topping_up = threading.Thread(target=top_up_after_the_look_of_the_second_image)
    topping_up.start()
    result = run_dag("stability_image_pipeline", {"prompts": ["a", "b"], "output_folder": str(tmp_path)})
    topping_up.join()

    assert result.state == "success"
    assert result.tries["generate_image"] == 1
    assert len(list(tmp_path.glob("*/*.png"))) == simulator.images_made == 2
    assert simulator.credits() == 19.5
    assert looks() > 4  # without waiting: the gate's, one for each image, the report's


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 1), reason="its triggers read the connection in another way")
def test_a_trigger_that_ends_while_it_reads_its_connection_does_not_hide_how_its_task_ends(
    simulator, run_dag, monkeypatch
):
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.supervisor import InProcessTestSupervisor

    handle, reads = InProcessTestSupervisor._handle_request, []

    def answer_when_the_task_has_resumed(self, msg, *args, **kwargs):
        if threading.current_thread() is not threading.main_thread():
            reads.append(msg)
            give_up = time.monotonic() + 0.5
            while not hasattr(task_runner, "SUPERVISOR_COMMS") and time.monotonic() < give_up:
                time.sleep(0.001)
        return handle(self, msg, *args, **kwargs)

    run_dag("times_out_in_trigger")  # the first task of a process takes seconds, all of its time
    monkeypatch.setattr(InProcessTestSupervisor, "_handle_request", answer_when_the_task_has_resumed)
    result = run_dag("times_out_in_trigger")

    assert len(reads) > 1
    assert result.states == {"gate": "skipped"}, result.errors


def test_the_object_storage_example_makes_an_image_below_a_url(simulator, run_dag, tmp_path):
    result = run_dag("stability_object_storage", {"folder": tmp_path.as_uri()})

    assert result.state == "success"
    (image,) = tmp_path.glob("*/*.png")
    assert image.parent.name == result.run_id
    assert image.read_bytes().startswith(b"\x89PNG")
    assert result.xcom("generate_image") == f"file://aws_default@{image}"
    assert result.xcom("measure") == image.stat().st_size
    assert simulator.credits() == 22.5


def test_the_example_with_five_images_pays_for_five_although_the_third_is_refused(
    simulator, run_dag, tmp_path
):
    simulator.inject(Fault.hang(), path=CORE)

    def calls() -> list[int | None]:
        return [each.status for each in simulator.requests if each.path == CORE]

    def leave_credit_for_two_images_until_the_third_is_refused() -> None:
        give_up = time.monotonic() + 60
        while not calls() and time.monotonic() < give_up:
            time.sleep(0.01)
        simulator.set_credits(8)
        simulator.clear_faults()
        while 402 not in calls() and time.monotonic() < give_up:
            time.sleep(0.01)
        simulator.top_up(20)

    topping_up = threading.Thread(target=leave_credit_for_two_images_until_the_third_is_refused)
    topping_up.start()
    result = run_dag("stability_five_images", {"output_folder": str(tmp_path)})
    topping_up.join()

    assert result.state == "success"
    images = [Path(each) for each in result.xcom("generate_images")]
    assert len(images) == 5
    assert sorted(images) == sorted(tmp_path.glob("*/*.png"))
    assert len(calls()) == 6
    assert simulator.images_made == 5
    assert simulator.credits() == 13


def test_the_account_example_pushes_account_and_balance(simulator, run_dag):
    result = run_dag("stability_account")

    assert result.state == "success"
    assert result.xcom("read_account") == {
        "id": "user-1",
        "email": "***",
        "organizations": [
            {"id": "org-default", "name": "Default Organization", "role": "MEMBER", "is_default": True},
            {"id": "org-other", "name": "Other Organization", "role": "MEMBER", "is_default": False},
        ],
        "profile_picture": None,
    }
    assert result.xcom("read_balance") == {"credits": 25.5, "organization": None}
    assert (
        result.xcom("summarize")
        == "user-1 is in Default Organization, Other Organization and has 25.5 credits."
    )


class OfAsset:
    """The events of one asset, to be had by that asset. Before Airflow 3.2 assets are no keys of a dict."""

    def __init__(self, asset, events):
        self.asset, self.events = asset, events

    def __getitem__(self, asset):
        assert asset == self.asset
        return self.events


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 0), reason="Airflow 2.11 has no asset watchers")
@pytest.mark.parametrize(
    ("dag_id", "task_id", "direction", "result"),
    [
        ("stability_credit_restored", "plan_images", "above", 20),
        ("stability_credit_low", "alert", "below", "At noon org-1 had 60.5 credits left."),
    ],
)
def test_an_event_driven_example_takes_what_its_trigger_fires(
    airflow_database, dag_id, task_id, direction, result
):
    example = runpy.run_path(str(ROOT / "example_dags" / f"{dag_id}.py"))
    (asset,) = [value for value in example.values() if isinstance(value, example["Asset"])]
    (watcher,) = asset.watchers
    event = SimpleNamespace(
        extra={
            "payload": {
                "credits": 60.5,
                "previous_credits": 2.0,
                "threshold": 50.0,
                "direction": direction,
                "organization": "org-1",
                "time": "noon",
            }
        }
    )

    task = load_dag(dag_id).get_task(task_id)

    assert type(watcher.trigger) is example["StabilityBalanceEventTrigger"]
    assert watcher.trigger.direction == direction
    assert task.python_callable(triggering_asset_events=OfAsset(asset, [event])) == result


def test_operators_take_templates_and_push_plain_json(simulator, run_dag):
    simulator.set_credits(0.6336833840314097, "org-other")

    result = run_dag("operators", {"organization": "org-other", "minimum": "0.5"})

    assert result.state == "success"
    assert result.xcom("account")["email"] == "user-1@example.com"
    assert result.xcom("balance") == {"credits": 0.6336833840314097, "organization": "org-other"}
    assert result.xcom("gate") == 0.6336833840314097
    assert sorted(result.xcoms("mapped_gate")) == [0.6336833840314097, 25.5]


@pytest.fixture
def logged(caplog, logged):
    """Return a function that returns what was logged: Airflow 3 writes the log of a task to stdout."""
    return lambda: caplog.text + logged()


def test_execution_timeout_is_not_taken_for_the_sensors_own_timeout(simulator, run_dag, logged):
    simulator.inject(Fault.hang())

    result = run_dag("execution_timeout")

    assert result.states["gate"] == "skipped"
    log = logged()
    assert "soft_fail" in log
    assert "Timed out after" not in log


def test_the_sensor_is_no_operator_inside_an_operator(simulator, run_dag, logged):
    run_dag("operators", {"organization": "org-default", "minimum": "0.5"})

    log = logged()
    assert "The gate opens" in log
    assert "cannot be called outside" not in log


def test_operators_fail_without_retries_where_the_failure_will_not_pass(simulator, run_dag):
    simulator.inject(Fault.status(401))

    result = run_dag("operators", {"organization": "org-other", "minimum": "0.5"})

    assert {
        task: result.states[task] for task in ("account", "balance", "gate", "mapped_gate")
    } == dict.fromkeys(("account", "balance", "gate", "mapped_gate"), "failed")
    assert result.tries["account"] == result.tries["balance"] == 1


def test_an_operators_failure_that_may_pass_uses_airflows_retries(simulator, run_dag):
    # One attempt of the operator asks v1alpha once: its server says that trying again is of no use just now.
    simulator.inject(Fault.status(503, temporary=False), times=1, path="/v1alpha/user/account")

    result = run_dag("operators", {"organization": "org-default", "minimum": "0.5"})

    assert result.states["account"] == "success"
    assert result.tries["account"] == 2


def test_the_example_of_a_job_pays_once_and_fetches_what_it_has_paid_for(simulator, run_dag, tmp_path):
    simulator.set_credits(70)
    simulator.job_seconds = 5.0
    source = tmp_path / "source.png"
    source.write_bytes(b"picture")

    result = run_dag("stability_upscale_job", {"image": str(source), "output_folder": str(tmp_path)})

    assert result.state == "success"
    assert result.tries["upscale"] == 1
    (image,) = tmp_path.glob("*/*.png")
    assert result.xcom("upscale") == str(image)
    assert image.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*/*.paying.json"))
    assert simulator.credits() == 10
    posts = [each for each in simulator.requests if each.method == "POST"]
    asked = [each.status for each in simulator.requests if each.path.startswith("/v2beta/results/")]
    assert len(posts) == 1
    assert 202 in asked
