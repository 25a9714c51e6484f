"""The simulator over real sockets: what the API documents, and what the simulator promises its users."""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import logging
import math
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import requests

from airflow_stability.client import StabilityClient
from airflow_stability.errors import StabilityOutcomeUnknownError
from airflow_stability.simulator import Fault, RateLimit, StabilitySimulator
from airflow_stability.simulator.__main__ import main

ACCOUNT = ("/v1alpha/user/account", "/v1/user/account")
BALANCE = ("/v1alpha/user/balance", "/v1/user/balance")
GENERATE = "/v2beta/stable-image/generate/core"
SHAPES = {
    "/v1alpha/user/balance": {"id", "name", "message", "temporary", "timeout", "fault"},
    "/v1/user/balance": {"id", "name", "message"},
    GENERATE: {"id", "name", "errors"},
}


@pytest.fixture
def simulator():
    with StabilitySimulator() as running:
        yield running


def authorization(path, key):
    return {"Authorization": key if path.startswith("/v1alpha/") else f"Bearer {key}"}


def get(simulator, path, key=None, timeout=5.0, **headers):
    sent = authorization(path, key or simulator.api_key) | headers
    return requests.get(simulator.url + path, headers=sent, timeout=timeout, allow_redirects=False)


def post(simulator, path=GENERATE, key=None, prompt="a lighthouse", accept="image/*", timeout=5.0, **headers):
    sent = authorization(path, key or simulator.api_key) | {"Accept": accept} | headers
    form = {"none": (None, "")} | ({} if prompt is None else {"prompt": (None, prompt)})
    return requests.post(simulator.url + path, headers=sent, files=form, timeout=timeout)


def ask(simulator, path):
    return post(simulator) if path == GENERATE else get(simulator, path)


def control(simulator, method, path, body=None):
    return requests.request(method, f"{simulator.url}/_simulator/{path}", json=body, timeout=5)


@contextlib.contextmanager
def raw_request(simulator, path="/v1/user/balance"):
    """A GET on a bare socket that was sent, and whose response was not read yet."""
    with socket.create_connection((simulator.host, simulator.port), timeout=5) as connection:
        lines = [
            f"GET {path} HTTP/1.1",
            "Host: simulator",
            f"Authorization: Bearer {simulator.api_key}",
            "",
            "",
        ]
        connection.sendall("\r\n".join(lines).encode())
        yield connection


def read_all(connection):
    return b"".join(iter(lambda: connection.recv(65536), b""))


