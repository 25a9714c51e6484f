"""generate(): names of outputs, markers, and what is paid for at each outcome. The folder is a local one."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import socket
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import responses
from fsspec.implementations.local import LocalFileSystem

from airflow_stability.client import StabilityClient
from airflow_stability.client import generate as module
from airflow_stability.client.generate import Generation
from airflow_stability.errors import (
    StabilityAuthenticationError,
    StabilityConfigurationError,
    StabilityContentFilteredError,
    StabilityJobPendingError,
    StabilityModeratedError,
    StabilityNotFoundError,
    StabilityOutcomeUnknownError,
    StabilityPayloadTooLargeError,
    StabilityPaymentRequiredError,
    StabilityRateLimitError,
    StabilityRequestError,
    StabilityUnavailableError,
)

KEY = "sk-THIS0is0SECRET0aBcDeFgH"
CORE = "stable-image/generate/core"
ERASE = "stable-image/edit/erase"
CREATIVE = "stable-image/upscale/creative"
URL = f"https://api.stability.ai/v2beta/{CORE}"
PNG = b"\x89PNG\r\n\x1a\nthe-picture"
HEADERS = {"finish-reason": "SUCCESS", "seed": "1234", "x-request-id": "r-1"}
FACTS = {"content_type": "image/png", "seed": 1234, "finish_reason": "SUCCESS", "request_id": "r-1"}


@pytest.fixture
def api():
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


@pytest.fixture
def client():
    with StabilityClient(KEY, retry_deadline=0) as client:
        yield client


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Let waits pass at once, and return how long they were."""
    waits = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    monkeypatch.setattr(module.time, "monotonic", lambda: sum(waits))
    return waits


def picture(api, *, body=PNG, url=URL, status=200, headers=HEADERS, content_type="image/png"):
    return api.post(url, body=body, status=status, headers=headers, content_type=content_type)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


def marker_of(folder: Path) -> Path:
    return next(folder.glob("*.paying.json"))


def left_behind(folder: Path, *, began: datetime | None = None, **facts: object) -> Path:
    """Leave the marker of a caller that was killed."""
    folder.mkdir(exist_ok=True)
    began = began or datetime.now(UTC) - timedelta(hours=1)
    file = folder / "cat.png.paying.json"
    file.write_text(json.dumps({"id": "m1", "began": began.isoformat(), "timeout": 120, **facts}))
    return file


# Names


@pytest.mark.parametrize(
    ("endpoint", "fields", "name"),
    [
        (CORE, {"prompt": "a cat"}, "366db26fdb8b0dc5c63932470bdf43854ca3e2e9.png"),
        (
            CORE,
            {"prompt": "a cat", "output_format": "webp", "seed": 7},
            "8faa4620648943f8bb0c48115b797d434c0eed78.webp",
        ),
        (
            "stable-image/edit/erase",
            {"image": b"bytes", "mask": None},
            "fab77de6d5395e2f54ced1ec317516d475b5f7b1.png",
        ),
        ("3d/stable-fast-3d", {"image": b"bytes"}, "47dbced33002d3b4d1d14bce28327c231411a73b.glb"),
        (
            "audio/stable-audio-2/text-to-audio",
            {"prompt": "rain"},
            "399cc9b439b5bc8729954527079cc117a3a2f630.mp3",
        ),
    ],
)
def test_a_name_is_the_same_in_each_release(api, client, tmp_path, endpoint, fields, name):
    picture(api, url=f"https://api.stability.ai/v2beta/{endpoint}", content_type="image/png")
    made = client.generate(endpoint, to=tmp_path, **fields)
    assert Path(made.path).name == name
    assert Path(made.path).parent == tmp_path


def test_files_count_by_their_content_and_nothing_else(api, client, tmp_path):
    picture(api, url="https://api.stability.ai/v2beta/stable-image/upscale/fast")
    for file in ("one.png", "two.png"):
        (tmp_path / file).write_bytes(b"the same")
    paths = {
        client.generate("stable-image/upscale/fast", to=tmp_path, image=image).path
        for image in (b"the same", tmp_path / "one.png", tmp_path / "two.png")
    }
    assert len(paths) == 1
    assert len(api.calls) == 1


