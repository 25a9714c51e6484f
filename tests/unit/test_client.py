"""StabilityClient: what it sends, what it makes of the answers, and what it never tells."""

from __future__ import annotations

import gzip
import io
import json
import logging
import pickle
import re
import socket
import subprocess
import sys
import traceback
import tracemalloc
import zlib
from urllib.parse import quote

import pytest
import requests
import responses
from hypothesis import given, settings
from hypothesis import strategies as st
from requests.structures import CaseInsensitiveDict
from responses import matchers

from airflow_stability import __version__
from airflow_stability.client import Account, Balance, StabilityClient, check_response
from airflow_stability.client.api_key import fingerprint
from airflow_stability.errors import (
    StabilityAuthenticationError,
    StabilityBlockedError,
    StabilityConfigurationError,
    StabilityError,
    StabilityMalformedResponseError,
    StabilityNetworkError,
    StabilityNotFoundError,
    StabilityOutcomeUnknownError,
    StabilityPaymentRequiredError,
    StabilityPermanentError,
    StabilityPermissionError,
    StabilityRateLimitError,
    StabilityRedirectError,
    StabilityRequestError,
    StabilityTimeoutError,
    StabilityTransientError,
    StabilityUnavailableError,
)

KEY = "sk-THIS0is0SECRET0aBcDeFgH"
PROXY = "http://user:pr0xy-PASSWORD@proxy.example:3128"
MEMBERSHIP = {"id": "org-1", "name": "One", "role": "MEMBER", "is_default": True}
ACCOUNT = {"id": "user-1", "email": "someone@example.com", "organizations": [MEMBERSHIP]}
UNAUTHORIZED = {"id": "e401", "name": "unauthorized", "message": "missing authorization header"}


@pytest.fixture
def api():
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


def sent(api) -> list[str]:
    """Return what was asked, in order: method and path."""
    return [f"{call.request.method} {call.request.path_url}" for call in api.calls]


def all_said(error: BaseException) -> str:
    """Return every text that an error can be turned into, and those of the errors behind it."""
    said, queue, seen = [], [error], set()
    while queue:
        one = queue.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        queue += [one.__cause__, one.__context__]
        said += [str(one), repr(one), repr(one.args), repr(vars(one)), *getattr(one, "__notes__", [])]
        said += traceback.format_exception(one)
        if isinstance(one, StabilityError):
            said.append(pickle.dumps(one, protocol=0).decode("latin-1"))
    return "\n".join(said)


# What is sent


@pytest.mark.parametrize(
    ("version", "authorization", "identity"),
    [
        ("v1alpha", KEY, {}),
        ("v1", f"Bearer {KEY}", {"Stability-Client-ID": "me", "Stability-Client-Version": __version__}),
    ],
)
def test_each_version_gets_the_key_in_its_own_form(api, base_url, version, authorization, identity):
    api.get(f"{base_url}/{version}/user/balance", json={"credits": 5})
    with StabilityClient(KEY, base_url=base_url, api_version=version, client_id="me") as client:
        client.get_balance()
    headers = api.calls[0].request.headers
    assert headers["Authorization"] == authorization
    assert {name: value for name, value in headers.items() if name.startswith("Stability-")} == identity
    assert "Organization" not in headers
    assert "Cookie" not in headers
    assert headers["Accept"] == "application/json"
    assert headers["Accept-Encoding"] == "identity"
    assert headers["User-Agent"].startswith(f"airflow-provider-stability/{__version__} python-requests/")


def test_the_real_api_is_asked_by_default(api):
    api.get("https://api.stability.ai/v1/user/balance", json={"credits": 5})
    assert StabilityClient(KEY, api_version="v1").get_balance() == Balance(credits=5.0)


@pytest.mark.parametrize(
    ("of_client", "of_call", "expected"),
    [(None, None, None), ("org-a", None, "org-a"), (None, "org-b", "org-b"), ("org-a", "org-b", "org-b")],
)
def test_a_balance_is_of_the_organization_of_the_call_else_of_the_client(
    api, base_url, of_client, of_call, expected
):
    api.get(f"{base_url}/v1/user/balance", json={"credits": 5})
    StabilityClient(KEY, base_url=base_url, api_version="v1", organization=of_client).get_balance(of_call)
    assert api.calls[0].request.headers.get("Organization") == expected


def test_an_account_is_asked_for_without_an_organization(api, base_url):
    api.get(f"{base_url}/v1/user/account", json=ACCOUNT)
    account = StabilityClient(KEY, base_url=base_url, api_version="v1", organization="org-a").get_account()
    assert account == Account.model_validate_json(json.dumps(ACCOUNT))
    assert "Organization" not in api.calls[0].request.headers


@pytest.mark.parametrize("organization", ["", "org 1", "org-1\r\nAuthorization: x", "é", "x" * 257])
def test_an_organization_that_injects_a_header_is_refused_before_anything_is_sent(
    api, base_url, organization
):
    client = StabilityClient(KEY, base_url=base_url)
    with pytest.raises(StabilityConfigurationError, match="organization"):
        client.get_balance(organization)
    with pytest.raises(StabilityConfigurationError, match="organization"):
        StabilityClient(KEY, base_url=base_url, organization=organization)
    assert sent(api) == []


def test_a_path_in_front_of_the_apis_own_is_kept(api, base_url):
    api.get(f"{base_url}/gateway/v1/user/balance", json={"credits": 5})
    StabilityClient(KEY, base_url=f"{base_url}/gateway/", api_version="v1").get_balance()
    assert sent(api) == ["GET /gateway/v1/user/balance"]


def test_a_user_agent_can_be_replaced(api, base_url):
    api.get(f"{base_url}/v1/user/balance", json={"credits": 5})
    StabilityClient(KEY, base_url=base_url, api_version="v1", user_agent="mine/1").get_balance()
    assert api.calls[0].request.headers["User-Agent"] == "mine/1"


def test_connect_and_read_have_a_timeout(api, base_url):
    api.get(
        f"{base_url}/v1/user/balance",
        json={"credits": 5},
        match=[matchers.request_kwargs_matcher({"timeout": 3.0, "stream": True, "verify": True})],
    )
    StabilityClient(KEY, base_url=base_url, api_version="v1", request_timeout=3).get_balance()


def test_an_attempt_can_have_a_limit_in_all(api, base_url):
    api.get(
        f"{base_url}/v1/user/balance",
        json={"credits": 5},
        match=[matchers.request_kwargs_matcher({"timeout": 21.0, "stream": True, "verify": True})],
    )
    client = StabilityClient(KEY, base_url=base_url, api_version="v1", request_timeout=3600)
    client.max_attempt_seconds = 21.0
    client.get_balance()


def test_a_fingerprint_tells_keys_apart_in_one_process_only():
    def of(key):
        return StabilityClient(key).key_fingerprint

    script = f"from airflow_stability.client.api_key import fingerprint; print(fingerprint({KEY!r}).hex())"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)

    assert of(KEY) == of(f"Bearer {KEY} ") != of("sk-2")
    assert of(KEY).hex() != done.stdout.strip()
    assert KEY.encode() not in of(KEY)