def wait_for(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never became true"
        time.sleep(0.01)


# The account and the balance


@pytest.mark.parametrize("path", ACCOUNT)
def test_account_has_exactly_the_documented_fields(simulator, path):
    response = get(simulator, path)
    assert response.status_code == 200
    assert response.json() == {
        "id": "user-1",
        "email": "user-1@example.com",
        "organizations": [
            {"id": "org-default", "name": "Default Organization", "role": "MEMBER", "is_default": True},
            {"id": "org-other", "name": "Other Organization", "role": "MEMBER", "is_default": False},
        ],
    }


def test_profile_picture_is_there_for_an_account_that_has_one(simulator):
    picture = "https://example.com/picture.png"
    simulator.add_account("user-2", "two@example.com", ["org-other"], profile_picture=picture)
    key = simulator.add_key(account="user-2")
    assert get(simulator, "/v1/user/account", key).json()["profile_picture"] == picture


@pytest.mark.parametrize("path", BALANCE)
def test_balance_is_the_double_that_was_set(simulator, path):
    simulator.set_credits(0.6336833840314097)
    assert get(simulator, path).json() == {"credits": 0.6336833840314097}


@pytest.mark.parametrize("path", ACCOUNT + BALANCE)
def test_the_other_versions_form_of_a_key_is_a_wrong_key(simulator, path):
    key = simulator.api_key
    wrong = f"Bearer {key}" if path.startswith("/v1alpha/") else key
    response = requests.get(simulator.url + path, headers={"Authorization": wrong}, timeout=5)
    assert (response.status_code, response.json()["name"]) == (401, "unauthorized")


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize("header", [None, "sk-nobody", "Bearer sk-nobody", "Bearer", "Basic sk-nobody"])
def test_no_key_and_a_wrong_key_get_401_in_the_versions_shape(simulator, path, header):
    method = "POST" if path == GENERATE else "GET"
    headers = {} if header is None else {"Authorization": header}
    response = requests.request(method, simulator.url + path, headers=headers, timeout=5)
    assert response.status_code == 401
    assert set(response.json()) == SHAPES[path]
    assert response.json()["name"] == "unauthorized"
    assert "sk-nobody" not in response.text


def test_v1alpha_error_flags_are_booleans_that_advise(simulator):
    simulator.inject(Fault.status(503), times=1)
    simulator.inject(Fault.status(504), times=1)
    responses = [get(simulator, BALANCE[0], key).json() for key in (None, None, "sk-nobody")]
    flags = [[response[name] for name in ("temporary", "timeout", "fault")] for response in responses]
    assert flags == [[True, False, True], [True, True, True], [False, False, False]]


def test_every_failure_has_an_id_of_its_own(simulator):
    ids = [get(simulator, path, key="sk-nobody").json()["id"] for path in BALANCE * 3]
    assert len(set(ids)) == 6
    assert all(re.fullmatch("[0-9a-f]{32}", identifier) for identifier in ids)


def test_unknown_endpoints_and_methods_get_api_errors(simulator):
    missing = get(simulator, "/v1/user/nothing")
    wrong = requests.post(simulator.url + BALANCE[0], timeout=5)
    elsewhere = get(simulator, "/docs")
    assert (missing.status_code, set(missing.json())) == (404, {"id", "name", "message"})
    assert (wrong.status_code, wrong.json()["name"]) == (405, "method_not_allowed")
    assert (elsewhere.status_code, set(elsewhere.json())) == (404, {"id", "name", "errors"})


# Organizations


@pytest.mark.parametrize("path", BALANCE)
def test_the_organization_is_a_header(simulator, path):
    simulator.set_credits(7.5, organization="org-other")
    assert get(simulator, path, Organization="org-other").json() == {"credits": 7.5}
    assert get(simulator, f"{path}?organization=org-other").json() == {"credits": 25.0}


@pytest.mark.parametrize("path", BALANCE)
def test_an_empty_organization_is_refused(simulator, path):
    response = get(simulator, path, Organization="")
    assert (response.status_code, response.json()["name"]) == (400, "bad_request")


@pytest.mark.parametrize("path", BALANCE)
@pytest.mark.parametrize("organization", ["org-nowhere", "org-strangers"])
def test_an_organization_that_is_not_the_accounts_is_refused(simulator, path, organization):
    simulator.add_organization("org-strangers", credits=100.0)
    response = get(simulator, path, Organization=organization)
    assert (response.status_code, response.json()["name"]) == (403, "permission_denied")


def test_each_key_sees_the_default_organization_of_its_own_account(simulator):
    simulator.set_credits(3.25, organization="org-other")
    simulator.add_account("user-2", "two@example.com", ["org-other", "org-default"])
    key = simulator.add_key(account="user-2")
    assert get(simulator, "/v1/user/balance", key).json() == {"credits": 3.25}
    assert get(simulator, "/v1/user/balance").json() == {"credits": 25.0}


def test_an_added_organization_is_seen_by_its_members(simulator):
    simulator.add_organization("org-new", name="New", credits=1.5, accounts=["user-1"])
    assert get(simulator, "/v1/user/balance", Organization="org-new").json() == {"credits": 1.5}
    memberships = get(simulator, "/v1/user/account").json()["organizations"]
    assert memberships[-1] == {"id": "org-new", "name": "New", "role": "MEMBER", "is_default": False}


# Spending


def chunks_of(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    position, found = 8, {}
    while position < len(png):
        (length,) = struct.unpack_from(">I", png, position)
        kind, data = png[position + 4 : position + 8], png[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack_from(">I", png, position + 8 + length)
        assert checksum == zlib.crc32(kind + data)
        found[kind] = data
        position += 12 + length
    assert list(found) == [b"IHDR", b"IDAT", b"IEND"]
    return found


@pytest.mark.parametrize("accept", ["image/*", "*/*", "image/png"])
def test_an_image_is_a_valid_png(simulator, accept):
    response = post(simulator, accept=accept)
    assert (response.status_code, response.headers["Content-Type"]) == (200, "image/png")
    chunks = chunks_of(response.content)
    width, height, depth, colour = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    assert (depth, colour) == (8, 2)
    assert len(zlib.decompress(chunks[b"IDAT"])) == height * (1 + 3 * width)


def test_an_image_follows_from_its_prompt(simulator):
    first, again, other = (post(simulator, prompt=prompt).content for prompt in ("sea", "sea", "sky"))
    assert first == again != other


def test_an_image_inside_json(simulator):
    response = post(simulator, accept="application/json")
    assert response.headers["Content-Type"] == "application/json; type=image/png"
    body = response.json()
    assert set(body) == {"image", "finish_reason", "seed"}
    assert base64.b64decode(body["image"], validate=True) == post(simulator).content
    assert body["finish_reason"] == "SUCCESS"
    assert isinstance(body["seed"], int)


def test_an_image_costs_three_credits_of_the_default_organization_whatever_the_header(simulator):
    simulator.set_credits(100.0, organization="org-other")
    assert post(simulator, Organization="org-other").status_code == 200
    assert (simulator.credits(), simulator.credits("org-other")) == (22.0, 100.0)
    assert simulator.images_made == 1


@pytest.mark.parametrize("credits", [0.0, 2.999])
def test_too_few_credits_get_402_and_cost_nothing(simulator, credits):
    simulator.set_credits(credits)
    response = post(simulator)
    assert response.status_code == 402
    assert set(response.json()) == {"id", "name", "errors"}
    assert response.json()["name"] == "payment_required"
    assert all(isinstance(sentence, str) for sentence in response.json()["errors"])
    assert (simulator.credits(), simulator.images_made) == (credits, 0)


def test_refused_images_can_be_counted_in_the_log(simulator):
    simulator.set_credits(3.0)
    for _ in range(3):
        post(simulator)
    refused = [record for record in simulator.requests if record.status == 402]
    assert [(record.method, record.path) for record in refused] == [("POST", GENERATE)] * 2
    assert simulator.images_made == 1


def test_the_last_three_credits_can_be_spent(simulator):
    simulator.set_credits(3.0)
    assert [post(simulator).status_code for _ in range(2)] == [200, 402]
    assert simulator.credits() == 0.0


@pytest.mark.parametrize("prompt", [None, "", "  "])
def test_a_missing_prompt_gets_400_and_costs_nothing(simulator, prompt):
    response = post(simulator, prompt=prompt)
    assert (response.status_code, set(response.json())) == (400, {"id", "name", "errors"})
    assert simulator.credits() == 25.0


def test_a_request_that_is_no_multipart_form_gets_400(simulator):
    headers = authorization(GENERATE, simulator.api_key) | {"Accept": "image/*"}
    broken = {"Content-Type": "multipart/form-data"}
    url = simulator.url + GENERATE
    responses = [
        requests.post(url, headers=headers, json={"prompt": "sea"}, timeout=5),
        requests.post(url, headers=headers, data={"prompt": "sea"}, timeout=5),
        requests.post(url, headers=headers | broken, data=b"no boundary", timeout=5),
    ]
    assert [response.status_code for response in responses] == [400, 400, 400]
    assert all(set(response.json()) == {"id", "name", "errors"} for response in responses)


def test_an_accept_header_without_a_picture_gets_400(simulator):
    assert post(simulator, accept="text/html").status_code == 400


def test_spending_is_atomic(simulator):
    simulator.set_credits(30.0)
    with ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(lambda _: post(simulator).status_code, range(24)))
    assert sorted(statuses) == [200] * 10 + [402] * 14
    assert (simulator.credits(), simulator.images_made) == (0.0, 10)


# Credits


def test_a_top_up_is_seen_at_once(simulator):
    simulator.top_up(10.5)
    simulator.top_up(2, organization="org-other")
    assert get(simulator, "/v1/user/balance").json() == {"credits": 35.5}
    assert simulator.credits("org-other") == 2.0


def test_a_balance_may_be_below_zero_but_not_a_top_up(simulator):
    simulator.set_credits(-0.5)
    assert get(simulator, "/v1/user/balance").json() == {"credits": -0.5}
    with pytest.raises(ValueError, match="zero credits or more"):
        simulator.top_up(-0.01)
    assert simulator.credits() == -0.5


@pytest.mark.parametrize("credits", [math.nan, math.inf, True, "5", None])
def test_what_is_no_balance_is_a_value_error(simulator, credits):
    for change in (simulator.set_credits, simulator.top_up):
        with pytest.raises(ValueError, match="finite number"):
            change(credits)
    with pytest.raises(ValueError, match="finite number"):
        StabilitySimulator(credits=credits)
    assert simulator.credits() == 25.0


def test_a_top_up_past_all_numbers_is_a_value_error(simulator):
    simulator.set_credits(sys.float_info.max)
    with pytest.raises(ValueError, match="after a top-up"):
        simulator.top_up(sys.float_info.max)
    assert simulator.credits() == sys.float_info.max


def test_what_does_not_exist_is_a_key_error(simulator):
    for call in (
        lambda: simulator.credits("org-nowhere"),
        lambda: simulator.set_credits(1.0, "org-nowhere"),
        lambda: simulator.top_up(1.0, "org-nowhere"),
        lambda: simulator.add_key(account="user-9"),
        lambda: simulator.add_account("user-2", "two@example.com", ["org-nowhere"]),
        lambda: simulator.add_organization("org-new", accounts=["user-9"]),
    ):
        with pytest.raises(KeyError, match="There is no such"):
            call()


def test_ids_in_use_and_accounts_without_organization_are_value_errors(simulator):
    with pytest.raises(ValueError, match="already"):
        simulator.add_organization("org-other")
    with pytest.raises(ValueError, match="already"):
        simulator.add_account("user-1", "one@example.com", ["org-other"])
    with pytest.raises(ValueError, match="needs an organization"):
        simulator.add_account("user-2", "two@example.com", [])


# Keys


def test_a_rotated_key_is_refused_and_the_new_one_works(simulator):
    old = simulator.api_key
    new = simulator.rotate_key(old)
    assert [get(simulator, "/v1/user/balance", key).status_code for key in (old, new)] == [401, 200]
    assert simulator.api_key == new
    assert [record.key_label for record in simulator.requests] == ["key-1", "key-2"]


def test_a_revoked_key_is_refused(simulator):
    spare = simulator.add_key()
    assert spare.startswith("sk-sim-")
    assert get(simulator, "/v1/user/balance", spare).status_code == 200
    simulator.revoke_key(spare)
    assert get(simulator, "/v1/user/balance", spare).status_code == 401
    assert get(simulator, "/v1/user/balance").status_code == 200


def test_errors_about_keys_never_show_one(simulator):
    secret = "sk-do-not-show-me"
    simulator.add_key(secret)
    for call, kind in (
        (lambda: simulator.add_key(secret), ValueError),
        (lambda: simulator.add_key(f"{secret} x"), ValueError),
        (lambda: simulator.rotate_key(f"{secret}-x"), KeyError),
        (lambda: simulator.revoke_key(f"{secret}-x"), KeyError),
        (lambda: simulator.inject(Fault.reset(), key=f"{secret}-x"), KeyError),
    ):
        with pytest.raises(kind) as raised:
            call()
        assert secret not in repr(raised.value)


@pytest.mark.parametrize("key", ["", "two words", "naïve", "line\nbreak"])
def test_a_key_that_no_header_can_carry_is_a_value_error(key):
    with pytest.raises(ValueError, match="printable ASCII"):
        StabilitySimulator(api_key=key)


def test_the_connection_uri_carries_the_key_quoted():
    with StabilitySimulator(api_key="sk/with:odd@chars%") as simulator:
        parts = urlsplit(simulator.connection_uri())
        assert (parts.scheme, parts.hostname, parts.port) == ("stability", "127.0.0.1", simulator.port)
        assert parts.path == "/http"
        assert unquote(parts.password) == "sk/with:odd@chars%"
        assert urlsplit(simulator.connection_uri(key="sk-wrong")).password == "sk-wrong"
        assert get(simulator, "/v1/user/balance").status_code == 200


def test_airflow_reads_the_connection_uri():
    from airflow.models import Connection

    with StabilitySimulator(api_key="sk/with:odd@chars%") as simulator:
        connection = Connection(uri=simulator.connection_uri())
        assert connection.conn_type == "stability"
        assert connection.password == simulator.api_key
        assert (connection.host, connection.port, connection.schema) == ("127.0.0.1", simulator.port, "http")


# The rate limit


def test_the_rate_limit_is_the_real_apis():
    with StabilitySimulator() as simulator, requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {simulator.api_key}"
        statuses = [session.get(f"{simulator.url}/v1/user/balance").status_code for _ in range(152)]
    assert statuses == [200] * 150 + [429] * 2
    assert RateLimit() == RateLimit(requests=150, window=10.0, lockout=60.0, retry_after=None)


@pytest.mark.parametrize("path", SHAPES)
def test_past_the_limit_comes_429_in_the_versions_shape(path):
    with StabilitySimulator(rate_limit=RateLimit(requests=1)) as simulator:
        ask(simulator, path)
        response = ask(simulator, path)
    assert (response.status_code, response.json()["name"]) == (429, "rate_limit_exceeded")
    assert set(response.json()) == SHAPES[path]
    assert "Retry-After" not in response.headers


def test_the_lock_out_outlasts_the_window_and_asking_does_not_extend_it():
    limit = RateLimit(requests=2, window=0.1, lockout=0.8)
    with StabilitySimulator(rate_limit=limit) as simulator:
        assert [get(simulator, BALANCE[1]).status_code for _ in range(3)] == [200, 200, 429]
        locked = time.monotonic()
        time.sleep(0.4)
        assert get(simulator, BALANCE[1]).status_code == 429
        time.sleep(max(0.0, locked + 0.85 - time.monotonic()))
        assert get(simulator, BALANCE[1]).status_code == 200


def test_after_the_lock_out_a_key_starts_afresh():
    limit = RateLimit(requests=2, window=60, lockout=0.2)
    with StabilitySimulator(rate_limit=limit) as simulator:
        for _ in range(2):
            assert [get(simulator, BALANCE[1]).status_code for _ in range(3)] == [200, 200, 429]
            time.sleep(0.25)


def test_the_window_slides():
    limit = RateLimit(requests=2, window=0.5, lockout=60)
    with StabilitySimulator(rate_limit=limit) as simulator:
        for pause in (0.0, 0.3, 0.3, 0.3):
            time.sleep(pause)
            assert get(simulator, BALANCE[1]).status_code == 200
        assert get(simulator, BALANCE[1]).status_code == 429


def test_the_lock_out_is_the_keys_alone_in_both_versions():
    with StabilitySimulator(rate_limit=RateLimit(requests=1)) as simulator:
        other = simulator.add_key()
        assert [get(simulator, path).status_code for path in BALANCE] == [200, 429]
        assert get(simulator, BALANCE[1], other).status_code == 200
        assert get(simulator, BALANCE[1], "sk-nobody").status_code == 401


@pytest.mark.parametrize(
    ("retry_after", "header"),
    [(60, "60"), ("Wed, 21 Oct 2065 07:28:00 GMT", "Wed, 21 Oct 2065 07:28:00 GMT")],
)
def test_a_429_says_when_to_retry_if_told_to(retry_after, header):
    with StabilitySimulator(rate_limit=RateLimit(requests=1, retry_after=retry_after)) as simulator:
        get(simulator, BALANCE[1])
        assert get(simulator, BALANCE[1]).headers["Retry-After"] == header


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests": 0},
        {"requests": True},
        {"window": 0},
        {"lockout": -1},
        {"lockout": math.nan},
        {"retry_after": "\n"},
    ],
)
def test_a_rate_limit_that_is_none_is_a_value_error(wrong):
    with pytest.raises(ValueError, match="RateLimit"):
        RateLimit(**wrong)