def test_whatever_differs_in_the_request_is_another_output(api, client, tmp_path):
    picture(api)
    picture(api, url=URL.replace("core", "ultra"))
    asked = [
        (CORE, {"prompt": "a"}),
        (CORE, {"prompt": "b"}),
        (CORE, {"prompt": "a", "seed": 1}),
        (CORE, {"prompt": "a", "image": b"1"}),
        (CORE, {"prompt": "a", "image": b"2"}),
        (CORE, {"prompt": "a", "image": "1"}),
        (CORE.replace("core", "ultra"), {"prompt": "a"}),
    ]
    assert len({client.generate(endpoint, to=tmp_path, **fields).path for endpoint, fields in asked}) == 7
    assert client.maybe_paid == client.maybe_paid_durably == 7


def test_a_name_of_ones_own_stands_in_place_of_the_hash(api, client, tmp_path):
    picture(api)
    assert client.generate(CORE, to=tmp_path, name="hero-1", prompt="a").path == str(tmp_path / "hero-1.png")
    assert client.generate(CORE, to=tmp_path, name="hero-1", prompt="b").reused
    assert names(tmp_path) == ["hero-1.png", "hero-1.png.json"]


# What is sent


def test_the_form_is_multipart_even_without_a_file(api, client):
    picture(api)
    client.generate(CORE, prompt="ä cat", seed=7, cfg=0.5, flag=True, left_out=None)
    request = api.calls[0].request
    assert request.headers["Content-Type"].startswith("multipart/form-data; boundary=")
    assert request.headers["Accept"] == "image/*"
    body = request.body.decode()
    for name, value in {"prompt": "ä cat", "seed": "7", "cfg": "0.5", "flag": "true"}.items():
        assert f'name="{name}"\r\n\r\n{value}\r\n' in body
    assert "left_out" not in body
    assert "filename" not in body


def test_bytes_and_paths_are_sent_as_files(api, client, tmp_path):
    picture(api)
    (tmp_path / "mask.png").write_bytes(b"MASK")
    client.generate(CORE, image=b"IMAGE", mask=tmp_path / "mask.png")
    body = api.calls[0].request.body
    assert b'name="image"; filename="image"\r\n\r\nIMAGE\r\n' in body
    assert b'name="mask"; filename="mask"\r\n\r\nMASK\r\n' in body


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"endpoint": "/v2beta/stable-image/generate/core"}, "endpoint must be the path below /v2beta/"),
        ({"endpoint": "v2beta/stable-image/generate/core"}, "endpoint must be the path below /v2beta/"),
        ({"endpoint": "stable-image/../user"}, "endpoint must be the path below /v2beta/"),
        ({"endpoint": "stable-image/generate/core?a=1"}, "endpoint must be the path below /v2beta/"),
        ({"on_unknown": "retry"}, "on_unknown must be 'fail' or 'pay_again'; got 'retry'"),
        ({"filtered": True}, "filtered must be 'fail' or 'keep'; got True"),
        ({"name": "x"}, "name needs a folder"),
        ({"conn_id": "x"}, "conn_id needs a folder"),
        ({"to": "FOLDER", "name": "../x"}, "name must be"),
        ({"to": "FOLDER", "name": ".x"}, "name must be"),
        ({"to": "FOLDER", "name": ""}, "name must be"),
        ({"to": "FOLDER", "conn_id": "aws"}, "conn_id belongs to a URL"),
        ({"to": "s3://bucket/images", "conn_id": "aws"}, "conn_id names an Airflow connection"),
        ({"to": Path("s3://bucket/images") / "run"}, "A URL must not be a Path"),
        ({"to": 5}, "The folder '5' cannot be used (TypeError"),
        ({"to": "nowhere://x/y"}, "The folder 'nowhere://x/y' cannot be used"),
        ({"prompt": ["a"]}, "The field prompt must be text, a number, a boolean, bytes or a path; got list."),
        ({"image": Path("/no/such/file")}, "cannot be used (FileNotFoundError"),
        ({"output_format": "../png"}, "output_format must be a format such as png; got '../png'"),
        ({"timeout": 0}, "timeout must be"),
    ],
)
def test_what_cannot_be_sent_is_said_before_anything_is_sent(api, client, tmp_path, arguments, words):
    arguments = {key: str(tmp_path) if value == "FOLDER" else value for key, value in arguments.items()}
    with pytest.raises(StabilityConfigurationError, match=re.escape(words)):
        client.generate(**{"endpoint": CORE, "prompt": "a", **arguments})
    assert not api.calls
    assert names(tmp_path) == []


# Without a folder