def test_keys_that_cannot_be_used_have_fingerprints_too():
    keys = ["sk two words", "'sk-1'", "sk-1\ud800", "", None]

    assert len({fingerprint(key) for key in keys}) == 4
    assert fingerprint("") == fingerprint(None)


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_the_ca_bundle_is_the_arguments_else_the_environments(api, base_url, name, monkeypatch, tmp_path):
    own, environments = tmp_path / "own.pem", tmp_path / "environments.pem"
    own.touch()
    monkeypatch.setenv(name, str(environments))
    for bundle, expected in ((str(own), str(own)), (None, str(environments))):
        api.get(
            f"{base_url}/v1/user/balance",
            json={"credits": 5},
            match=[matchers.request_kwargs_matcher({"timeout": 10.0, "stream": True, "verify": expected})],
        )
        StabilityClient(KEY, base_url=base_url, api_version="v1", ca_bundle=bundle).get_balance()


def proxies_of(client: StabilityClient, base_url: str) -> dict[str, str]:
    """Return the proxies that requests is told to use for one call."""
    with responses.RequestsMock() as api:
        api.get(f"{base_url}/v1/user/balance", json={"credits": 5})
        client.get_balance()
        return dict(api.calls[0].request.req_kwargs["proxies"])


def test_the_proxy_is_the_arguments_else_the_environments(base_url, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://environments.example:1")
    client = StabilityClient(KEY, base_url=base_url, api_version="v1")
    assert proxies_of(client, base_url)["https"] == "http://environments.example:1"
    client = StabilityClient(KEY, base_url=base_url, api_version="v1", proxy=PROXY)
    assert proxies_of(client, base_url)["https"] == PROXY


def test_plain_http_to_this_machine_does_not_go_by_way_of_the_environments_proxy(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://environments.example:1")
    url = "http://127.0.0.1:9"
    assert proxies_of(StabilityClient(KEY, base_url=url, api_version="v1"), url) == {}
    url = "http://stability.internal"
    client = StabilityClient(KEY, base_url=url, api_version="v1", allow_http=True)
    assert proxies_of(client, url)["http"] == "http://environments.example:1"


def test_a_netrc_does_not_replace_the_key(api, monkeypatch, tmp_path, base_url):
    netrc = tmp_path / "netrc"
    netrc.write_text("default login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    api.get(f"{base_url}/v1/user/balance", json={"credits": 5})
    StabilityClient(KEY, base_url=base_url, api_version="v1").get_balance()
    assert api.calls[0].request.headers["Authorization"] == f"Bearer {KEY}"


def test_a_cookie_is_not_sent_back(api, base_url):
    api.get(f"{base_url}/v1/user/balance", json={"credits": 5}, headers={"Set-Cookie": "track=me; Path=/"})
    client = StabilityClient(KEY, base_url=base_url, api_version="v1")
    client.get_balance()
    client.get_balance()
    assert "Cookie" not in api.calls[1].request.headers


# auto


@pytest.mark.parametrize(
    "refusal",
    [
        {"status": 404, "json": {"id": "e1", "name": "not_found", "message": "no"}},
        {"status": 404, "body": "<html>"},
        {"status": 410, "json": {"id": "e1", "name": "gone"}},
        {"status": 401, "json": UNAUTHORIZED},
        {"status": 403, "json": {"id": "e1", "name": "permission_denied"}},
        {"status": 400, "body": ""},
        {"status": 301, "headers": {"Location": "https://elsewhere.example/"}},
        {"status": 304},
    ],
)
def test_v1_is_asked_where_v1alpha_refuses_and_is_remembered(api, base_url, refusal):
    api.get(f"{base_url}/v1alpha/user/balance", **refusal)
    api.get(f"{base_url}/v1/user/balance", json={"credits": 5})
    api.get(f"{base_url}/v1/user/account", json=ACCOUNT)
    client = StabilityClient(KEY, base_url=base_url)
    assert client.get_balance().credits == 5
    assert client.answered_version == "v1"
    assert client.get_balance().credits == 5
    StabilityClient("sk-other", base_url=base_url).get_account()
    assert sent(api) == [
        "GET /v1alpha/user/balance",
        "GET /v1/user/balance",
        "GET /v1/user/balance",
        "GET /v1/user/account",
    ]


def test_what_answered_is_remembered_for_one_address_only(api, base_url):
    for url in (base_url, f"{base_url}/other"):
        api.get(f"{url}/v1alpha/user/balance", status=404)
        api.get(f"{url}/v1/user/balance", json={"credits": 5})
        StabilityClient(KEY, base_url=url).get_balance()
    assert len(sent(api)) == 4


def test_v1alpha_is_asked_alone_where_it_answers(api, base_url):
    api.get(f"{base_url}/v1alpha/user/balance", json={"credits": 5})
    client = StabilityClient(KEY, base_url=base_url)
    client.get_balance()
    assert client.answered_version == "v1alpha"
    assert sent(api) == ["GET /v1alpha/user/balance"]


def test_the_other_version_is_asked_when_the_remembered_one_begins_to_refuse(api, base_url):
    api.get(f"{base_url}/v1alpha/user/balance", status=404)
    api.get(f"{base_url}/v1/user/balance", json={"credits": 5})
    client = StabilityClient(KEY, base_url=base_url)
    client.get_balance()
    api.replace("GET", f"{base_url}/v1alpha/user/balance", json={"credits": 7})
    api.replace("GET", f"{base_url}/v1/user/balance", status=404)
    assert client.get_balance().credits == 7
    assert client.answered_version == "v1alpha"


@pytest.mark.parametrize("version", ["v1alpha", "v1"])
def test_a_pinned_version_is_the_only_one_asked(api, base_url, version):
    api.get(f"{base_url}/{version}/user/balance", status=401, json=UNAUTHORIZED)
    with pytest.raises(StabilityAuthenticationError):
        StabilityClient(KEY, base_url=base_url, api_version=version).get_balance()
    assert sent(api) == [f"GET /{version}/user/balance"]


@pytest.mark.parametrize(
    "failure",
    [
        {"status": 503},
        {"status": 429},
        {"status": 403, "body": "<html>blocked</html>"},
        {"status": 401, "json": {**UNAUTHORIZED, "temporary": True}},
        {"status": 200, "body": "<html>"},
        {"body": requests.ConnectionError("refused")},
    ],
)
def test_an_outage_of_v1alpha_is_no_refusal(api, base_url, failure):
    api.get(f"{base_url}/v1alpha/user/balance", **failure)
    with pytest.raises(StabilityTransientError):
        StabilityClient(KEY, base_url=base_url, retry_deadline=0).get_balance()
    assert sent(api) == ["GET /v1alpha/user/balance"]


def test_an_outage_of_v1_after_a_refusal_is_an_outage_and_v1_is_asked_next(api, base_url):
    api.get(f"{base_url}/v1alpha/user/balance", status=404)
    api.get(f"{base_url}/v1/user/balance", status=503)
    client = StabilityClient(KEY, base_url=base_url, retry_deadline=0)
    for _ in range(2):
        with pytest.raises(StabilityUnavailableError):
            client.get_balance()
    assert sent(api) == ["GET /v1alpha/user/balance", "GET /v1/user/balance", "GET /v1/user/balance"]


def test_the_text_tells_both_answers_when_both_versions_refuse(api, base_url):
    api.get(
        f"{base_url}/v1alpha/user/balance",
        status=404,
        json={"id": "e404", "name": "not_found", "message": "no"},
    )
    api.get(f"{base_url}/v1/user/balance", status=401, json=UNAUTHORIZED)
    with pytest.raises(StabilityAuthenticationError) as failure:
        StabilityClient(KEY, base_url=base_url).get_balance()
    text = str(failure.value)
    assert text.startswith("Both API versions refused. ")
    assert "GET /v1alpha/user/balance answered 404 not_found: no (error id e404)." in text
    assert (
        "GET /v1/user/balance answered 401 unauthorized: missing authorization header (error id e401)."
        in text
    )
    assert text.endswith(StabilityAuthenticationError.advice)
    assert text.count("http") == 1  # one advice, not two
    assert (failure.value.status, failure.value.error_id) == (401, "e401")


@pytest.mark.parametrize(
    ("first", "second", "kind", "status"),
    [
        (401, 404, StabilityAuthenticationError, 401),
        (404, 402, StabilityPaymentRequiredError, 402),
        (301, 401, StabilityAuthenticationError, 401),
        (401, 301, StabilityAuthenticationError, 401),
        (404, 410, StabilityNotFoundError, 410),
        (401, 401, StabilityAuthenticationError, 401),
        (400, 422, StabilityRequestError, 422),
    ],
)
def test_of_two_refusals_the_one_that_tells_more_counts(api, base_url, first, second, kind, status):
    api.get(f"{base_url}/v1alpha/user/balance", status=first, json={"id": "first", "name": "n"})
    api.get(f"{base_url}/v1/user/balance", status=second, json={"id": "second", "name": "n"})
    with pytest.raises(StabilityPermanentError) as failure:
        StabilityClient(KEY, base_url=base_url).get_balance()
    assert type(failure.value) is kind
    assert failure.value.status == status
    assert "first" in str(failure.value)
    assert "second" in str(failure.value)


# Retries


def test_rate_limit_waits_out_the_lockout(api, base_url, clock):
    api.get(f"{base_url}/v1/user/balance", status=429, json={"id": "e", "name": "rate_limit_exceeded"})
    api.get(f"{base_url}/v1/user/balance", json={"credits": 5})
    assert StabilityClient(KEY, base_url=base_url, api_version="v1").get_balance().credits == 5
    assert len(clock.waits) == 1
    assert 60 <= clock.waits[0] <= 66


@pytest.mark.parametrize("status", [429, 503, 500])
def test_a_wait_is_never_shorter_than_retry_after(api, base_url, clock, status):
    api.get(f"{base_url}/v1/user/balance", status=status, headers={"Retry-After": "17"})
    api.get(f"{base_url}/v1/user/balance", json={"credits": 5})
    StabilityClient(KEY, base_url=base_url, api_version="v1").get_balance()
    assert 17 <= clock.waits[0] <= 18.7


def test_a_wait_that_does_not_fit_is_told_instead_of_begun(api, base_url, clock):
    api.get(f"{base_url}/v1/user/balance", status=429, headers={"Retry-After": "600"})
    with pytest.raises(StabilityRateLimitError, match="no new attempt for 600 s") as failure:
        StabilityClient(KEY, base_url=base_url, api_version="v1").get_balance()
    assert failure.value.retry_after == 600
    assert clock.waits == []


def test_temporary_false_ends_the_call(api, base_url, clock):
    api.get(f"{base_url}/v1/user/balance", status=500, json={"id": "e", "name": "n", "temporary": False})
    with pytest.raises(StabilityUnavailableError):
        StabilityClient(KEY, base_url=base_url, api_version="v1").get_balance()
    assert len(sent(api)) == 1


def test_temporary_true_makes_a_refusal_worth_another_attempt(api, base_url, clock):
    api.get(f"{base_url}/v1/user/balance", status=400, json={"id": "e", "name": "n", "temporary": True})
    api.get(f"{base_url}/v1/user/balance", json={"credits": 5})
    assert StabilityClient(KEY, base_url=base_url, api_version="v1").get_balance().credits == 5


def test_a_firewalls_403_is_tried_again(api, base_url, clock):
    api.get(f"{base_url}/v1/user/balance", status=403, body="<html>blocked</html>")
    with pytest.raises(StabilityBlockedError):
        StabilityClient(KEY, base_url=base_url, api_version="v1", retry_deadline=10).get_balance()
    assert len(sent(api)) > 1
    assert sum(clock.waits) < 10


@pytest.mark.parametrize("status", [400, 401, 402, 404, 422, 301])
def test_a_refusal_is_not_tried_again(api, base_url, status):
    api.get(f"{base_url}/v1/user/balance", status=status)
    with pytest.raises(StabilityPermanentError):
        StabilityClient(KEY, base_url=base_url, api_version="v1").get_balance()
    assert len(sent(api)) == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "HEAD", "post"])
@pytest.mark.parametrize(
    "failure", [{"status": 503}, {"status": 429}, {"body": requests.ConnectionError("reset")}]
)
def test_only_get_is_ever_repeated(api, base_url, method, failure):
    api.add(method.upper(), f"{base_url}/v2beta/generate", **failure)
    with pytest.raises((StabilityTransientError, StabilityOutcomeUnknownError)):
        StabilityClient(KEY, base_url=base_url).request(method, "/v2beta/generate")
    assert len(sent(api)) == 1


def test_a_get_of_any_path_is_repeated(api, base_url, clock):
    api.get(f"{base_url}/v1/engines/list", status=503)
    api.get(f"{base_url}/v1/engines/list", json=[])
    assert StabilityClient(KEY, base_url=base_url).request("get", "/v1/engines/list").json() == []


# request()


@pytest.mark.parametrize(
    ("path", "authorization", "identity"),
    [
        ("/v2beta/stable-image/generate/core", f"Bearer {KEY}", "airflow-provider-stability"),
        ("/v1/engines/list", f"Bearer {KEY}", "airflow-provider-stability"),
        ("/v1alpha/engines/list", KEY, None),
        ("/v1alphabet", f"Bearer {KEY}", "airflow-provider-stability"),
    ],
)
def test_any_path_gets_the_same_key_in_its_versions_form(api, base_url, path, authorization, identity):
    api.post(f"{base_url}{path}", body=b"\x89PNG", status=201)
    client = StabilityClient(KEY, base_url=base_url, organization="org-1")
    response = client.request("POST", path, json={"a": 1}, headers={"X-Mine": "1"})
    assert (response.status_code, response.content) == (201, b"\x89PNG")
    headers = api.calls[0].request.headers
    assert headers["Authorization"] == authorization
    assert headers.get("Stability-Client-ID") == identity
    assert headers["X-Mine"] == "1"
    assert "Organization" not in headers
    assert json.loads(api.calls[0].request.body) == {"a": 1}


def test_the_key_cannot_be_replaced_by_a_header_of_a_call(api, base_url):
    api.post(f"{base_url}/v2beta/x")
    StabilityClient(KEY, base_url=base_url).request("POST", "/v2beta/x", headers={"authorization": "other"})
    assert api.calls[0].request.headers["Authorization"] == f"Bearer {KEY}"


def test_want_of_credit_has_an_error_of_its_own(api, base_url):
    api.post(
        f"{base_url}/v2beta/x",
        status=402,
        json={"id": "e402", "name": "payment_required", "errors": ["no credits"]},
    )
    with pytest.raises(StabilityPaymentRequiredError, match="Buy credits at https://") as failure:
        StabilityClient(KEY, base_url=base_url).request("POST", "/v2beta/x", files={"none": ""})
    assert (failure.value.status, failure.value.error_id, failure.value.message) == (
        402,
        "e402",
        "no credits",
    )


@pytest.mark.parametrize(
    "path", ["", "v1/x", "@evil.example/", ".evil.example/", ":80/", "https://evil.example/", "?x", "#"]
)
def test_a_path_cannot_change_the_host(api, base_url, path):
    with pytest.raises(StabilityConfigurationError, match="path must begin with /"):
        StabilityClient(KEY, base_url=base_url).request("GET", path)
    assert sent(api) == []


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example/x",
        "/@evil.example",
        "/\\evil.example",
        "/..//evil.example",
        "/\r\nHost: evil",
        "/\ud800",
    ],
)
def test_an_odd_path_stays_on_the_host(api, base_url, path):
    api.get(re.compile(".*"), status=404)
    with pytest.raises(StabilityError) as failure:
        StabilityClient(KEY, base_url=base_url, retry_deadline=0).request("GET", path)
    for call in api.calls:
        assert call.request.url.startswith(f"{base_url}/")
        assert "\n" not in call.request.url
    assert str(failure.value).isprintable()