# Versions switched off


@pytest.mark.parametrize(("off", "on"), [("v1alpha", "v1"), ("v1", "v1alpha")])
@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_version_switched_off_responds_so_and_the_other_works(simulator, off, on, status):
    simulator.switch_off(off, status=status)
    response = get(simulator, f"/{off}/user/balance")
    assert response.status_code == status
    assert set(response.json()) == SHAPES[f"/{off}/user/balance"]
    assert get(simulator, f"/{on}/user/balance").status_code == 200
    simulator.switch_on(off)
    assert get(simulator, f"/{off}/user/balance").status_code == 200


def test_a_version_switched_off_by_redirect_leads_elsewhere(simulator):
    simulator.switch_off("v1alpha", status=308)
    simulator.switch_off("v1", status=301, location="https://example.com/gone")
    alpha, one = (get(simulator, path) for path in BALANCE)
    assert (alpha.status_code, alpha.headers["Location"]) == (308, "/v1/user/balance")
    assert (one.status_code, one.headers["Location"]) == (301, "https://example.com/gone")


@pytest.mark.parametrize(
    "arguments",
    [
        {"version": "v2"},
        {"version": "v1", "status": 200},
        {"version": "v1", "status": 404, "location": "/v1"},
    ],
)
def test_what_is_no_way_to_switch_a_version_off_is_a_value_error(simulator, arguments):
    with pytest.raises(ValueError, match=r"one of|switched off"):
        simulator.switch_off(**arguments)