def test_a_plain_call_keeps_its_output_in_the_object_only(api, client):
    picture(api)
    made = client.generate(CORE, prompt="a")
    assert made == {"path": None, **FACTS, "reused": False}
    assert made.content == PNG
    assert (client.maybe_paid, client.maybe_paid_durably) == (1, 0)


def test_what_a_task_returns_is_plain_json_without_the_content(api, client, tmp_path):
    picture(api)
    made = client.generate(CORE, to=tmp_path, prompt="a")
    assert isinstance(made, Generation)
    assert json.loads(json.dumps(made)) == {"path": made.path, **FACTS, "reused": False}
    assert type(pickle.loads(pickle.dumps(made))) is dict
    assert "the-picture" not in repr(made)


# With a folder


def test_the_same_call_is_paid_for_once(api, client, tmp_path):
    picture(api)
    folder = tmp_path / "not" / "there"
    first = client.generate(CORE, to=folder, prompt="a")
    again = client.generate(CORE, to=str(folder), prompt="a")
    assert Path(first.path).read_bytes() == first.content == again.content == PNG
    assert first == {"path": first.path, **FACTS, "reused": False}
    assert again == {"path": first.path, **FACTS, "reused": True}
    assert len(api.calls) == 1
    assert names(folder) == [Path(first.path).name, f"{Path(first.path).name}.json"]


def test_an_output_without_its_facts_is_found_too(api, client, tmp_path):
    (tmp_path / "cat.png").write_bytes(PNG)
    made = client.generate(CORE, to=tmp_path, name="cat", prompt="a")
    assert made.reused
    assert made == {
        "path": str(tmp_path / "cat.png"),
        "content_type": "image/png",
        "seed": None,
        "finish_reason": None,
        "request_id": None,
        "reused": True,
    }
    assert not api.calls


def test_the_marker_is_there_before_the_request_and_holds_no_secret(api, client, tmp_path):
    seen = []

    def answer(request):
        seen.append(marker_of(tmp_path).read_text())
        return 200, HEADERS, PNG

    api.add_callback(responses.POST, URL, answer, content_type="image/png")
    client.generate(CORE, to=tmp_path, prompt="a secret prompt", timeout=60)
    facts = json.loads(seen[0])
    assert facts.keys() == {"id", "endpoint", "began", "timeout", "host", "pid"}
    assert (facts["endpoint"], facts["timeout"]) == (CORE, 60)
    assert KEY not in seen[0]
    assert "secret prompt" not in seen[0]


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"id": "e", "name": "bad_request", "errors": ["x"]}, StabilityRequestError),
        (401, {"id": "e", "name": "unauthorized", "errors": ["x"]}, StabilityAuthenticationError),
        (402, {"id": "e", "name": "payment_required", "errors": ["x"]}, StabilityPaymentRequiredError),
        (403, {"id": "e", "name": "content_moderation", "errors": ["x"]}, StabilityModeratedError),
        (404, {"id": "e", "name": "not_found", "errors": ["x"]}, StabilityNotFoundError),
        (413, {"id": "e", "name": "payload_too_large", "errors": ["x"]}, StabilityPayloadTooLargeError),
        (429, {"id": "e", "name": "rate_limit_exceeded", "errors": ["x"]}, StabilityRateLimitError),
        (503, {}, StabilityUnavailableError),
    ],
)
def test_a_refusal_takes_the_marker_away(api, client, tmp_path, status, body, kind):
    api.post(URL, json=body, status=status)
    with pytest.raises(kind):
        client.generate(CORE, to=tmp_path, prompt="a")
    assert names(tmp_path) == []
    assert client.maybe_paid == 0


@pytest.mark.parametrize(
    "answer",
    [
        {"body": requests.ConnectionError("reset")},
        {"body": b"", "content_type": "image/png"},
        {"body": b"<html>", "content_type": "text/html"},
        {"json": {"unexpected": 1}},
        {"json": {"id": "../../user/account"}},
    ],
    ids=["cut", "empty", "html", "json", "no-id"],
)
def test_an_unknown_outcome_leaves_the_marker_and_is_reported_from_then_on(api, client, tmp_path, answer):
    api.post(URL, **answer)
    with pytest.raises(StabilityOutcomeUnknownError):
        client.generate(CORE, to=tmp_path, name="cat", prompt="a")
    assert names(tmp_path) == ["cat.png.paying.json"]
    assert client.maybe_paid == client.maybe_paid_durably == 1
    with pytest.raises(StabilityOutcomeUnknownError, match="may have been paid for already"):
        client.generate(CORE, to=tmp_path, name="cat", prompt="a")
    assert len(api.calls) == 1


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, MemoryError])
def test_a_call_that_is_cut_off_leaves_its_marker(api, client, tmp_path, end):
    def answer(request):
        raise end

    api.add_callback(responses.POST, URL, answer)
    with pytest.raises(end):
        client.generate(CORE, to=tmp_path, name="cat", prompt="a")
    assert names(tmp_path) == ["cat.png.paying.json"]