@pytest.mark.parametrize("method", ["", "GET /x HTTP/1.1\r\nX:", "G\x00", "ПОСТ", "GET "])
def test_a_method_is_a_word(api, base_url, method):
    with pytest.raises(StabilityConfigurationError, match=r"^method must be an HTTP method") as failure:
        StabilityClient(KEY, base_url=base_url).request(method, "/v1/x")
    assert str(failure.value).isprintable()
    assert sent(api) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"headers": {"X": "a\r\nAuthorization: other"}},
        {"headers": {"X\r\nY": "a"}},
        {"headers": {"X": "ключ"}},
        {"headers": {"X": 5}},
        {"json": float("nan")},
        {"data": "x", "files": {"a": b"x"}},
        {"data": 5},
        {"json": {"a": object()}},
        {"max_seconds": 5},
        {"no_such_argument": "x"},
        {"headers": [("a", "b")]},
        {"timeout": 0},
        {"timeout": float("inf")},
    ],
)
def test_arguments_that_cannot_be_sent_are_a_configuration_error(api, base_url, arguments):
    with pytest.raises(StabilityConfigurationError) as failure:
        StabilityClient(KEY, base_url=base_url).request("POST", "/v1/x", **arguments)
    assert KEY not in all_said(failure.value)
    assert failure.value.__context__ is None
    assert sent(api) == []