# Faults


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503, 599])
def test_a_status_fault_has_the_versions_error_body(simulator, path, status):
    simulator.inject(Fault.status(status))
    response = ask(simulator, path)
    assert response.status_code == status
    assert set(response.json()) == SHAPES[path]
    assert "Retry-After" not in response.headers
    assert (simulator.images_made, simulator.credits()) == (0, 25.0)


@pytest.mark.parametrize(("retry_after", "header"), [(5, "5"), (0, "0"), (1.5, "1.5"), ("soon", "soon")])
def test_a_status_fault_may_carry_retry_after(simulator, retry_after, header):
    simulator.inject(Fault.status(503, retry_after=retry_after))
    assert get(simulator, BALANCE[0]).headers["Retry-After"] == header


@pytest.mark.parametrize("path", BALANCE)
@pytest.mark.parametrize("temporary", [True, False])
def test_a_status_fault_may_say_temporary(simulator, path, temporary):
    simulator.inject(Fault.status(400 if temporary else 503, temporary=temporary))
    assert get(simulator, path).json()["temporary"] is temporary


def test_a_reset_is_a_reset(simulator):
    simulator.inject(Fault.reset())
    with raw_request(simulator) as connection, pytest.raises(ConnectionResetError):
        connection.recv(1)
    with pytest.raises(requests.ConnectionError, match="reset by peer"):
        post(simulator)
    assert [record.status for record in simulator.requests] == [None, None]


def test_a_reset_comes_before_the_work_unless_told_otherwise(simulator):
    for fault, made in ((Fault.reset(), 0), (Fault.reset(after_work=True), 1)):
        simulator.inject(fault, times=1)
        with pytest.raises(requests.ConnectionError, match="reset by peer"):
            post(simulator)
        assert (simulator.images_made, simulator.credits()) == (made, 25.0 - 3.0 * made)
    assert [record.status for record in simulator.requests] == [None, None]


def test_a_hang_comes_before_the_work_unless_told_otherwise(simulator):
    for fault, made in ((Fault.hang(), 0), (Fault.hang(after_work=True), 1)):
        simulator.inject(fault, times=1)
        with pytest.raises(requests.ReadTimeout):
            post(simulator, timeout=0.3)
        assert (simulator.images_made, simulator.credits()) == (made, 25.0 - 3.0 * made)
    assert [record.status for record in simulator.requests] == [None, None]


def test_a_hang_after_the_work_goes_on_with_the_response_to_that_work(simulator):
    simulator.inject(Fault.hang(after_work=True), times=1)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(post, simulator)
        wait_for(lambda: simulator.images_made == 1)
        assert simulator.requests[0].status is None
        simulator.clear_faults()
        response = asked.result(5)
    assert (response.status_code, response.content) == (200, post(simulator).content)
    assert simulator.requests[0].status == 200
    assert (simulator.images_made, simulator.credits()) == (2, 19.0)  # one for each request


def test_an_image_that_is_refused_is_not_paid_for_whatever_becomes_of_the_response(simulator):
    simulator.set_credits(2.0)
    simulator.inject(Fault.reset(after_work=True), times=1)
    with pytest.raises(requests.ConnectionError):
        post(simulator)
    assert (simulator.images_made, simulator.credits()) == (0, 2.0)


@pytest.mark.parametrize(
    "fault",
    [
        Fault.reset(after_work=True),
        Fault.hang(after_work=True),
        Fault.truncated(),
        Fault.drip(interval=0.01),
    ],
    ids=["reset", "hang", "truncated", "drip"],
)
def test_an_image_whose_response_is_lost_is_paid_for_once_and_its_outcome_is_unknown(simulator, fault):
    simulator.inject(fault, path=GENERATE)
    form = {"none": (None, ""), "prompt": (None, "sea")}
    with StabilityClient(simulator.api_key, base_url=simulator.url) as client:
        with pytest.raises(StabilityOutcomeUnknownError, match="may have been accepted and paid for"):
            client.request("POST", GENERATE, timeout=0.3, headers={"Accept": "image/*"}, files=form)
        assert client.maybe_paid == 1
        assert client.get_balance().credits == 22.0
    assert simulator.images_made == 1
    assert [record.path for record in simulator.requests].count(GENERATE) == 1