def test_who_was_about_to_pay_is_told_with_the_two_ways_out(api, client, tmp_path):
    file = left_behind(
        tmp_path,
        began=datetime(2026, 11, 24, 23, 59, tzinfo=UTC),
        dag_id="images",
        run_id="manual",
        task_id="draw",
        map_index=3,
        try_number=2,
        host="worker-1",
    )
    with pytest.raises(StabilityOutcomeUnknownError) as raised:
        client.generate(CORE, to=tmp_path, name="cat", prompt="a")
    assert str(raised.value) == (
        f"POST /v2beta/{CORE} may have been paid for already, and its output is not there: task draw, map "
        "index 3, try 2, DAG images, run manual, host worker-1, begun 2026-11-24 23:59:00 UTC, was about to "
        f'pay. Look at the balance. To pay again, delete the marker {file}, or set on_unknown="pay_again".'
    )
    assert not api.calls


def test_a_marker_that_was_cut_short_is_an_unknown_outcome_too(api, client, tmp_path):
    (tmp_path / "cat.png.paying.json").write_text('{"id": "m')
    with pytest.raises(StabilityOutcomeUnknownError, match="a call, begun at an unknown time, was"):
        client.generate(CORE, to=tmp_path, name="cat", prompt="a", timeout=60)


def test_a_marker_that_was_deleted_lets_the_call_pay(api, client, tmp_path):
    picture(api)
    left_behind(tmp_path).unlink()
    assert not client.generate(CORE, to=tmp_path, name="cat", prompt="a").reused


def test_pay_again_pays_once_more_and_leaves_no_marker(api, client, tmp_path):
    picture(api)
    left_behind(tmp_path)
    made = client.generate(CORE, to=tmp_path, name="cat", prompt="a", on_unknown="pay_again")
    assert not made.reused
    assert names(tmp_path) == ["cat.png", "cat.png.json"]


def test_a_refusal_when_paying_again_keeps_the_first_marker(api, client, tmp_path):
    api.post(URL, json={"id": "e", "name": "payment_required", "errors": ["x"]}, status=402)
    left_behind(tmp_path)
    with pytest.raises(StabilityPaymentRequiredError):
        client.generate(CORE, to=tmp_path, name="cat", prompt="a", on_unknown="pay_again")
    assert names(tmp_path) == ["cat.png.paying.json"]


def test_pay_again_does_not_believe_another_machines_clock(api, client, tmp_path, clock):
    picture(api)
    left_behind(tmp_path, began=datetime.now(UTC) - timedelta(hours=5), timeout=30)
    client.generate(CORE, to=tmp_path, name="cat", prompt="a", on_unknown="pay_again")
    assert 70 <= sum(clock) <= 72  # twice the timeout, and ten seconds for writing


def test_a_call_that_is_under_way_elsewhere_is_waited_for(api, client, tmp_path, clock, monkeypatch):
    file = left_behind(tmp_path, began=datetime.now(UTC), timeout=30)

    def sleep(seconds):
        clock.append(seconds)
        if sum(clock) > 20:
            (tmp_path / "cat.png").write_bytes(PNG)
            file.unlink(missing_ok=True)

    monkeypatch.setattr(module.time, "sleep", sleep)
    assert client.generate(CORE, to=tmp_path, name="cat", prompt="a").reused
    assert not api.calls


def test_a_call_elsewhere_that_is_refused_meanwhile_gives_its_turn_away(
    api, client, tmp_path, clock, monkeypatch
):
    picture(api)
    file = left_behind(tmp_path, began=datetime.now(UTC), timeout=30)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: (clock.append(seconds), file.unlink()))
    assert not client.generate(CORE, to=tmp_path, name="cat", prompt="a").reused
    assert len(api.calls) == 1


def test_a_dead_process_of_this_machine_is_not_waited_for(api, client, tmp_path, clock):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    left_behind(tmp_path, began=datetime.now(UTC), host=socket.gethostname(), pid=process.pid)
    with pytest.raises(StabilityOutcomeUnknownError):
        client.generate(CORE, to=tmp_path, name="cat", prompt="a")
    assert clock == []