def test_a_call_can_have_a_timeout_of_its_own(api, base_url):
    api.post(
        f"{base_url}/v1/x",
        match=[matchers.request_kwargs_matcher({"timeout": 90.0, "stream": True, "verify": True})],
    )
    StabilityClient(KEY, base_url=base_url).request("POST", "/v1/x", timeout=90)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206])
def test_every_success_is_a_success_of_request_and_counts_as_accepted(api, base_url, status):
    api.post(f"{base_url}/v1/x", status=status)
    client = StabilityClient(KEY, base_url=base_url)
    assert client.maybe_paid == 0
    assert client.request("POST", "/v1/x").status_code == status
    assert client.maybe_paid == 1


# Calls that may be paid for


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "post"])
@pytest.mark.parametrize(
    "raised",
    [
        requests.ReadTimeout("x"),
        requests.ConnectionError("reset"),
        requests.exceptions.ChunkedEncodingError("broken"),
        requests.exceptions.SSLError("bad record mac"),
        ConnectionResetError("reset"),
        ValueError("odd"),
    ],
)
def test_where_it_is_not_certain_that_nothing_was_sent_the_outcome_is_unknown(api, base_url, method, raised):
    api.add(method.upper(), f"{base_url}/v1/x", body=raised)
    client = StabilityClient(KEY, base_url=base_url)
    with pytest.raises(StabilityOutcomeUnknownError, match="/v1/x got no complete response") as failure:
        client.request(method, "/v1/x")
    assert "may have been accepted and paid for: look at the balance" in str(failure.value)
    assert failure.value.__context__ is None
    assert (failure.value.status, client.maybe_paid) == (None, 1)
    assert not isinstance(failure.value, StabilityTransientError | StabilityPermanentError)
    assert len(sent(api)) == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize(
    ("raised", "kind"),
    [(requests.ReadTimeout("x"), StabilityTimeoutError), (OSError("reset"), StabilityNetworkError)],
)
def test_a_call_that_only_asks_may_be_made_again(api, base_url, method, raised, kind):
    api.add(method, f"{base_url}/v1/x", body=raised)
    with pytest.raises(kind):
        StabilityClient(KEY, base_url=base_url, retry_deadline=0).request(method, "/v1/x")


@pytest.mark.parametrize("body", [b"", b'{"id": "e", "name": "n", "errors": ["no"]}'])
@pytest.mark.parametrize("status", [101, 302, 304, 400, 402, 403, 429, 500, 502, 503, 504, 999])
def test_a_call_that_was_not_answered_with_success_is_not_accepted(api, base_url, status, body):
    if not body and status in (500, 502, 504):
        body = b'{"id": "e", "name": "n", "message": "no"}'  # what a gateway answers: see below
    api.post(f"{base_url}/v1/x", status=status, body=body)
    client = StabilityClient(KEY, base_url=base_url)
    with pytest.raises((StabilityTransientError, StabilityPermanentError)) as failure:
        client.request("POST", "/v1/x")
    assert (failure.value.status, client.maybe_paid) == (status, 0)