def test_a_hang_sends_nothing_and_goes_on_when_the_fault_is_cleared(simulator):
    simulator.inject(Fault.hang(), times=1)
    with raw_request(simulator) as connection:
        assert not select.select([connection], [], [], 0.4)[0]
        assert simulator.requests[0].status is None
        simulator.clear_faults()
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
    assert simulator.requests[0].status == 200


def test_a_hang_ends_when_the_client_leaves(simulator, caplog):
    caplog.set_level(logging.INFO, "airflow_stability.simulator")
    simulator.inject(Fault.hang(), times=1)
    with pytest.raises(requests.ReadTimeout):
        get(simulator, BALANCE[1], timeout=0.2)
    wait_for(lambda: "no answer" in caplog.text)
    assert get(simulator, BALANCE[1]).status_code == 200


def test_a_slow_response_is_the_real_one_late(simulator):
    simulator.inject(Fault.slow(0.5), times=1)
    begun = time.monotonic()
    assert post(simulator).status_code == 200
    assert 0.5 <= time.monotonic() - begun < 2.0
    assert simulator.credits() == 22.0


def test_a_response_dripping_its_body_comes_byte_by_byte(simulator):
    simulator.inject(Fault.drip(interval=0.05))
    with raw_request(simulator) as connection:
        pieces = list(iter(lambda: connection.recv(65536), b""))
    head, _, body = b"".join(pieces).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert json.loads(body) == {"credits": 25.0}
    assert len(pieces) >= len(body)
    assert simulator.requests[0].status == 200


def test_a_response_dripping_its_headers_is_still_a_response(simulator):
    simulator.inject(Fault.drip("headers", interval=0.01))
    with raw_request(simulator) as connection:
        assert connection.recv(1) == b"H"
        begun = time.monotonic()
        rest = read_all(connection)
    assert time.monotonic() - begun > 0.5
    assert rest.endswith(b'\r\n\r\n{"credits":25.0}')


def test_a_drip_is_one_byte_a_second_unless_told_otherwise(simulator):
    simulator.inject(Fault.drip("headers"))
    with raw_request(simulator) as connection:
        assert connection.recv(65536) == b"H"
        begun = time.monotonic()
        assert connection.recv(65536) == b"T"
        assert 0.8 < time.monotonic() - begun < 1.5


def test_a_truncated_response_promises_more_than_it_holds(simulator):
    simulator.inject(Fault.truncated())
    with raw_request(simulator) as connection:
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    promised = int(re.search(rb"content-length: (\d+)", head)[1])
    assert 0 < len(body) < promised
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):
        get(simulator, BALANCE[1])


@pytest.mark.parametrize("status", [200, 403, 502])
def test_an_html_page(simulator, status):
    simulator.inject(Fault.html(status))
    response = get(simulator, BALANCE[0])
    assert (response.status_code, response.headers["Content-Type"]) == (status, "text/html; charset=utf-8")
    assert "<html>" in response.text


def test_plain_text_and_an_empty_body(simulator):
    simulator.inject(Fault.text("upstream connect error", status=503), times=1)
    simulator.inject(Fault.empty(), times=1)
    simulator.inject(Fault.empty(204), times=1)
    text, empty, nothing = (get(simulator, BALANCE[0]) for _ in range(3))
    assert (text.status_code, text.text) == (503, "upstream connect error")
    assert text.headers["Content-Type"].startswith("text/plain")
    assert (empty.status_code, empty.content) == (200, b"")
    assert (nothing.status_code, nothing.content) == (204, b"")


def test_any_body_goes_out_as_it_is(simulator):
    simulator.inject(Fault.body(b'{"credits": true}'), times=1)
    simulator.inject(Fault.body('{"credits": NaN}', status=201, headers={"X-Cache": "HIT"}), times=1)
    first, second = (get(simulator, BALANCE[0]) for _ in range(2))
    assert (first.status_code, first.content) == (200, b'{"credits": true}')
    assert first.headers["Content-Type"] == "application/json"
    assert (second.status_code, second.content, second.headers["X-Cache"]) == (
        201,
        b'{"credits": NaN}',
        "HIT",
    )


def test_faults_have_their_turn_in_order_and_for_their_times(simulator):
    simulator.inject(Fault.status(503), times=2)
    simulator.inject(Fault.status(500), times=1)
    assert [get(simulator, BALANCE[1]).status_code for _ in range(4)] == [503, 503, 500, 200]


def test_a_fault_without_times_lasts_until_cleared(simulator):
    simulator.inject(Fault.status(503))
    assert {get(simulator, BALANCE[1]).status_code for _ in range(5)} == {503}
    simulator.clear_faults()
    assert get(simulator, BALANCE[1]).status_code == 200


def test_a_fault_for_a_path_hits_whole_segments_only(simulator):
    simulator.inject(Fault.status(503), path="/v1")
    assert [get(simulator, path).status_code for path in (*BALANCE, ACCOUNT[1])] == [200, 503, 503]
    simulator.clear_faults()
    simulator.inject(Fault.status(503), path="/v1/user/balance", times=1)
    assert [get(simulator, path).status_code for path in (ACCOUNT[1], BALANCE[1], BALANCE[1])] == [
        200,
        503,
        200,
    ]


def test_a_fault_for_a_key_hits_that_key_in_either_form(simulator):
    unlucky = simulator.add_key()
    simulator.inject(Fault.status(503), key=unlucky)
    assert [get(simulator, path, unlucky).status_code for path in BALANCE] == [503, 503]
    assert [get(simulator, path).status_code for path in BALANCE] == [200, 200]