def test_an_output_that_is_written_just_before_its_caller_dies_is_found(api, client, tmp_path, monkeypatch):
    left_behind(tmp_path)
    exists, looks = LocalFileSystem.exists, []

    def written_after_the_first_look(self, path, **kwargs):
        looks.append(path)
        if len(looks) == 2:  # the first look is for two names
            (tmp_path / "cat.png").write_bytes(PNG)
            return False
        return exists(self, path, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "exists", written_after_the_first_look)
    assert client.generate(CORE, to=tmp_path, name="cat", prompt="a").reused
    assert not api.calls


@pytest.mark.parametrize(("host", "pid"), [("elsewhere", 1), (None, os.getppid()), (None, "x"), (None, None)])
def test_a_process_that_lives_or_cannot_be_known_is_waited_for(api, client, tmp_path, clock, host, pid):
    host = host or socket.gethostname()
    left_behind(tmp_path, began=datetime.now(UTC), host=host, pid=pid)
    with pytest.raises(StabilityOutcomeUnknownError):
        client.generate(CORE, to=tmp_path, name="cat", prompt="a", timeout=30)
    assert sum(clock) > 60


def test_a_call_of_this_process_that_is_over_is_not_waited_for(api, client, tmp_path, clock):
    api.post(URL, body=requests.ConnectionError("reset"))
    for _ in range(2):
        with pytest.raises(StabilityOutcomeUnknownError):
            client.generate(CORE, to=tmp_path, prompt="a")
    assert clock == []


def test_two_equal_calls_at_once_in_one_process_pay_once(api, tmp_path, monkeypatch):
    monkeypatch.undo()  # the clock runs
    monkeypatch.setattr(module, "MARKER_POLL_SECONDS", 0.01)
    second_waits = threading.Event()
    monkeypatch.setattr(module._log, "info", lambda *_: second_waits.set())

    def answer(request):
        assert second_waits.wait(20)
        return 200, HEADERS, PNG

    api.add_callback(responses.POST, URL, answer, content_type="image/png")

    def make(_):
        with StabilityClient(KEY, retry_deadline=0) as client:
            return client.generate(CORE, to=tmp_path, prompt="a").reused

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(make, range(2))) == [False, True]
    assert len(api.calls) == 1


def test_a_call_that_stays_under_way_is_not_waited_for_longer_than_it_may_take(api, client, tmp_path, clock):
    left_behind(tmp_path, began=datetime.now(UTC) + timedelta(days=1), timeout=30)  # its clock is ahead
    with pytest.raises(StabilityOutcomeUnknownError):
        client.generate(CORE, to=tmp_path, name="cat", prompt="a")
    assert 70 <= sum(clock) <= 72


def test_a_password_in_a_url_is_not_shown(client):
    with pytest.raises(StabilityConfigurationError) as raised:
        client.generate(CORE, to="nowhere://user:S3CRET@host/folder", prompt="a")
    assert "nowhere://user:***@host/folder" in str(raised.value)
    assert "S3CRET" not in str(raised.value)


def test_a_folder_that_cannot_be_written_is_found_out_before_anything_is_paid(api, client, tmp_path):
    picture(api)
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(StabilityConfigurationError, match="Nothing was paid for"):
        client.generate(CORE, to=blocked, prompt="a")
    assert not api.calls