@pytest.mark.parametrize("status", [500, 501, 502, 504, 520, 599])
@pytest.mark.parametrize(
    ("body", "quoted"),
    [
        (b"", ""),
        (b"<html><h1>Bad gateway</h1></html>", ": <html><h1>Bad gateway</h1></html>"),
        (b'{"message": "no upstream"}', ": no upstream"),
        (b'{"name": "bad_gateway", "message": "no upstream"}', " bad_gateway: no upstream"),
        (b'{"id": "e", "message": "no upstream"}', ": no upstream (error id e)"),
    ],
)
def test_the_outcome_is_unknown_if_a_gateway_has_answered(api, base_url, status, body, quoted):
    api.post(f"{base_url}/v1/x", status=status, body=body)
    api.get(f"{base_url}/v1/x", status=status, body=body)
    client = StabilityClient(KEY, base_url=base_url, retry_deadline=0)
    with pytest.raises(StabilityOutcomeUnknownError) as failure:
        client.request("POST", "/v1/x")
    assert str(failure.value) == (
        f"POST /v1/x answered {status}{quoted}. A gateway has answered, not the API. {failure.value.advice}"
    )
    assert (failure.value.status, client.maybe_paid) == (status, 1)
    with pytest.raises(StabilityUnavailableError):
        client.request("GET", "/v1/x")
    assert client.maybe_paid == 1


class Interrupted(BaseException):
    """What Airflow raises in the middle of anything when the time of a task is over."""


@pytest.mark.parametrize(("method", "counted"), [("POST", 1), ("DELETE", 1), ("GET", 0)])
@pytest.mark.parametrize("raised", [Interrupted(), KeyboardInterrupt(), SystemExit(1), RuntimeError("odd")])
def test_a_call_that_is_cut_off_may_have_been_paid_for(api, base_url, method, counted, raised):
    def interrupt(request):
        raise raised

    api.add_callback(method, f"{base_url}/v1/x", callback=interrupt)
    client = StabilityClient(KEY, base_url=base_url, retry_deadline=0)
    with pytest.raises(type(raised)):
        client.request(method, "/v1/x")
    assert client.maybe_paid == counted


def test_a_call_that_is_cut_off_before_it_was_sent_costs_nothing(monkeypatch, base_url):
    def interrupt(*args, **kwargs):
        raise Interrupted

    monkeypatch.setattr(socket, "getaddrinfo", interrupt)
    client = StabilityClient(KEY, base_url=base_url)
    with pytest.raises(Interrupted):
        client.request("POST", "/v1/x")
    assert client.maybe_paid == 0


def test_a_call_that_is_under_way_may_have_been_paid_for(api, base_url):
    client = StabilityClient(KEY, base_url=base_url)
    meanwhile = []

    def answer(request):
        meanwhile.append(client.maybe_paid)
        return (402, {}, b"")

    api.add_callback("POST", f"{base_url}/v1/x", callback=answer)
    with pytest.raises(StabilityPaymentRequiredError):
        client.request("POST", "/v1/x")
    assert (meanwhile, client.maybe_paid) == ([1], 0)


def test_a_call_of_request_is_not_durable(api, base_url):
    api.post(f"{base_url}/v1/x")
    client = StabilityClient(KEY, base_url=base_url)
    client.request("POST", "/v1/x")
    assert (client.maybe_paid, client.maybe_paid_durably) == (1, 0)


def test_calls_that_only_ask_are_not_counted_as_accepted(api, base_url):
    api.get(f"{base_url}/v1/user/balance", json={"credits": 5})
    client = StabilityClient(KEY, base_url=base_url, api_version="v1")
    client.get_balance()
    for method in ("GET", "HEAD", "OPTIONS"):
        api.add(method, f"{base_url}/v1/x")
        client.request(method, "/v1/x")
    assert client.maybe_paid == 0


def test_a_success_whose_body_cannot_be_unpacked_was_accepted(api, base_url):
    api.post(f"{base_url}/v1/x", body=b"no gzip", headers={"Content-Encoding": "gzip"})
    client = StabilityClient(KEY, base_url=base_url)
    with pytest.raises(StabilityOutcomeUnknownError, match="its status was 200") as failure:
        client.request("POST", "/v1/x")
    assert (failure.value.status, client.maybe_paid) == (200, 1)


@pytest.mark.parametrize(
    "raised", [requests.ConnectionError(f"cannot reach {KEY}"), ValueError(f"invalid chunk {KEY}")]
)
def test_a_key_does_not_get_into_the_text_of_an_unknown_outcome(api, base_url, raised):
    api.post(f"{base_url}/v1/x", body=raised)
    with pytest.raises(StabilityOutcomeUnknownError) as failure:
        StabilityClient(KEY, base_url=base_url, proxy=PROXY).request("POST", "/v1/x")
    assert KEY not in all_said(failure.value)
    assert KEY not in locals_of(failure.value)
    assert "PASSWORD" not in locals_of(failure.value)


# Answers


@pytest.mark.parametrize("status", [201, 202, 204, 206])
def test_a_balance_comes_with_200_only(api, base_url, status):
    api.get(f"{base_url}/v1/user/balance", status=status, json={"credits": 5})
    with pytest.raises(StabilityMalformedResponseError, match=f"answered {status}"):
        StabilityClient(KEY, base_url=base_url, api_version="v1", retry_deadline=0).get_balance()


@pytest.mark.parametrize("size", [1024 * 1024 + 1, 3 * 1024 * 1024])
def test_an_answer_beyond_one_mebibyte_is_not_read(api, base_url, size):
    api.get(f"{base_url}/v1/user/balance", body=b" " * size)
    with pytest.raises(StabilityMalformedResponseError, match="has more than 1048576 bytes"):
        StabilityClient(KEY, base_url=base_url, api_version="v1", retry_deadline=0).get_balance()


def test_an_answer_of_one_mebibyte_is_read(api, base_url):
    api.get(f"{base_url}/v1/user/balance", body=b'{"credits": 5}'.ljust(1024 * 1024))
    assert StabilityClient(KEY, base_url=base_url, api_version="v1").get_balance().credits == 5


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, StabilityAuthenticationError),
        (402, StabilityPaymentRequiredError),
        (429, StabilityRateLimitError),
    ],
)
@pytest.mark.parametrize(
    "unreadable", [{"headers": {"Content-Encoding": "gzip"}, "body": b"x"}, {"body": b" " * 1024 * 1024 * 2}]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_status_counts_even_if_its_body_cannot_be_read(api, base_url, status, kind, unreadable, method):
    api.add(method, f"{base_url}/v1/x", status=status, **unreadable)
    with pytest.raises(kind):
        StabilityClient(KEY, base_url=base_url, retry_deadline=0).request(method, "/v1/x")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "GZIP"])