def test_faults_count_toward_the_rate_limit_and_in_the_log():
    with StabilitySimulator(rate_limit=RateLimit(requests=2)) as simulator:
        simulator.inject(Fault.status(503), times=2)
        assert [get(simulator, BALANCE[1]).status_code for _ in range(3)] == [503, 503, 429]
        assert [record.status for record in simulator.requests] == [503, 503, 429]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fault.status(99),
        lambda: Fault.status(600),
        lambda: Fault.status(True),
        lambda: Fault.status(503, retry_after=True),
        lambda: Fault.status(503, retry_after="5\r\nX-Smuggled: 1"),
        lambda: Fault.status(503, temporary="yes"),
        lambda: Fault.reset(after_work="yes"),
        lambda: Fault.hang(after_work=1),
        lambda: Fault.slow(-1),
        lambda: Fault.slow(math.nan),
        lambda: Fault.drip("trailers"),
        lambda: Fault.body(b"x", status=204),
        lambda: Fault.body(b"x", headers={"bad name": "x"}),
        lambda: Fault.text(5),
    ],
)
def test_a_fault_that_is_no_response_is_a_value_error(make):
    with pytest.raises(ValueError, match=r"\.$"):
        make()


@pytest.mark.parametrize("wrong", [{"times": 0}, {"times": True}, {"path": "v1"}])
def test_an_injection_that_can_hit_nothing_is_a_value_error(simulator, wrong):
    with pytest.raises(ValueError, match="must"):
        simulator.inject(Fault.reset(), **wrong)


# The log


def test_the_log_tells_what_was_asked_and_in_what_form(simulator):
    before = time.time()
    client = {"Stability-Client-ID": "dag", "Stability-Client-Version": "1.2", "User-Agent": "tester/1"}
    get(simulator, "/v1alpha/user/balance?x=1", Organization="org-other", **client)
    get(simulator, "/v1/user/balance", key="sk-nobody")
    requests.get(simulator.url + "/v1/user/account", timeout=5)
    first, second, third = simulator.requests
    assert (first.method, first.path, first.status) == ("GET", "/v1alpha/user/balance", 200)
    assert (first.authorization, first.key_label, first.organization) == ("raw", "key-1", "org-other")
    assert (first.client_id, first.client_version, first.user_agent) == ("dag", "1.2", "tester/1")
    assert before <= first.at <= second.at <= time.time()
    assert first.monotonic <= second.monotonic <= time.monotonic()
    assert (second.authorization, second.key_label, second.status) == ("bearer", "unknown", 401)
    assert (second.organization, second.client_id, second.client_version) == (None, None, None)
    assert (third.authorization, third.key_label, third.status) == ("none", "unknown", 401)


def test_the_log_can_be_cleared_and_is_no_live_list(simulator):
    get(simulator, BALANCE[1])
    kept = simulator.requests
    get(simulator, BALANCE[1])
    assert len(kept) == 1
    simulator.clear_requests()
    assert simulator.requests == []


def test_all_controls_are_named():
    with StabilitySimulator() as simulator:
        named = requests.get(f"{simulator.url}/_simulator", timeout=5)
        unknown = control(simulator, "POST", "nothing")

    assert named.status_code == 200
    assert "POST /_simulator/top-up" in named.json()
    assert unknown.status_code == 404
    assert "POST /_simulator/top-up" in unknown.json()["detail"]


def test_controls_are_not_in_the_log_nor_under_the_rate_limit():
    with StabilitySimulator(rate_limit=RateLimit(requests=1)) as simulator:
        key = authorization("/v1/", simulator.api_key)
        for _ in range(5):
            assert (
                requests.get(f"{simulator.url}/_simulator/state", headers=key, timeout=5).status_code == 200
            )
        assert get(simulator, BALANCE[1]).status_code == 200
        assert len(simulator.requests) == 1