def test_an_output_that_cannot_be_written_was_paid_for_and_keeps_its_marker(
    api, client, tmp_path, monkeypatch
):
    def full(self, path1, path2, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    picture(api)
    monkeypatch.setattr(LocalFileSystem, "mv", full)
    with pytest.raises(StabilityOutcomeUnknownError, match="was paid for, but could not be stored"):
        client.generate(CORE, to=tmp_path, name="cat", prompt="a")
    assert "cat.png.paying.json" in names(tmp_path)


# Blurred images


def test_a_blurred_image_is_an_error_and_is_kept(api, client, tmp_path):
    picture(api, headers={**HEADERS, "finish-reason": "CONTENT_FILTERED"})
    for _ in range(2):  # the second finds it there
        with pytest.raises(StabilityContentFilteredError) as raised:
            client.generate(CORE, to=tmp_path, name="cat", prompt="a")
    assert raised.value.path == str(tmp_path / "cat.filtered.png")
    assert str(tmp_path / "cat.filtered.png") in str(raised.value)
    assert len(api.calls) == 1
    assert names(tmp_path) == ["cat.filtered.png", "cat.png.json"]


def test_a_blurred_image_is_returned_to_those_who_want_it(api, client, tmp_path):
    picture(api, headers={**HEADERS, "finish-reason": "CONTENT_FILTERED"})
    made = [client.generate(CORE, to=tmp_path, name="cat", prompt="a", filtered="keep") for _ in range(2)]
    assert [each.reused for each in made] == [False, True]
    assert {each.finish_reason for each in made} == {"CONTENT_FILTERED"}
    assert made[1].content == PNG
    assert len(api.calls) == 1


def test_a_blurred_image_of_a_plain_call_is_an_error_too(api, client):
    picture(api, headers={**HEADERS, "finish-reason": "CONTENT_FILTERED"})
    with pytest.raises(StabilityContentFilteredError):
        client.generate(CORE, prompt="a")
    assert client.generate(CORE, prompt="a", filtered="keep").content == PNG


# Asynchronous jobs

JOB = "f" * 64
CREATIVE_URL = f"https://api.stability.ai/v2beta/{CREATIVE}"
RESULT_URL = f"https://api.stability.ai/v2beta/results/{JOB}"
WORKS = {"json": {"id": JOB, "status": "in-progress"}, "status": 202}
DONE = {"body": PNG, "headers": HEADERS, "content_type": "image/png"}


@pytest.mark.parametrize("status", [200, 202])
@pytest.mark.parametrize("durable", [True, False])
def test_a_job_is_waited_for_and_asked_for_every_ten_seconds(api, client, tmp_path, clock, status, durable):
    api.post(CREATIVE_URL, json={"id": JOB}, status=status)
    for answer in (WORKS, WORKS, DONE):
        api.get(RESULT_URL, **answer)
    made = client.generate(CREATIVE, to=tmp_path if durable else None, image=b"x")
    assert made.content == PNG
    assert made.seed == 1234
    assert clock == [10, 10]
    assert (client.maybe_paid, client.maybe_paid_durably) == (1, int(durable))
    assert len(names(tmp_path)) == (2 if durable else 0)


def test_the_result_of_a_sound_has_a_path_of_its_own(api, client):
    endpoint = "audio/stable-audio-3/text-to-audio"
    api.post(f"https://api.stability.ai/v2beta/{endpoint}", json={"id": JOB}, status=202)
    api.get(f"https://api.stability.ai/v2beta/audio/results/{JOB}", body=b"ID3", content_type="audio/mpeg")
    made = client.generate(endpoint, prompt="rain")
    assert (made.content, made.content_type) == (b"ID3", "audio/mpeg")


def test_a_client_that_does_not_wait_raises_for_a_job_and_finds_it_again(api, client, tmp_path):
    client.waits_for_jobs = False
    api.post(CREATIVE_URL, json={"id": JOB})
    for answer in (WORKS, WORKS, DONE):
        api.get(RESULT_URL, **answer)
    for _ in range(2):
        with pytest.raises(StabilityJobPendingError) as raised:
            client.generate(CREATIVE, to=tmp_path, name="cat", image=b"x")
        assert raised.value.job_id == JOB
        assert raised.value.result_path == f"/v2beta/results/{JOB}"
        assert json.loads((tmp_path / "cat.png.paying.json").read_text())["job_id"] == JOB
    made = client.generate(CREATIVE, to=tmp_path, name="cat", image=b"x")
    assert not made.reused
    assert client.maybe_paid == 1
    assert names(tmp_path) == ["cat.png", "cat.png.json"]


def test_a_client_that_has_paid_without_a_folder_waits_in_place(api, client, tmp_path, clock):
    client.waits_for_jobs = False
    picture(api)
    api.post(CREATIVE_URL, json={"id": JOB})
    for answer in (WORKS, DONE):
        api.get(RESULT_URL, **answer)
    client.generate(CORE, prompt="a")
    assert client.generate(CREATIVE, to=tmp_path, image=b"x").content == PNG
    assert clock == [10]


def test_a_job_of_a_killed_caller_is_asked_for_and_not_paid_again(api, client, tmp_path):
    left_behind(tmp_path, job_id=JOB)
    api.get(RESULT_URL, **DONE)
    assert client.generate(CREATIVE, to=tmp_path, name="cat", image=b"x").content == PNG
    assert client.maybe_paid == 0
    assert names(tmp_path) == ["cat.png", "cat.png.json"]


def test_a_job_that_is_not_found_says_why_and_keeps_its_marker(api, client, tmp_path):
    left_behind(tmp_path, job_id=JOB)
    api.get(RESULT_URL, json={"id": "e", "name": "not_found", "errors": ["x"]}, status=404)
    with pytest.raises(StabilityNotFoundError) as raised:
        client.generate(CREATIVE, to=tmp_path, name="cat", image=b"x")
    assert f"The job {JOB} was paid for. Its result is kept for 24 hours" in str(raised.value)
    assert "If the key was rotated since, call once more with the old one." in str(raised.value)
    assert names(tmp_path) == ["cat.png.paying.json"]


def test_a_job_whose_content_is_refused_was_not_charged(api, client, tmp_path):
    api.post(CREATIVE_URL, json={"id": JOB})
    api.get(RESULT_URL, json={"id": "e", "name": "content_moderation", "errors": ["x"]}, status=403)
    with pytest.raises(StabilityModeratedError):
        client.generate(CREATIVE, to=tmp_path, image=b"x")
    assert names(tmp_path) == []


def test_a_job_is_waited_for_an_hour_at_most(api, client, tmp_path, clock):
    api.post(CREATIVE_URL, json={"id": JOB})
    api.get(RESULT_URL, **WORKS)
    with pytest.raises(StabilityJobPendingError, match="is not finished after 3600 s"):
        client.generate(CREATIVE, to=tmp_path, name="cat", image=b"x")
    assert 3600 <= sum(clock) <= 3620
    assert names(tmp_path) == ["cat.png.paying.json"]


# What a store shows


def test_nobody_sees_a_part_of_an_output(api, client, tmp_path, monkeypatch):
    written = []

    picture(api)
    move = LocalFileSystem.mv

    def observed(self, path1, path2, **kwargs):
        written.append((Path(path2).name, Path(path2).exists(), Path(path1).read_bytes()))
        move(self, path1, path2, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "mv", observed)
    client.generate(CORE, to=tmp_path, name="cat", prompt="a")
    assert [(name, there) for name, there, _ in written] == [("cat.png.json", False), ("cat.png", False)]
    assert written[-1][2] == PNG


@pytest.mark.parametrize("own", [True, False])
def test_a_store_that_repeats_a_lost_request_may_find_the_own_marker(api, client, tmp_path, monkeypatch, own):
    picture(api)
    open_ = LocalFileSystem.open

    def lost(self, path, mode="rb", **kwargs):
        if mode == "xb" and own:
            with open_(self, path, mode, **kwargs) as file:
                file.write(json.dumps({"id": the_id}).encode())
        if mode == "xb":
            raise FileExistsError(path)
        return open_(self, path, mode, **kwargs)

    the_id = "m1"
    monkeypatch.setattr(module.uuid, "uuid4", lambda: SimpleNamespace(hex=the_id))
    monkeypatch.setattr(LocalFileSystem, "open", lost)
    if own:
        assert not client.generate(CORE, to=tmp_path, name="cat", prompt="a").reused
        assert names(tmp_path) == ["cat.png", "cat.png.json"]
    else:
        left_behind(tmp_path, id="another")
        with pytest.raises(StabilityOutcomeUnknownError):
            client.generate(CORE, to=tmp_path, name="cat", prompt="a")
        assert not api.calls


def test_a_marker_counts_even_if_the_store_overwrites_what_must_be_new(api, client, tmp_path, monkeypatch):
    picture(api)
    open_ = LocalFileSystem.open

    def careless(self, path, mode="rb", **kwargs):
        return open_(self, path, mode.replace("x", "w"), **kwargs)

    monkeypatch.setattr(LocalFileSystem, "open", careless)
    file = left_behind(tmp_path)
    before = file.read_text()
    with pytest.raises(StabilityOutcomeUnknownError):
        client.generate(CORE, to=tmp_path, name="cat", prompt="a")
    assert file.read_text() == before
    assert not api.calls


@pytest.mark.parametrize("error", [OSError(errno.EINVAL, "412"), OSError(errno.EIO, "409")])
def test_a_marker_that_another_caller_has_just_written_counts_whatever_the_store_says(
    api, client, tmp_path, clock, monkeypatch, error
):
    open_ = LocalFileSystem.open

    def another_is_faster(self, path, mode="rb", **kwargs):
        if mode == "xb":
            left_behind(tmp_path, began=datetime.now(UTC), timeout=30)
            raise error
        return open_(self, path, mode, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "open", another_is_faster)
    with pytest.raises(StabilityOutcomeUnknownError):
        client.generate(CORE, to=tmp_path, name="cat", prompt="a")
    assert sum(clock) > 60


def test_one_name_in_two_formats_is_two_calls(api, client, tmp_path):
    def answer(request):
        if b"webp" in request.body:
            assert client.generate(CORE, to=tmp_path, name="cat", prompt="a").reused
            assert "cat.webp.paying.json" in names(tmp_path)
            return 200, {**HEADERS, "seed": "5"}, PNG
        return 200, HEADERS, PNG

    api.add_callback(responses.POST, URL, answer, content_type="image/png")
    client.generate(CORE, to=tmp_path, name="cat", prompt="a")
    webp = client.generate(CORE, to=tmp_path, name="cat", prompt="a", output_format="webp")
    png = client.generate(CORE, to=tmp_path, name="cat", prompt="a")
    assert (webp.seed, png.seed) == (5, 1234)
    assert names(tmp_path) == ["cat.png", "cat.png.json", "cat.webp", "cat.webp.json"]


def test_a_store_that_fails_after_the_marker_leaves_none(api, client, tmp_path, monkeypatch):
    exists, looks = LocalFileSystem.exists, []

    def slow_down(self, path, **kwargs):
        looks.append(path)
        if len(looks) > 2:  # the first look is for two names
            raise OSError(errno.EIO, "slow down")
        return exists(self, path, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "exists", slow_down)
    with pytest.raises(StabilityConfigurationError, match="Nothing was paid for"):
        client.generate(CORE, to=tmp_path, name="cat", prompt="a")
    assert names(tmp_path) == []


def test_a_marker_that_cannot_be_written_whole_is_removed(api, client, tmp_path, monkeypatch):
    open_ = LocalFileSystem.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, content):
            self.file.write(content[:3])
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(self, path, mode="rb", **kwargs):
        file = open_(self, path, mode, **kwargs)
        return Full(file) if mode == "xb" else file

    monkeypatch.setattr(LocalFileSystem, "open", full)
    with pytest.raises(StabilityConfigurationError, match="Nothing was paid for"):
        client.generate(CORE, to=tmp_path, name="cat", prompt="a")
    assert names(tmp_path) == []