def test_a_compressed_answer_is_refused_unread(api, base_url, encoding):
    api.get(f"{base_url}/v1/user/balance", body=b"x", headers={"Content-Encoding": encoding})
    with pytest.raises(StabilityMalformedResponseError, match="compressed, which was not requested"):
        StabilityClient(KEY, base_url=base_url, api_version="v1", retry_deadline=0).get_balance()


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (requests.ConnectTimeout("x"), StabilityTimeoutError),
        (requests.ReadTimeout("x"), StabilityTimeoutError),
        (requests.ConnectionError(TimeoutError("timed out")), StabilityNetworkError),
        (requests.exceptions.SSLError("certificate verify failed"), StabilityNetworkError),
        (requests.exceptions.ProxyError("Tunnel connection failed: 407"), StabilityNetworkError),
        (requests.exceptions.ChunkedEncodingError("broken"), StabilityNetworkError),
        (requests.exceptions.ContentDecodingError("broken"), StabilityNetworkError),
        (ConnectionResetError("reset"), StabilityNetworkError),
        (ValueError("odd"), StabilityNetworkError),
    ],
)
def test_no_answer_is_a_network_error_or_a_timeout_on_that_path(api, base_url, raised, kind):
    api.get(f"{base_url}/v1/user/balance", body=raised)
    with pytest.raises(kind, match=r"^GET /v1/user/balance got no complete response") as failure:
        StabilityClient(KEY, base_url=base_url, api_version="v1", retry_deadline=0).get_balance()
    assert failure.value.__context__ is None
    assert failure.value.status is None


def test_a_failure_while_another_is_handled_is_not_told_as_the_other(api, base_url):
    api.get(f"{base_url}/v1/user/balance", body=requests.ConnectionError("refused"))
    client = StabilityClient(KEY, base_url=base_url, api_version="v1", retry_deadline=0)
    with pytest.raises(StabilityNetworkError, match="ConnectionError: refused") as failure:  # noqa: PT012
        try:
            raise KeyError("the caller's own")
        except KeyError:
            client.get_balance()
    assert "the caller's own" not in str(failure.value)


# What is never told


def test_a_client_is_shown_without_its_key(base_url):
    client = StabilityClient(KEY, base_url=base_url, organization="org-1", proxy=PROXY)
    for shown in (repr(client), str(client), f"{client}", repr(client._sender._session.headers)):
        assert KEY not in shown
        assert "PASSWORD" not in shown
    assert base_url in repr(client)
    assert KEY not in repr(vars(client))
    assert KEY not in repr(vars(client._sender))


def test_a_key_that_stands_in_a_gateways_address_is_masked(api, base_url):
    key = "A-Gateways-Own-Key"
    api.get(f"{base_url}/{key}/v1/user/balance", body=requests.ConnectionError(f"no {key.lower()}"))
    client = StabilityClient(key, base_url=f"{base_url}/{key}", api_version="v1", retry_deadline=0)
    with pytest.raises(StabilityNetworkError) as failure:
        client.get_balance()
    with pytest.raises(StabilityConfigurationError) as mistake:
        client.request("GET", "no-path")
    assert key.lower() not in f"{failure.value} {mistake.value} {client!r}".lower()
    assert f"{base_url}/***" in str(failure.value)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 429, 500, 418])
def test_a_key_that_the_server_echoes_is_masked_in_every_field(api, base_url, status):
    body = {"id": f"e-{KEY}", "name": f"n {KEY}", "message": f"bad key 'Bearer {KEY}'"}
    api.get(f"{base_url}/v1/user/balance", status=status, json=body)
    with pytest.raises(StabilityError, match=r"\*\*\*") as failure:
        StabilityClient(KEY, base_url=base_url, api_version="v1", retry_deadline=0).get_balance()
    assert KEY not in all_said(failure.value)


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 302, "headers": {"Location": f"https://elsewhere.example/?key={KEY}"}},
        {"status": 200, "body": "x", "headers": {"Content-Type": f"text/{KEY}"}},
        {"status": 200, "body": json.dumps({"credits": KEY})},
        {"status": 200, "body": json.dumps({KEY: 1})},
        {"status": 200, "body": KEY},
        {"status": 503, "body": f"<html>{KEY}</html>"},
        {"status": 401, "json": {"id": "e", "name": "n", "errors": [KEY, KEY]}},
        {"status": 401, "body": "x" * 495 + KEY},
        {"status": 200, "body": "x", "headers": {"Content-Encoding": KEY}},
        {"status": 429, "headers": {"Retry-After": KEY, "Date": KEY}},
        {"body": requests.ConnectionError(f"cannot reach {KEY}")},
        {"body": ValueError(f"invalid chunk {KEY}")},
    ],
)
@pytest.mark.parametrize("version", ["v1", "auto"])
def test_a_key_that_comes_back_in_any_place_is_masked(api, base_url, answer, version):
    for path in ("v1", "v1alpha"):
        api.get(f"{base_url}/{path}/user/balance", **answer)
    with pytest.raises(StabilityError) as failure:
        StabilityClient(KEY, base_url=base_url, api_version=version, retry_deadline=0).get_balance()
    assert KEY not in all_said(failure.value)


@pytest.mark.parametrize("password", ["pr0xy-PASSWORD", quote("pr0xy@PASSWORD:/", safe="")])
def test_the_password_of_a_proxy_is_masked(api, base_url, password):
    api.get(
        f"{base_url}/v1/user/balance", body=requests.exceptions.ProxyError(f"http://u:{password}@p: failed")
    )
    client = StabilityClient(
        KEY, base_url=base_url, api_version="v1", retry_deadline=0, proxy=f"http://u:{password}@p"
    )
    with pytest.raises(StabilityNetworkError) as failure:
        client.get_balance()
    assert "PASSWORD" not in all_said(failure.value)
    assert "PASSWORD" not in repr(client)


