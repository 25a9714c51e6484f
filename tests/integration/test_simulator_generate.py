"""What the simulator generates, over real sockets: what it takes, gives, refuses and charges."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from airflow_stability.client import StabilityClient
from airflow_stability.simulator import Charge, Fault, StabilitySimulator
from airflow_stability.simulator.__main__ import main
from airflow_stability.simulator.endpoints import ENDPOINTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "simulator.md"

CORE = "stable-image/generate/core"
SD3 = "stable-image/generate/sd3"
CREATIVE = "stable-image/upscale/creative"
RELIGHT = "stable-image/edit/replace-background-and-relight"
AUDIO_3 = "audio/stable-audio-3/text-to-audio"

PROMPT = {"prompt": "a lighthouse"}
IMAGE = {"image": b"an image"}

#: Every endpoint of v2beta, with the least that it takes, and its price in credits. By hand: a slip in the
#: simulator's own table shows.
TABLE = {
    CORE: (PROMPT, 3),
    SD3: (PROMPT, 6.5),
    "stable-image/generate/ultra": (PROMPT, 8),
    "stable-image/edit/erase": (IMAGE, 5),
    "stable-image/edit/inpaint": (PROMPT | IMAGE, 5),
    "stable-image/edit/outpaint": (IMAGE | {"left": "8"}, 4),
    "stable-image/edit/search-and-replace": (PROMPT | IMAGE | {"search_prompt": "a dog"}, 5),
    "stable-image/edit/search-and-recolor": (PROMPT | IMAGE | {"select_prompt": "a dog"}, 5),
    "stable-image/edit/remove-background": (IMAGE, 5),
    RELIGHT: ({"subject_image": b"an image", "background_prompt": "a beach"}, 8),
    "stable-image/upscale/fast": (IMAGE, 2),
    "stable-image/upscale/conservative": (PROMPT | IMAGE, 40),
    CREATIVE: (PROMPT | IMAGE, 60),
    "stable-image/control/sketch": (PROMPT | IMAGE, 5),
    "stable-image/control/structure": (PROMPT | IMAGE, 5),
    "stable-image/control/style": (PROMPT | IMAGE, 5),
    "stable-image/control/style-transfer": ({"init_image": b"one", "style_image": b"two"}, 8),
    "3d/stable-fast-3d": (IMAGE, 10),
    "3d/stable-point-aware-3d": (IMAGE, 4),
    "audio/stable-audio-2/text-to-audio": (PROMPT, 20),
    "audio/stable-audio-2/audio-to-audio": (PROMPT | {"audio": b"a sound"}, 20),
    AUDIO_3: (PROMPT, 26),
}
JOBS = {RELIGHT: 200, CREATIVE: 200, AUDIO_3: 202}
#: What each kind of output begins with.
MAGIC = {
    "image/png": b"\x89PNG\r\n",
    "image/jpeg": b"\xff\xd8\xff",
    "image/webp": b"RIFF",
    "audio/mpeg": b"\xff\xfb",
    "audio/wav": b"RIFF",
    "model/gltf-binary": b"glTF",
}


@pytest.fixture
def simulator():
    with StabilitySimulator(credits=1000.0, job_seconds=0.0) as running:
        yield running


def call(simulator, endpoint=CORE, fields=None, accept="*/*", key=None, **more):
    """POST a form to v2beta. Bytes are sent as files."""
    form = (TABLE[endpoint][0] if fields is None else fields) | more
    parts = {name: (name if isinstance(value, bytes) else None, value) for name, value in form.items()}
    return requests.post(
        f"{simulator.url}/v2beta/{endpoint}",
        headers={"Authorization": f"Bearer {key or simulator.api_key}", "Accept": accept},
        files={"none": (None, "")} | parts,
        timeout=5,
    )


def fetch(simulator, path, accept="*/*", key=None):
    headers = {"Authorization": f"Bearer {key or simulator.api_key}", "Accept": accept}
    return requests.get(f"{simulator.url}{path}", headers=headers, timeout=5)


def result(simulator, job_id, **arguments):
    return fetch(simulator, f"/v2beta/results/{job_id}", **arguments)


def control(simulator, method, path, body=None):
    return requests.request(method, f"{simulator.url}/_simulator/{path}", json=body, timeout=5)


def refusal(response):
    body = response.json()
    assert set(body) == {"id", "name", "errors"}
    return (response.status_code, body["name"], *body["errors"])


def assert_nothing_was_charged(simulator):
    assert (simulator.charges, simulator.images_made, simulator.credits()) == ([], 0, 1000.0)


# What it gives


@pytest.mark.parametrize("endpoint", TABLE)
def test_every_endpoint_takes_the_least_and_costs_its_price(simulator, endpoint):
    response = call(simulator, endpoint)
    assert response.status_code == JOBS.get(endpoint, 200)
    (charge,) = simulator.charges
    assert (charge.path, charge.credits) == (f"/v2beta/{endpoint}", TABLE[endpoint][1])
    assert simulator.credits() == 1000.0 - TABLE[endpoint][1]
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
    if endpoint in JOBS:
        assert re.fullmatch("[0-9a-f]{64}", response.json()["id"])
    else:
        assert response.content.startswith(MAGIC[response.headers["Content-Type"]])
        assert response.headers["finish-reason"] == "SUCCESS"
        assert 1 <= int(response.headers["seed"]) <= 4294967294


@pytest.mark.parametrize("endpoint", [each for each in TABLE if each not in JOBS])
def test_every_output_comes_as_bytes_or_inside_json(simulator, endpoint):
    kind = {"3d": "model", "au": "audio"}.get(endpoint[:2], "image")
    as_bytes = call(simulator, endpoint, accept=f"{kind}/*")
    as_json = call(simulator, endpoint, accept="application/json")
    media_type = as_bytes.headers["Content-Type"]
    assert media_type.startswith(f"{kind}/")
    assert as_json.headers["Content-Type"] == f"application/json; type={media_type}"
    assert as_json.json() == {
        kind: base64.b64encode(as_bytes.content).decode(),
        "finish_reason": "SUCCESS",
        "seed": int(as_bytes.headers["seed"]),
    }


@pytest.mark.parametrize(
    ("endpoint", "file_format", "media_type"),
    [
        (CORE, None, "image/png"),
        (CORE, "png", "image/png"),
        (CORE, "jpeg", "image/jpeg"),
        (CORE, "webp", "image/webp"),
        ("audio/stable-audio-2/text-to-audio", None, "audio/mpeg"),
        ("audio/stable-audio-2/text-to-audio", "wav", "audio/wav"),
        ("3d/stable-fast-3d", None, "model/gltf-binary"),
    ],
)
def test_the_output_has_the_format_that_was_asked_for(simulator, endpoint, file_format, media_type):
    response = call(simulator, endpoint, **({} if file_format is None else {"output_format": file_format}))
    assert response.headers["Content-Type"] == media_type
    assert response.content.startswith(MAGIC[media_type])


def test_a_seed_comes_back_and_zero_is_any(simulator):
    assert call(simulator, seed="42").headers["seed"] == "42"
    assert call(simulator, seed="42", accept="application/json").json()["seed"] == 42
    assert call(simulator, seed="0").headers["seed"] != "0"


@pytest.mark.parametrize(
    ("model", "credits"),
    [("sd3.5-large", 6.5), ("sd3.5-large-turbo", 4), ("sd3.5-medium", 3.5), ("sd3.5-flash", 2.5)],
)
def test_sd3_costs_what_its_model_costs(simulator, model, credits):
    assert call(simulator, SD3, model=model).status_code == 200
    assert simulator.credits() == 1000.0 - credits


def test_a_form_with_an_empty_file_is_taken_as_the_vendors_examples_send_it(simulator):
    response = requests.post(
        f"{simulator.url}/v2beta/{CORE}",
        headers={"authorization": f"Bearer {simulator.api_key}", "accept": "image/*"},
        files={"none": ""},
        data={"prompt": "a lighthouse", "output_format": "webp"},
        timeout=5,
    )
    assert (response.status_code, response.headers["Content-Type"]) == (200, "image/webp")


def test_the_page_has_the_table_of_endpoints():
    rows = re.findall(r"^\| `POST (/v\S+)` \| ([\d.]+)", PAGE.read_text(), re.MULTILINE)
    assert {path: float(credits) for path, credits in rows} == {
        endpoint.path: endpoint.price() for endpoint in ENDPOINTS
    }


# What it refuses


@pytest.mark.parametrize("endpoint", TABLE)
def test_every_field_that_is_required_is_named_when_it_is_missing(simulator, endpoint):
    for name in TABLE[endpoint][0]:
        fields = {other: value for other, value in TABLE[endpoint][0].items() if other != name}
        status, kind, *errors = refusal(call(simulator, endpoint, fields))
        assert (status, kind, len(errors)) == (400, "bad_request", 1)
        assert re.match(rf"{name}: .*is required", errors[0])
    assert_nothing_was_charged(simulator)


def test_a_file_without_content_is_missing_and_so_is_a_file_sent_as_text(simulator):
    for image in (b"", "an image"):
        response = call(simulator, "stable-image/upscale/fast", {"image": image})
        assert refusal(response) == (400, "bad_request", "image: is required")
    assert_nothing_was_charged(simulator)


@pytest.mark.parametrize(
    ("endpoint", "field", "value"),
    [
        (CORE, "prompt", "x" * 10_001),
        (CORE, "output_format", "gif"),
        (CORE, "output_format", "mp3"),
        (CORE, "aspect_ratio", "7:3"),
        (CORE, "seed", "4294967295"),
        (CORE, "seed", "-1"),
        (SD3, "model", "sd1"),
        ("stable-image/edit/remove-background", "output_format", "jpeg"),
        ("audio/stable-audio-2/text-to-audio", "output_format", "png"),
        ("audio/stable-audio-2/text-to-audio", "model", "stable-audio-9"),
    ],
)
def test_a_value_that_is_not_valid_gets_400_and_costs_nothing(simulator, endpoint, field, value):
    status, name, *errors = refusal(call(simulator, endpoint, **{field: value}))
    assert (status, name, len(errors)) == (400, "bad_request", 1)
    assert errors[0].startswith(f"{field}: ")
    assert_nothing_was_charged(simulator)


def test_all_that_is_wrong_is_named_at_once(simulator):
    _, _, *errors = refusal(call(simulator, "stable-image/edit/inpaint", {"seed": "x"}))
    assert [sentence.partition(":")[0] for sentence in errors] == ["prompt", "image", "seed"]


def test_what_is_no_multipart_form_gets_the_real_wording(simulator):
    headers = {"Authorization": f"Bearer {simulator.api_key}"}
    response = requests.post(f"{simulator.url}/v2beta/{CORE}", headers=headers, json=PROMPT, timeout=5)
    assert refusal(response) == (400, "bad_request", "content-type: must be multipart/form-data")


@pytest.mark.parametrize("accept", ["text/html", "audio/*", ""])
def test_what_cannot_be_given_gets_400_and_costs_nothing(simulator, accept):
    status, _, error = refusal(call(simulator, accept=accept))
    assert (status, error) == (400, "accept: must be image/* or application/json")
    assert_nothing_was_charged(simulator)


def test_a_body_past_10_mib_gets_413_and_costs_nothing(simulator):
    status, name, error = refusal(call(simulator, image=bytes(10 * 1024 * 1024)))
    assert (status, name) == (413, "payload_too_large")
    assert error == "body: payloads cannot be larger than 10MiB in size"
    assert_nothing_was_charged(simulator)
    assert call(simulator, image=bytes(10 * 1024 * 1024 - 2000)).status_code == 200


@pytest.mark.parametrize("endpoint", TABLE)
def test_too_few_credits_get_402_on_every_endpoint(simulator, endpoint):
    price = TABLE[endpoint][1]
    simulator.set_credits(price - 0.01)
    status, name, error = refusal(call(simulator, endpoint))
    assert (status, name) == (402, "payment_required")
    assert error.startswith(
        "You lack sufficient credits to make this request. Please purchase more credits at "
    )
    assert (simulator.charges, simulator.credits()) == ([], price - 0.01)


def test_a_key_that_is_refused_gets_the_real_wording(simulator):
    response = call(simulator, key="sk-nobody")
    assert refusal(response) == (401, "unauthorized", "authorization: invalid or missing header value")


def test_a_lock_out_has_the_real_wording_and_id():
    with StabilitySimulator() as simulator:
        responses = [fetch(simulator, "/v2beta/results/0") for _ in range(151)]
    body = responses[-1].json()
    assert responses[-1].status_code == 429
    assert body["id"] == body["name"] == "rate_limit_exceeded"
    (error,) = body["errors"]
    assert error.startswith("You have exceeded the rate limit of 150 requests within a 10 second period, ")
    assert error.endswith("have been timed out for 60 seconds.")


def test_a_failure_of_the_server_has_the_name_of_its_version(simulator):
    simulator.inject(Fault.status(500))
    assert call(simulator).json()["name"] == "internal_error"
    assert fetch(simulator, "/v1/user/balance").json()["name"] == "server_error"


# Keys in a 401


@pytest.mark.parametrize("path", ["/v1/user/balance", "/v1/engines/list"])
def test_v1_repeats_a_key_that_it_refuses_only_if_told_to(simulator, path):
    assert fetch(simulator, path, key="sk-nobody").json()["message"] == "Incorrect API key provided"
    simulator.repeat_keys = True
    assert (
        fetch(simulator, path, key="sk-nobody").json()["message"] == "Incorrect API key provided: sk-nobody"
    )
    missing = requests.get(simulator.url + path, timeout=5)
    assert missing.json()["message"] == "missing authorization header"


def test_the_other_versions_never_repeat_a_key(simulator):
    simulator.repeat_keys = True
    headers = {"Authorization": "sk-nobody"}
    alpha = requests.get(f"{simulator.url}/v1alpha/user/balance", headers=headers, timeout=5)
    assert alpha.status_code == 401
    assert "sk-nobody" not in alpha.text + call(simulator, key="sk-nobody").text


# Moderation


@pytest.mark.parametrize(
    ("objection", "status", "name"),
    [
        ("refuse", 403, "content_moderation"),
        ("public_figure", 422, "public_figure"),
        ("invalid_language", 422, "invalid_language"),
    ],
)
@pytest.mark.parametrize("endpoint", [CORE, CREATIVE])
def test_a_prompt_that_is_objected_to_is_refused_and_costs_nothing(
    simulator, endpoint, objection, status, name
):
    simulator.moderate("Lighthouse", objection)
    assert refusal(call(simulator, endpoint))[:2] == (status, name)
    assert_nothing_was_charged(simulator)
    assert call(simulator, endpoint, prompt="a beach").status_code == 200
    simulator.clear_moderation()
    assert call(simulator, endpoint).status_code == 200


def test_a_refusal_by_the_moderation_says_that_nothing_was_charged(simulator):
    simulator.moderate("lighthouse")
    error = refusal(call(simulator))[2]
    assert error.startswith("Your request was flagged by our content moderation system")
    assert error.endswith("your request was denied and you were not charged.")


def test_every_prompt_of_a_form_is_moderated_but_not_the_negative_one(simulator):
    simulator.moderate("dog")
    assert call(simulator, "stable-image/edit/search-and-replace").status_code == 403
    assert call(simulator, negative_prompt="dog").status_code == 200


def test_a_blurred_picture_is_a_200_that_says_so_and_is_charged(simulator):
    sharp = call(simulator)
    simulator.moderate("lighthouse", "blur")
    blurred, in_json = call(simulator), call(simulator, accept="application/json")
    assert (blurred.status_code, blurred.headers["finish-reason"]) == (200, "CONTENT_FILTERED")
    assert in_json.json()["finish_reason"] == "CONTENT_FILTERED"
    assert blurred.content.startswith(MAGIC["image/png"])
    assert blurred.content != sharp.content
    assert simulator.images_made == 3


# Asynchronous calls


@pytest.mark.parametrize("endpoint", JOBS)
def test_a_job_is_paid_for_when_it_starts_and_gives_its_output_when_it_is_done(simulator, endpoint):
    simulator.job_seconds = 600
    job = call(simulator, endpoint).json()["id"]
    path = "/v2beta/audio/results/" if endpoint == AUDIO_3 else "/v2beta/results/"
    assert len(simulator.charges) == 1
    waiting = fetch(simulator, path + job)
    assert (waiting.status_code, waiting.json()) == (202, {"id": job, "status": "in-progress"})
    simulator.job_seconds = 0
    done = fetch(simulator, path + job)
    assert done.status_code == 200
    assert done.content.startswith(MAGIC[done.headers["Content-Type"]])
    assert done.headers["finish-reason"] == "SUCCESS"
    in_json = fetch(simulator, path + job, accept="application/json").json()
    assert base64.b64decode(in_json["result"]) == done.content
    assert (in_json["finish_reason"], str(in_json["seed"])) == ("SUCCESS", done.headers["seed"])
    assert len(simulator.charges) == 1  # asking is free


def test_a_job_takes_its_time_by_itself():
    with StabilitySimulator(credits=1000.0, job_seconds=0.3) as simulator:
        job = call(simulator, CREATIVE).json()["id"]
        assert result(simulator, job).status_code == 202
        time.sleep(0.35)
        assert result(simulator, job).status_code == 200


def test_a_job_keeps_its_format_and_seed(simulator):
    job = call(simulator, CREATIVE, output_format="webp", seed="9").json()["id"]
    done = result(simulator, job)
    assert (done.headers["Content-Type"], done.headers["seed"]) == ("image/webp", "9")


def test_a_job_of_a_blurred_picture_says_so_in_its_result(simulator):
    simulator.moderate("lighthouse", "blur")
    assert (
        result(simulator, call(simulator, CREATIVE).json()["id"]).headers["finish-reason"]
        == "CONTENT_FILTERED"
    )


def test_the_older_path_of_a_creative_upscale_works_for_that_alone(simulator):
    jobs = [call(simulator, endpoint).json()["id"] for endpoint in (CREATIVE, RELIGHT)]
    path = "/v2beta/stable-image/upscale/creative/result/"
    assert [fetch(simulator, path + job).status_code for job in jobs] == [200, 404]


def test_results_of_sounds_and_pictures_have_a_path_each(simulator):
    jobs = [call(simulator, endpoint).json()["id"] for endpoint in (CREATIVE, AUDIO_3)]
    paths = ("/v2beta/results/", "/v2beta/audio/results/")
    assert [[fetch(simulator, path + job).status_code for job in jobs] for path in paths] == [
        [200, 404],
        [404, 200],
    ]


def test_another_key_than_the_one_that_started_a_job_gets_404_even_of_the_same_account(simulator):
    job = call(simulator, CREATIVE).json()["id"]
    status, name, _ = refusal(result(simulator, job, key=simulator.add_key()))
    assert (status, name) == (404, "not_found")
    old = simulator.api_key
    assert result(simulator, job, key=simulator.rotate_key(old)).status_code == 404
    assert result(simulator, job, key=old).status_code == 401


def test_an_unknown_job_gets_404(simulator):
    assert refusal(result(simulator, "0" * 64))[:2] == (404, "not_found")


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), True, "5"])
def test_what_is_no_time_for_a_job_is_a_value_error(simulator, seconds):
    with pytest.raises(ValueError, match="job_seconds"):
        simulator.job_seconds = seconds
    assert simulator.job_seconds == 0.0


# v1


def text_to_image(simulator, engine="stable-diffusion-xl-1024-v1-0", accept="application/json", **body):
    return requests.post(
        f"{simulator.url}/v1/generation/{engine}/text-to-image",
        headers={"Authorization": f"Bearer {simulator.api_key}", "Accept": accept},
        json={"text_prompts": [{"text": "a lighthouse"}]} | body,
        timeout=5,
    )


def v1_form(simulator, call, fields, organization=None):
    headers = {"Authorization": f"Bearer {simulator.api_key}"}
    if organization is not None:
        headers["Organization"] = organization
    parts = {name: (name if isinstance(value, bytes) else None, value) for name, value in fields.items()}
    url = f"{simulator.url}/v1/generation/stable-diffusion-v1-6/{call}"
    return requests.post(url, headers=headers, files={"none": (None, "")} | parts, timeout=5)


def test_engines_are_listed(simulator):
    engines = fetch(simulator, "/v1/engines/list").json()
    assert "stable-diffusion-xl-1024-v1-0" in [engine["id"] for engine in engines]
    assert all(set(engine) == {"id", "name", "description", "type"} for engine in engines)


def test_v1_makes_as_many_pictures_as_it_is_asked_for_and_charges_each(simulator):
    response = text_to_image(simulator, samples=3, seed=5)
    artifacts = response.json()["artifacts"]
    assert all(base64.b64decode(artifact["base64"]).startswith(MAGIC["image/png"]) for artifact in artifacts)
    assert [artifact["finishReason"] for artifact in artifacts] == ["SUCCESS"] * 3
    assert artifacts[0]["seed"] == 5
    assert len({artifact["base64"] for artifact in artifacts}) == 3
    (charge,) = simulator.charges
    assert charge.credits == pytest.approx(2.7)
    assert simulator.credits() == pytest.approx(997.3)


def test_v1_gives_a_picture_as_bytes_if_asked_to(simulator):
    response = text_to_image(simulator, accept="image/png", seed=5)
    assert (response.status_code, response.headers["Content-Type"]) == (200, "image/png")
    assert (response.headers["finish-reason"], response.headers["seed"]) == ("SUCCESS", "5")
    assert response.content.startswith(MAGIC["image/png"])


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        ("image-to-image", {"init_image": b"an image", "text_prompts[0][text]": "a lighthouse"}),
        ("image-to-image/masking", {"init_image": b"an image", "text_prompts[0][text]": "a lighthouse"}),
        ("image-to-image/upscale", {"image": b"an image"}),
    ],
)
def test_v1_takes_images_as_forms(simulator, call, fields):
    response = v1_form(simulator, call, fields)
    assert response.status_code == 200
    assert len(response.json()["artifacts"]) == 1
    for name in fields:
        missing = v1_form(simulator, call, {other: fields[other] for other in fields if other != name})
        assert missing.status_code == 400
        assert missing.json()["message"] == f"{name.partition('[')[0]}: is required"
    assert len(simulator.charges) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"text_prompts": []}, "text_prompts"),
        ({"text_prompts": [{"text": " "}]}, "text_prompts"),
        ({"text_prompts": [{}]}, "text_prompts"),
        ({"text_prompts": [{"text": 5}]}, "text_prompts"),
        ({"text_prompts": None}, "text_prompts"),
        ({"samples": 0}, "samples"),
        ({"samples": 11}, "samples"),
        ({"samples": "2"}, "samples"),
        ({"samples": True}, "samples"),
        ({"seed": -1}, "seed"),
    ],
)
def test_v1_refuses_what_is_not_valid_and_charges_nothing(simulator, body, field):
    response = text_to_image(simulator, **body)
    assert (response.status_code, response.json()["name"]) == (400, "bad_request")
    assert response.json()["message"].startswith(f"{field}: ")
    assert_nothing_was_charged(simulator)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b"\xff"])
def test_v1_refuses_what_is_no_json_object(simulator, body):
    response = requests.post(
        f"{simulator.url}/v1/generation/stable-diffusion-v1-6/text-to-image",
        headers={"Authorization": f"Bearer {simulator.api_key}", "Content-Type": "application/json"},
        data=body,
        timeout=5,
    )
    assert (response.status_code, set(response.json())) == (400, {"id", "name", "message"})


def test_v1_knows_its_engines(simulator):
    response = text_to_image(simulator, engine="stable-nothing")
    assert (response.status_code, response.json()["name"]) == (404, "not_found")


def test_v1_refuses_too_few_credits_and_what_is_objected_to(simulator):
    simulator.moderate("lighthouse")
    refused = text_to_image(simulator)
    assert (refused.status_code, refused.json()["name"]) == (400, "invalid_prompts")
    simulator.moderate("lighthouse", "blur")
    assert text_to_image(simulator).json()["artifacts"][0]["finishReason"] == "CONTENT_FILTERED"
    simulator.set_credits(0.8)
    poor = text_to_image(simulator)
    assert (poor.status_code, poor.json()["name"]) == (402, "payment_required")
    assert len(simulator.charges) == 1


def test_v1_charges_the_organization_that_the_header_names(simulator):
    simulator.set_credits(10.0, organization="org-other")
    fields = {"image": b"an image"}
    assert v1_form(simulator, "image-to-image/upscale", fields, "org-other").status_code == 200
    assert v1_form(simulator, "image-to-image/upscale", fields, "org-nobody").status_code == 403
    assert (simulator.credits(), simulator.credits("org-other")) == (1000.0, pytest.approx(9.1))
    assert [charge.organization for charge in simulator.charges] == ["org-other"]


def test_v1_that_is_switched_off_generates_nothing(simulator):
    simulator.switch_off("v1", status=410)
    assert text_to_image(simulator).status_code == 410
    assert fetch(simulator, "/v1/engines/list").status_code == 410


# The books


def test_the_books_say_when_what_and_who(simulator):
    before = time.time()
    call(simulator)
    (charge,) = simulator.charges
    assert isinstance(charge, Charge)
    assert before <= charge.at <= time.time()
    assert (charge.path, charge.credits) == (f"/v2beta/{CORE}", 3.0)
    assert (charge.key_label, charge.organization) == ("key-1", "org-default")
    assert re.fullmatch("[0-9a-f]{64}", charge.request)


def test_equal_requests_have_equal_digests_and_others_have_others(simulator):
    call(simulator, seed="1")
    call(simulator, CORE, {"seed": "1"} | PROMPT)  # in another order
    call(simulator, seed="1", accept="application/json", key=simulator.add_key())
    call(simulator, seed="2")
    call(simulator, "stable-image/generate/ultra", seed="1")
    call(simulator, seed="1", image=b"one")
    call(simulator, seed="1", image=b"two")
    digests = [charge.request for charge in simulator.charges]
    assert digests[0] == digests[1] == digests[2]
    assert len(set(digests)) == 5


def test_the_digest_of_v1_is_that_of_the_json_and_not_of_its_spelling(simulator):
    for body in (
        b'{"text_prompts":[{"text":"sea"}],"seed":1}',
        b'{ "seed": 1, "text_prompts": [{"text": "sea"}]}',
    ):
        requests.post(
            f"{simulator.url}/v1/generation/stable-diffusion-v1-6/text-to-image",
            headers={"Authorization": f"Bearer {simulator.api_key}"},
            data=body,
            timeout=5,
        )
    text_to_image(simulator, engine="stable-diffusion-v1-6", text_prompts=[{"text": "sea"}], seed=2)
    first, second, other = [charge.request for charge in simulator.charges]
    assert first == second != other


def test_only_what_was_paid_for_is_in_the_books(simulator):
    simulator.set_credits(3.0)
    statuses = [call(simulator, **more).status_code for more in ({"seed": "x"}, {}, {})]
    assert statuses == [400, 200, 402]
    assert len(simulator.charges) == simulator.images_made == 1
    assert simulator.charges is not simulator.charges


def test_the_books_keep_the_label_of_the_key_that_paid(simulator):
    call(simulator)
    new = simulator.rotate_key(simulator.api_key)
    call(simulator, key=new)
    assert [charge.key_label for charge in simulator.charges] == ["key-1", "key-2"]
    assert new not in repr(simulator.charges) + str(simulator.state())


# Faults


@pytest.mark.parametrize("endpoint", [CREATIVE, "3d/stable-fast-3d", AUDIO_3])
def test_a_hang_comes_before_or_after_the_payment_on_every_endpoint(simulator, endpoint):
    for fault, paid in ((Fault.hang(), 0), (Fault.hang(after_work=True), 1)):
        simulator.inject(fault, times=1)
        seen, charged = len(simulator.requests), len(simulator.charges)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(call, simulator, endpoint)
            end = time.monotonic() + 5
            while len(simulator.requests) == seen or len(simulator.charges) < charged + paid:
                assert time.monotonic() < end
                time.sleep(0.01)
            assert not asked.done()
            assert len(simulator.charges) == charged + paid
            simulator.clear_faults()
            assert asked.result(5).status_code in (200, 202)
        assert len(simulator.charges) == charged + 1


# The client that it tests


def test_the_client_of_this_package_is_told_what_the_moderation_said(simulator):
    simulator.moderate("lighthouse")
    with StabilityClient(simulator.api_key, base_url=simulator.url) as client:
        with pytest.raises(Exception, match="content_moderation") as refused:
            client.request("POST", f"/v2beta/{CORE}", files={"prompt": (None, "a lighthouse")})
        assert client.maybe_paid == 0
    assert type(refused.value).__name__ == "StabilityModeratedError"


# The controls over HTTP


def test_the_books_over_http(simulator):
    call(simulator)
    (charge,) = control(simulator, "GET", "charges").json()
    assert Charge(**charge) == simulator.charges[0]
    assert control(simulator, "GET", "state").json()["charges"] == [charge]


def test_moderation_over_http(simulator):
    assert control(simulator, "POST", "moderation", {"word": "lighthouse"}).status_code == 200
    assert control(simulator, "POST", "moderation", {"word": "sea", "objection": "blur"}).status_code == 200
    assert control(simulator, "GET", "state").json()["moderation"] == {"lighthouse": "refuse", "sea": "blur"}
    assert call(simulator).status_code == 403
    control(simulator, "DELETE", "moderation")
    assert call(simulator).status_code == 200


def test_settings_over_http(simulator):
    assert control(simulator, "POST", "settings", {"job_seconds": 600}).status_code == 200
    assert result(simulator, call(simulator, CREATIVE).json()["id"]).status_code == 202
    assert control(simulator, "POST", "settings", {"repeat_keys": True}).status_code == 200
    assert "sk-nobody" in fetch(simulator, "/v1/user/balance", key="sk-nobody").text
    state = control(simulator, "GET", "state").json()
    assert (state["job_seconds"], state["repeat_keys"]) == (600.0, True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("settings", {"job_seconds": -1}),
        ("settings", {"job_seconds": "5"}),
        ("settings", {"repeat_keys": "yes"}),
        ("settings", {"speed": 1}),
        ("moderation", {"word": ""}),
        ("moderation", {"word": "sea", "objection": "dislike"}),
        ("moderation", {}),
    ],
)
def test_bad_input_over_http_changes_nothing(simulator, path, body):
    before = simulator.state()
    response = control(simulator, "POST", path, body)
    assert response.status_code in (400, 422)
    assert re.fullmatch(r"[^\n]+\.", response.json()["detail"])
    assert simulator.state() == before


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return the paths of a certificate for 127.0.0.1 and of its private key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private_key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder(name, name)
        .public_key(private_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private_key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    certfile, keyfile = folder / "certificate.pem", folder / "key.pem"
    certfile.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    keyfile.write_bytes(
        private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return certfile, keyfile


@pytest.fixture
def secure(certificate):
    certfile, keyfile = certificate
    with StabilitySimulator(certfile=certfile, keyfile=keyfile) as running:
        yield running


def test_with_a_certificate_it_speaks_tls_and_its_addresses_say_so(secure, certificate):
    assert secure.url == f"https://127.0.0.1:{secure.port}"
    assert secure.connection_uri().endswith("/https")
    with StabilityClient(secure.api_key, base_url=secure.url, ca_bundle=str(certificate[0])) as client:
        assert client.get_balance().credits == 25.0
        assert client.request("POST", f"/v2beta/{CORE}", files={"prompt": (None, "sea")}).status_code == 200
    with pytest.raises(requests.exceptions.SSLError):
        fetch(secure, "/v1/user/balance")
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{secure.port}/v1/user/balance", timeout=5)


def test_the_hook_reads_the_connection_of_a_simulator_with_tls(secure, certificate, monkeypatch):
    from airflow_stability.hooks.stability import StabilityHook

    uri = f"{secure.connection_uri()}?ca_bundle={certificate[0]}"
    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", uri)
    assert StabilityHook().get_balance().credits == 25.0


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        (Fault.reset(), requests.ConnectionError),
        (Fault.reset(after_work=True), requests.ConnectionError),
        (Fault.truncated(), requests.exceptions.ChunkedEncodingError),
        (Fault.hang(), requests.ReadTimeout),
    ],
    ids=["reset", "reset after work", "truncated", "hang"],
)
def test_faults_work_over_tls(secure, certificate, fault, failure):
    secure.inject(fault, times=1)
    headers = {"Authorization": f"Bearer {secure.api_key}"}
    with pytest.raises(failure):
        requests.get(
            f"{secure.url}/v1/user/balance", headers=headers, timeout=0.5, verify=str(certificate[0])
        )


def test_a_simulator_with_tls_stops_at_once_with_a_connection_open(certificate):
    context = ssl.create_default_context(cafile=certificate[0])
    with StabilitySimulator(certfile=certificate[0], keyfile=certificate[1]) as simulator:
        plain = socket.create_connection((simulator.host, simulator.port), timeout=5)
        connection = context.wrap_socket(plain, server_hostname="127.0.0.1")
        begun = time.monotonic()
    assert time.monotonic() - begun < 2.0
    connection.close()


def test_what_is_no_certificate_is_an_error_at_once(certificate, tmp_path):
    with pytest.raises(OSError, match="No such file"):
        StabilitySimulator(certfile=tmp_path / "nothing.pem")
    with pytest.raises(ssl.SSLError):
        StabilitySimulator(certfile=certificate[0])  # without its private key
    with pytest.raises(ValueError, match="needs a certfile"):
        StabilitySimulator(keyfile=certificate[1])


@pytest.mark.parametrize(
    "arguments",
    [["--job-seconds", "-1"], ["--certfile", "/nowhere"], ["--keyfile", "/nowhere"]],
)
def test_bad_options_end_the_command_line_with_one_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert re.search(r"error: .+\n$", capsys.readouterr().err)


def test_the_command_line_takes_the_same_settings(certificate):
    certfile, keyfile = map(str, certificate)
    options = ["--certfile", certfile, "--keyfile", keyfile, "--job-seconds", "600", "--repeat-keys"]
    command = [sys.executable, "-W", "error", "-m", "airflow_stability.simulator", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"https://\S+", process.stdout.readline())[0]
            assert "/https" in process.stdout.readline()
            state = requests.get(f"{url}/_simulator/state", verify=certfile, timeout=5).json()
            process.send_signal(signal.SIGTERM)
            assert (process.wait(5), process.stderr.read()) == (0, "")
        finally:
            process.kill()
    assert (state["job_seconds"], state["repeat_keys"]) == (600.0, True)