def test_no_key_shows_anywhere(capfd, caplog, monkeypatch):
    # Not the client's log, which shows the paths of its requests: this is about the server's.
    caplog.set_level(logging.WARNING, "urllib3")
    caplog.set_level(logging.DEBUG)
    secret = "sk-never-show-this"
    with StabilitySimulator(api_key=secret, rate_limit=RateLimit(requests=20)) as simulator:
        # The state after somebody else has configured logging: uvicorn's access log shows every path.
        monkeypatch.setattr(logging.getLogger("uvicorn.access"), "propagate", True)
        simulator.inject(Fault.reset(), times=1, key=secret)
        simulator.inject(Fault.truncated(), times=1)
        for path in (*ACCOUNT, *BALANCE, f"/v1/{secret}", f"/{secret}", "/v1/%73k-never-show-this"):
            with contextlib.suppress(requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
                response = get(simulator, path, Organization=secret, **{"User-Agent": secret})
                assert secret not in response.text + str(response.headers)
        wrong = requests.get(simulator.url + BALANCE[0], headers=authorization("/v1/", secret), timeout=5)
        assert secret not in wrong.text
        simulator.inject(Fault.status(503), key=secret)
        seen = [
            repr(simulator),
            repr(simulator.requests),
            json.dumps(simulator.state()),
            control(simulator, "GET", "state").text,
            control(simulator, "GET", "requests").text,
            control(simulator, "POST", "keys", {"key": secret}).text,
            control(simulator, "POST", "keys/rotate", {"key": [secret]}).text,
            control(simulator, "POST", "keys/revoke", {"key": f"{secret}-x"}).text,
        ]
        simulator.rotate_key(secret)
        get(simulator, f"/v1/{secret}")
        seen.append(repr(simulator.requests))
    captured = capfd.readouterr()
    assert caplog.text.count("airflow_stability.simulator") >= 9
    assert secret not in "".join(seen) + captured.out + captured.err + caplog.text


def test_a_path_cannot_write_log_lines_of_its_own(simulator, caplog):
    caplog.set_level(logging.INFO, "airflow_stability.simulator")
    get(simulator, "/v1/%0aGET%20/forged")
    wait_for(lambda: "forged" in caplog.text)
    assert [line for line in caplog.messages if "forged" in line] == [
        "GET /v1/%0AGET%20/forged, key-1 (bearer): 404"
    ]


# Starting and stopping


def simulator_threads():
    return [
        thread
        for thread in threading.enumerate()
        if "AnyIO" in thread.name or thread.name == "stability-simulator"
    ]


def test_a_stopped_simulator_refuses_connections_and_comes_back_on_the_same_port_with_its_state(simulator):
    url, key = simulator.url, simulator.api_key
    post(simulator)
    simulator.stop()
    with pytest.raises(requests.ConnectionError, match="refused"):
        get(simulator, BALANCE[1])
    simulator.set_credits(4.5)
    simulator.start()
    assert (simulator.url, simulator.api_key) == (url, key)
    assert get(simulator, BALANCE[1]).json() == {"credits": 4.5}
    assert (simulator.images_made, len(simulator.requests)) == (1, 2)


def open_files():
    """Return the open files of this process, on Linux. Each socket has a name of its own."""
    gc.collect()  # garbage of an earlier test would otherwise be closed in the middle of this one
    found = Counter()
    if sys.platform == "linux":
        for file in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # listing the folder opens it
                found[str(file.readlink())] += 1
    return found


def test_stopping_is_quick_with_connections_open_and_leaves_no_thread_or_socket():
    before = open_files()
    faults = (Fault.hang(), Fault.drip(), Fault.drip("headers"), Fault.slow(600))
    with contextlib.ExitStack() as stack:
        with StabilitySimulator() as simulator:
            port = simulator.port
            open_connections = []
            for fault in faults:
                simulator.inject(fault, times=1)
                open_connections.append(stack.enter_context(raw_request(simulator)))
                wait_for(lambda: len(simulator.requests) == len(open_connections))
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            half = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            half.sendall(
                b"POST /v2beta/stable-image/generate/core HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
            )
            wait_for(lambda: len(simulator.requests) == len(faults) + 1)
            begun = time.monotonic()
        assert time.monotonic() - begun < 2.0
        for connection in (*open_connections, idle, half):
            with contextlib.suppress(ConnectionResetError):
                assert b"200 OK\r\n\r\n" not in read_all(connection)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
    assert simulator_threads() == []
    assert not open_files() - before


def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_error(simulator, caplog):
    with socket.create_connection((simulator.host, simulator.port), timeout=5) as half:
        half.sendall(f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n".encode())
        wait_for(lambda: simulator.requests)
    assert get(simulator, BALANCE[1]).status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_faults_are_no_errors_in_the_servers_log(simulator, caplog):
    for fault in (Fault.reset(), Fault.truncated(), Fault.drip(interval=0), Fault.html()):
        simulator.inject(fault, times=1)
        with raw_request(simulator) as connection, contextlib.suppress(ConnectionResetError):
            connection.recv(1)
    simulator.inject(Fault.hang(), times=1)
    with raw_request(simulator):
        wait_for(lambda: len(simulator.requests) == 5)
        simulator.stop()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_stopping_twice_is_nothing_and_starting_twice_an_error(simulator):
    with pytest.raises(RuntimeError, match="already"):
        simulator.start()
    simulator.stop()
    simulator.stop()
    assert "stopped" in repr(simulator)


def test_a_port_in_use_is_an_os_error(simulator):
    with pytest.raises(OSError, match="in use"):
        StabilitySimulator(port=simulator.port).start()


def test_there_is_no_port_before_the_first_start():
    with pytest.raises(RuntimeError, match="before it is started"):
        _ = StabilitySimulator().url


def test_listening_beyond_loopback_is_warned_about(caplog):
    with StabilitySimulator(host="0.0.0.0") as simulator:
        assert "controls need no key" in caplog.text
        assert simulator.url == f"http://127.0.0.1:{simulator.port}"
        assert get(simulator, BALANCE[1]).status_code == 200
    caplog.clear()
    with StabilitySimulator():
        assert "controls" not in caplog.text


def test_many_threads_may_change_what_is_being_served(simulator):
    def work(number):
        key = simulator.add_key()
        simulator.top_up(1.0)
        statuses = [get(simulator, BALANCE[1], key).status_code]
        simulator.revoke_key(key)
        return [*statuses, get(simulator, BALANCE[1], key).status_code]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(24))) == [[200, 401]] * 24
    assert simulator.credits() == 49.0
    assert len(simulator.requests) == 48


# The controls over HTTP


def test_credits_over_http(simulator):
    assert control(simulator, "POST", "credits", {"credits": 50}).json() == {"credits": 50.0}
    assert control(simulator, "POST", "top-up", {"credits": 0.5}).json() == {"credits": 50.5}
    control(simulator, "POST", "credits", {"credits": 2, "organization": "org-other"})
    assert (simulator.credits(), simulator.credits("org-other")) == (50.5, 2.0)


def test_accounts_and_keys_over_http(simulator):
    control(simulator, "POST", "organizations", {"organization": "org-new", "credits": 8.5})
    account = {"account_id": "user-2", "email": "two@example.com", "organizations": ["org-new"]}
    assert control(simulator, "POST", "accounts", account).status_code == 200
    key = control(simulator, "POST", "keys", {"account": "user-2"}).json()["key"]
    assert get(simulator, BALANCE[1], key).json() == {"credits": 8.5}
    new = control(simulator, "POST", "keys/rotate", {"key": key}).json()["key"]
    assert [get(simulator, BALANCE[1], each).status_code for each in (key, new)] == [401, 200]
    control(simulator, "POST", "keys/revoke", {"key": new})
    assert get(simulator, BALANCE[1], new).status_code == 401


def test_faults_and_versions_over_http(simulator):
    control(simulator, "POST", "faults", {"kind": "status", "status": 503, "retry_after": 7, "path": "/v1"})
    response = get(simulator, BALANCE[1])
    assert (response.status_code, response.headers["Retry-After"]) == (503, "7")
    assert control(simulator, "GET", "state").json()["faults"] == [
        {"fault": "error", "times": None, "path": "/v1", "one_key_only": False}
    ]
    control(simulator, "DELETE", "faults")
    control(simulator, "POST", "versions", {"version": "v1alpha", "status": 410})
    assert [get(simulator, path).status_code for path in BALANCE] == [410, 200]
    control(simulator, "POST", "versions", {"version": "v1alpha", "on": True})
    assert get(simulator, BALANCE[0]).status_code == 200


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "status", "status": 500},
        {"kind": "body", "body": "{}", "status": 202},
        {"kind": "html", "status": 403},
        {"kind": "text", "text": "no"},
        {"kind": "empty"},
        {"kind": "reset"},
        {"kind": "reset", "after_work": True},
        {"kind": "hang"},
        {"kind": "hang", "after_work": True},
        {"kind": "slow", "delay": 0.1},
        {"kind": "drip", "part": "headers", "interval": 0.1},
        {"kind": "truncated"},
    ],
)
def test_every_fault_can_be_injected_over_http(simulator, arguments):
    assert control(simulator, "POST", "faults", arguments | {"times": 1}).status_code == 200
    assert len(simulator.state()["faults"]) == 1