@pytest.mark.parametrize(
    "proxy", ["http://user:PASSWORD@proxy:port", "user:PASSWORD@proxy:99999", "odd://u:PASSWORD@p"]
)
def test_the_password_of_a_broken_proxy_in_the_environment_is_masked(base_url, proxy, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", proxy)  # without `responses`: requests itself stumbles over it
    with pytest.raises(StabilityNetworkError) as failure:
        StabilityClient(KEY, base_url=base_url, api_version="v1", retry_deadline=0).get_balance()
    assert "PASSWORD" not in all_said(failure.value)
    assert "PASSWORD" not in locals_of(failure.value)


def locals_of(error: BaseException) -> str:
    """Return the local variables of our frames and those below, as tools that show them do."""
    frames = [
        frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename != __file__
    ]
    return "\n".join(repr(value) for frame in frames for value in frame.f_locals.values())


@pytest.mark.parametrize(
    "answer", [{"status": 401, "json": UNAUTHORIZED}, {"status": 200, "body": "x"}, {"body": OSError("x")}]
)
@pytest.mark.parametrize("call", [lambda c: c.get_balance(), lambda c: c.request("POST", "/v1/user/balance")])
def test_no_frame_of_a_traceback_shows_a_secret_among_its_variables(api, base_url, answer, call):
    api.get(f"{base_url}/v1/user/balance", **answer)
    api.post(f"{base_url}/v1/user/balance", status=401)
    client = StabilityClient(KEY, base_url=base_url, api_version="v1", retry_deadline=0, proxy=PROXY)
    with pytest.raises(StabilityError) as failure:
        call(client)
    assert KEY not in locals_of(failure.value)
    assert "PASSWORD" not in locals_of(failure.value)


def test_nothing_secret_is_logged(api, base_url, clock, caplog):
    caplog.set_level(logging.DEBUG)
    api.get(f"{base_url}/v1/user/balance", status=503, json={"id": "e", "name": "n", "message": f"for {KEY}"})
    with pytest.raises(StabilityUnavailableError):
        StabilityClient(KEY, base_url=base_url, api_version="v1", proxy=PROXY).get_balance()
    assert "Retrying in" in caplog.text
    assert KEY not in caplog.text
    assert "PASSWORD" not in caplog.text


@pytest.mark.parametrize(
    "arguments",
    [
        {"base_url": "https://user:pw@host"},
        {"base_url": f"https://{KEY}@host"},
        {"base_url": f"https://host?key={KEY}"},
        {"api_version": "v2"},
        {"request_timeout": 0},
        {"retry_deadline": -1},
        {"client_id": "a\r\nb"},
        {"user_agent": ""},
        {"proxy": "no url"},
        {"ca_bundle": "/no/such/file"},
        {"organization": ""},
    ],
)
def test_a_setting_that_cannot_work_is_found_before_anything_is_sent_and_shows_no_key(arguments):
    with pytest.raises(StabilityConfigurationError) as failure:
        StabilityClient(KEY, **arguments)
    assert KEY not in all_said(failure.value)


# Answers to others' own calls


def foreign(api, url, *, stream=False, authorization=f"Bearer {KEY}", **answer) -> requests.Response:
    """Return the answer to a call that somebody made with requests alone."""
    api.post(url, **answer)
    headers = {"Authorization": authorization} if authorization else {}
    return requests.post(url, headers=headers, stream=stream, allow_redirects=False, timeout=5)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_a_success_of_others_comes_back_as_it_is(api, base_url, status, stream):
    body = b"" if status == 204 else b"\x89PNG"
    answer = foreign(api, f"{base_url}/v2beta/x", stream=stream, status=status, body=body)
    assert check_response(answer) is answer
    assert answer._content_consumed is not stream  # a streamed body is left to be read
    assert answer.content == body


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"id": "e1", "name": "bad_request", "errors": ["no"]}, StabilityRequestError),
        (401, UNAUTHORIZED, StabilityAuthenticationError),
        (402, {"id": "e1", "name": "payment_required", "errors": ["no"]}, StabilityPaymentRequiredError),
        (403, {"id": "e1", "name": "permission_denied", "errors": ["no"]}, StabilityPermissionError),
        (403, {}, StabilityBlockedError),
        (404, {"id": "e1", "name": "not_found", "errors": ["no"]}, StabilityNotFoundError),
        (429, {"id": "e1", "name": "rate_limit_exceeded", "errors": ["no"]}, StabilityRateLimitError),
        (503, {"id": "e1", "name": "service_unavailable", "errors": ["no"]}, StabilityUnavailableError),
        (302, {}, StabilityRedirectError),
        (300, {}, StabilityRedirectError),
        (999, {}, StabilityMalformedResponseError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_of_others_stands_for_the_same_error_as_one_of_ours(
    api, base_url, status, body, kind, stream
):
    headers = {"Retry-After": "7", "Location": "https://elsewhere.example/"}
    answer = foreign(
        api, f"{base_url}/v2beta/x?q=1#f", stream=stream, status=status, json=body, headers=headers
    )
    with pytest.raises(StabilityError) as theirs:
        check_response(answer)
    with pytest.raises(StabilityError) as ours:
        StabilityClient(KEY, base_url=base_url).request("POST", "/v2beta/x", params={"q": 1})
    assert type(theirs.value) is type(ours.value) is kind
    assert str(theirs.value) == str(ours.value)
    assert vars(theirs.value) == vars(ours.value)
    assert str(theirs.value).startswith(f"POST /v2beta/x answered {status}")


def test_a_redirect_of_others_is_not_read():
    class Unread(io.BytesIO):
        def read(self, size=-1):
            raise AssertionError("it is read")

    with pytest.raises(StabilityRedirectError, match=r"to /y\."):
        check_response(made_by_hand(302, headers=CaseInsensitiveDict(Location="/y"), raw=Unread()))


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_compressed_error_of_others_is_read(api, base_url, encoding, stream):
    body = json.dumps({"id": "e1", "name": "payment_required", "errors": ["no"]}).encode()
    packed = zlib.compress(body) if encoding == "deflate" else gzip.compress(body)
    answer = foreign(
        api,
        f"{base_url}/x",
        stream=stream,
        status=402,
        body=packed,
        headers={"Content-Encoding": encoding},
    )
    with pytest.raises(StabilityPaymentRequiredError) as failure:
        check_response(answer)
    assert (failure.value.error_id, failure.value.message) == ("e1", "no")


@pytest.mark.parametrize("packed", [False, True])
def test_of_a_streamed_error_of_others_no_more_than_the_limit_is_read(api, base_url, packed):
    flood = b" " * 64 * 1024 * 1024
    extra = {"headers": {"Content-Encoding": "gzip"}} if packed else {}
    answer = foreign(
        api,
        f"{base_url}/x",
        stream=True,
        status=402,
        body=gzip.compress(flood) if packed else flood,
        **extra,
    )
    tracemalloc.start()
    try:
        with pytest.raises(StabilityPaymentRequiredError) as failure:
            check_response(answer)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 16 * 1024 * 1024
    assert failure.value.message is None


@pytest.mark.parametrize("encoding", ["gzip, gzip", "br", "zstd"])
def test_what_unpacks_without_bounds_is_not_unpacked_for_others_either(api, base_url, encoding):
    answer = foreign(
        api,
        f"{base_url}/x",
        stream=True,
        status=402,
        body=gzip.compress(gzip.compress(b"words")),
        headers={"Content-Encoding": encoding},
    )
    with pytest.raises(StabilityPaymentRequiredError) as failure:
        check_response(answer)
    assert failure.value.message is None


def test_what_others_have_read_already_is_not_compressed_any_more():
    headers = CaseInsensitiveDict({"Content-Encoding": "br"})
    answer = made_by_hand(headers=headers, raw=io.BytesIO(), _content=b"words", _content_consumed=True)
    with pytest.raises(StabilityPaymentRequiredError) as failure:
        check_response(answer)
    assert failure.value.message == "words"


def test_a_streamed_error_of_others_is_closed(api, base_url):
    answer = foreign(api, f"{base_url}/x", stream=True, status=402, body=b"x" * 2 * 1024 * 1024)
    with pytest.raises(StabilityPaymentRequiredError):
        check_response(answer)
    assert answer.raw.closed


@pytest.mark.parametrize("unreadable", [b"no gzip", "consumed"])
def test_a_status_of_others_counts_even_if_its_body_cannot_be_read(api, base_url, unreadable):
    headers = {"Content-Encoding": "gzip"} if unreadable == b"no gzip" else {}
    answer = foreign(api, f"{base_url}/x", stream=True, status=402, body=unreadable, headers=headers)
    if unreadable == "consumed":
        list(answer.iter_content())
    with pytest.raises(StabilityPaymentRequiredError) as failure:
        check_response(answer)
    assert failure.value.__context__ is None


@pytest.mark.parametrize(
    "authorization", [f"Bearer {KEY}", f"bearer  {KEY}", KEY, f"Bearer {KEY}".encode(), f"Token {KEY} "]
)
@pytest.mark.parametrize("status", [302, 401, 402, 403, 503])
def test_a_key_that_others_sent_is_masked_in_what_is_said(api, base_url, authorization, status):
    body = {"id": f"e-{KEY}", "name": f"n {KEY}", "message": f"bad key 'Bearer {KEY}'"}
    answer = foreign(
        api,
        f"{base_url}/of/{KEY}?key={KEY}",
        authorization=authorization,
        status=status,
        json=body,
        headers={"Location": f"/{KEY}"},
    )
    with pytest.raises(StabilityError, match=r"^POST /of/\*\*\* answered .*\*\*\*") as failure:
        check_response(answer)
    assert KEY not in all_said(failure.value)
    assert KEY not in locals_of(failure.value)


def test_a_key_that_others_sent_before_a_redirect_is_masked_too(api, base_url):
    api.get(f"{base_url}/x", status=302, headers={"Location": f"https://elsewhere.example/{KEY}"})
    api.get(f"https://elsewhere.example/{KEY}", status=404, body=f"no {KEY}")
    answer = requests.get(f"{base_url}/x", headers={"Authorization": f"Bearer {KEY}"}, timeout=5)
    assert "Authorization" not in answer.request.headers
    with pytest.raises(StabilityNotFoundError, match=r"GET /\*\*\* answered 404: no \*\*\*\.") as failure:
        check_response(answer)
    assert KEY not in all_said(failure.value)


def made_by_hand(status=402, **attributes) -> requests.Response:
    answer = requests.Response()
    answer.status_code = status
    for name, value in attributes.items():
        setattr(answer, name, value)
    return answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (made_by_hand(), "The call answered 402. "),
        (made_by_hand(_content=b"words"), "The call answered 402: words. "),
        (made_by_hand(raw=io.BytesIO(b"words")), "The call answered 402: words. "),
        (made_by_hand(url="https://host.example/x?key=1"), "/x answered 402. "),
        (made_by_hand(url="https://[broken/x"), "The call answered 402. "),
        (made_by_hand(request=requests.PreparedRequest()), "The call answered 402. "),
        (made_by_hand(request=requests.Request()), "The call answered 402. "),
        (made_by_hand(request=object()), "The call answered 402. "),
        (
            made_by_hand(
                request=requests.Request("PUT", "https://h.example/x", headers={"authorization": KEY}),
                _content=KEY.encode(),
            ),
            "PUT /x answered 402: ***. ",
        ),
        (made_by_hand(request=requests.Request("GET", headers={"Authorization": ""})), "GET answered 402. "),
        (made_by_hand(None), "The call answered 0. "),
        (pickle.loads(pickle.dumps(made_by_hand(_content=b"words"))), "The call answered 402: words. "),
    ],
)
def test_an_answer_made_by_hand_is_told_as_far_as_it_goes(answer, said):
    with pytest.raises(StabilityError) as failure:
        check_response(answer)
    assert str(failure.value).startswith(said)