def test_calls_in_two_threads_are_counted_each_for_itself(api, tmp_path):
    plain_is_done = threading.Event()
    durable_is_sent = threading.Event()

    def answer(request):
        if b"durable" in request.body:
            durable_is_sent.set()
            assert plain_is_done.wait(20)
        return 200, HEADERS, PNG

    api.add_callback(responses.POST, URL, answer, content_type="image/png")
    with StabilityClient(KEY, retry_deadline=0) as client, ThreadPoolExecutor(1) as pool:
        durable = pool.submit(client.generate, CORE, to=tmp_path, prompt="durable")
        assert durable_is_sent.wait(20)
        client.generate(CORE, prompt="plain")
        plain_is_done.set()
        durable.result()
        assert (client.maybe_paid, client.maybe_paid_durably) == (2, 1)


def test_outputs_have_the_rights_of_any_new_file(api, client, tmp_path):
    picture(api)
    made = client.generate(CORE, to=tmp_path, prompt="a")
    (tmp_path / "other").touch()
    assert stat.S_IMODE(Path(made.path).stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_a_path_object_of_universal_pathlib_is_a_folder_too(api, client):
    from upath import UPath

    picture(api)
    for to in (UPath("memory://bucket/images"), "memory://bucket/images/"):
        made = client.generate(CORE, to=to, name="cat", prompt="a")
        assert made.path == "memory://bucket/images/cat.png"
        assert made.content == PNG
    assert len(api.calls) == 1


@pytest.mark.filterwarnings("ignore")  # Airflow loads its providers, and some of those of 2.11.0 warn
def test_an_object_storage_path_of_airflow_is_a_folder_and_a_file_too(api, client, tmp_path):
    from airflow_stability.compat import ObjectStoragePath

    picture(api, url=f"https://api.stability.ai/v2beta/{ERASE}")
    folder = ObjectStoragePath(f"file://{tmp_path}")
    (tmp_path / "in.png").write_bytes(b"IN")
    made = client.generate(ERASE, to=folder, name="cat", image=folder / "in.png")
    assert b"\r\n\r\nIN\r\n" in api.calls[0].request.body
    assert (tmp_path / "cat.png").read_bytes() == made.content == PNG