def test_a_lost_response_over_http(simulator):
    control(simulator, "POST", "faults", {"kind": "reset", "after_work": True, "times": 1})
    with pytest.raises(requests.ConnectionError):
        post(simulator)
    assert control(simulator, "GET", "state").json()["images_made"] == 1


def test_the_log_over_http(simulator):
    get(simulator, BALANCE[1])
    (record,) = control(simulator, "GET", "requests").json()
    assert (record["path"], record["key_label"], record["status"]) == (BALANCE[1], "key-1", 200)
    control(simulator, "DELETE", "requests")
    assert control(simulator, "GET", "requests").json() == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("top-up", {"credits": -1}),
        ("credits", {"credits": True}),
        ("credits", {"credits": "50"}),
        ("credits", {"credits": 5, "organisation": "org-other"}),
        ("credits", {"credits": 5, "self": 1}),
        ("credits", {"credits": 5, "organization": "org-nowhere"}),
        ("credits", {}),
        ("credits", [1]),
        ("keys/revoke", {"key": "sk-nobody"}),
        ("versions", {"version": "v3"}),
        ("faults", {"kind": "gremlin"}),
        ("faults", {"kind": "reset", "delay": 1}),
        ("faults", {"kind": "reset", "self": 1}),
        ("faults", {"kind": "slow", "delay": 1, "times": "1"}),
        ("faults", {"kind": "body", "body": 5}),
        ("faults", {"kind": "reset", "after_work": "true"}),
        ("faults", {"kind": "slow"}),
        ("faults", {"kind": "slow", "delay": "1"}),
        ("faults", {"kind": "body", "body": "x", "headers": 5}),
        ("faults", {"kind": "status", "status": 503, "times": 0}),
        ("accounts", {"account_id": "user-2", "email": "e", "organizations": []}),
        ("accounts", {"account_id": "user-2", "email": "e", "organizations": "org-other"}),
        ("organizations", {"organization": "org-new", "self": 1}),
        ("organizations", {"organization": "org-new", "credits": "1"}),
    ],
)
def test_bad_input_over_http_gets_one_clear_sentence(simulator, path, body):
    response = control(simulator, "POST", path, body)
    assert response.status_code in (400, 422)
    assert re.fullmatch(r"[^\n]+\.", response.json()["detail"])
    assert (simulator.credits(), simulator.state()["faults"]) == (25.0, [])


def test_what_is_no_json_gets_one_clear_sentence(simulator):
    url = f"{simulator.url}/_simulator/credits"
    for body in (b"{", b'{"credits": NaN}', b""):
        response = requests.post(url, data=body, headers={"Content-Type": "application/json"}, timeout=5)
        assert response.status_code in (400, 422)
        assert isinstance(response.json()["detail"], str)


# The command line


@contextlib.contextmanager
def command_line(*arguments):
    command = [sys.executable, "-W", "error", "-m", "airflow_stability.simulator", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class Reached:
    """A simulator on the command line, as its output describes it."""

    def __init__(self, process):
        self.url = re.search(r"http://\S+", process.stdout.readline())[0]
        self.connection = process.stdout.readline().strip()
        self.api_key = urlsplit(self.connection.partition("=")[2].strip("'\"")).password


def test_the_command_line_serves_is_controlled_over_http_and_ends_on_ctrl_c():
    with command_line("--credits", "7.5") as process:
        reached = Reached(process)
        assert reached.connection.startswith("export AIRFLOW_CONN_STABILITY_DEFAULT=stability://:sk-sim-")
        assert get(reached, BALANCE[0]).json() == {"credits": 7.5}
        control(reached, "POST", "top-up", {"credits": 10})
        assert get(reached, BALANCE[1]).json() == {"credits": 17.5}
        control(reached, "POST", "faults", {"kind": "hang", "times": 1})
        with pytest.raises(requests.ReadTimeout):
            get(reached, BALANCE[1], timeout=0.2)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=5)
    assert (process.returncode, errors) == (0, "")
    lines = [line.partition(" ")[2] for line in output.splitlines()]
    assert lines == [
        "GET /v1alpha/user/balance, key-1 (raw): 200",
        "GET /v1/user/balance, key-1 (bearer): 200",
        "GET /v1/user/balance, key-1 (bearer): no answer",
    ]
    assert reached.api_key not in output


def test_the_command_lines_connection_can_be_pasted_into_a_shell_and_a_key_from_a_file_is_not_shown(tmp_path):
    key_file = tmp_path / "the key"
    key_file.write_text("sk-from-a-file\n")
    with command_line(
        "--api-key-file", str(key_file), "--requests-per-window", "1", "--retry-after", "9"
    ) as process:
        reached = Reached(process)
        reached.api_key = "sk-from-a-file"
        assert "sk-from-a-file" not in reached.connection
        script = f"{reached.connection}\nprintf %s $AIRFLOW_CONN_STABILITY_DEFAULT"
        pasted = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
        assert pasted == f"stability://:sk-from-a-file@{urlsplit(reached.url).netloc}/http"
        assert get(reached, BALANCE[1]).status_code == 200
        assert get(reached, BALANCE[1]).headers["Retry-After"] == "9"
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=5)
    assert (process.returncode, errors) == (0, "")
    assert "sk-from-a-file" not in output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--credits", "nan"],
        ["--port", "99999"],
        ["--port", "-1"],
        ["--requests-per-window", "0"],
        ["--api-key-file", "/nowhere"],
    ],
)
def test_bad_options_end_the_command_line_with_one_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert re.search(r"error: .+\n$", capsys.readouterr().err)


def test_a_port_in_use_ends_the_command_line_with_one_sentence(simulator):
    with command_line("--port", str(simulator.port)) as process:
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    assert errors == f"Cannot listen on 127.0.0.1:{simulator.port}: Address already in use.\n"


# What it stands on


def test_it_imports_neither_airflow_nor_the_rest_of_the_package():
    script = (
        "import sys, airflow_stability.simulator.__main__\n"
        "print(*(n for n in sys.modules if n.split('.')[0] in ('airflow', 'airflow_stability', 'requests')))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert {name for name in loaded.split() if not name.startswith("airflow_stability.simulator")} == {
        "airflow_stability"
    }


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_without_its_extra_the_import_says_what_to_install(missing):
    script = f"import sys; sys.modules[{missing!r}] = None\nimport airflow_stability.simulator"
    failed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    last = failed.stderr.strip().splitlines()[-1]
    assert (
        last == f"ImportError: The simulator needs {missing}: install airflow-provider-stability[simulator]."
    )