# Whatever the server does

texts = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=80)
header_values = st.one_of(
    texts, st.just(KEY), st.sampled_from(["0", "60", "9" * 400, "gzip", "identity", "chunked", "-1"])
)
jsons = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.just(KEY),
        st.just(f"Bearer {KEY}\u202e"),
    ),
    lambda inner: st.one_of(
        st.lists(inner),
        st.dictionaries(
            st.sampled_from(
                ["id", "name", "message", "errors", "temporary", "credits", "email", "organizations", KEY]
            ),
            inner,
        ),
    ),
    max_leaves=12,
)
bodies = st.one_of(
    st.binary(max_size=2000),
    jsons.map(lambda value: json.dumps(value).encode()),
    st.text(max_size=2000).map(lambda text: (text + KEY).encode("utf-8", "replace")),
    st.just(json.dumps({"credits": 5}).encode()),
    st.just(json.dumps(ACCOUNT).encode()),
)


@settings(max_examples=300)
@given(
    status=st.one_of(
        st.sampled_from([200, 301, 400, 401, 402, 403, 404, 429, 500, 503]), st.integers(100, 999)
    ),
    headers=st.dictionaries(
        st.sampled_from(
            ["Retry-After", "Content-Type", "Location", "Date", "Content-Encoding", "Set-Cookie", "X-Odd"]
        ),
        header_values,
    ),
    body=bodies,
    call=st.sampled_from(["account", "balance", "request"]),
)
def test_whatever_the_server_sends_is_a_model_or_a_stability_error_without_the_key(
    status, headers, body, call
):
    base_url = "https://hostile.example"
    with responses.RequestsMock(assert_all_requests_are_fired=False) as api:
        content_type = headers.pop("Content-Type", None)
        for path in ("v1/user/balance", "v1alpha/user/balance", "v1/user/account", "v1alpha/user/account"):
            api.get(
                f"{base_url}/{path}", status=status, body=body, headers=headers, content_type=content_type
            )
        client = StabilityClient(KEY, base_url=base_url, retry_deadline=0)
        try:
            if call == "account":
                assert isinstance(client.get_account(), Account)
            elif call == "balance":
                assert isinstance(client.get_balance(), Balance)
            else:
                assert 200 <= client.request("GET", "/v1/user/balance").status_code <= 299
        except StabilityError as failure:
            error = failure
        else:
            return
    text = str(error)
    assert KEY not in all_said(error)
    assert KEY not in repr(vars(client))
    assert KEY not in repr(vars(client._sender))
    assert len(text) < 5000
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in text)
    text.encode()
    assert error.message is None or len(error.message) <= 500
    assert error.retry_after is None or 0 <= error.retry_after <= 86400
    assert error.__cause__ is None
    assert error.__context__ is None
    arrived = pickle.loads(pickle.dumps(error))
    assert (type(arrived), str(arrived), vars(arrived)) == (type(error), text, vars(error))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("upstream connect error or disconnect/reset before headers", StabilityOutcomeUnknownError),
        ("no healthy upstream", StabilityUnavailableError),
        ("", StabilityUnavailableError),
    ],
)
def test_a_503_of_a_gateway_whose_connection_broke_has_an_unknown_outcome(api, text, kind):
    api.post("https://api.stability.ai/image", status=503, body=text)
    with StabilityClient(KEY, retry_deadline=0) as client:
        with pytest.raises(kind):
            client.request("POST", "/image")
        assert client.maybe_paid == (kind is StabilityOutcomeUnknownError)
