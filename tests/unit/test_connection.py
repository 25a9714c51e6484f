from __future__ import annotations

import json
import traceback

import pytest
import responses

from airflow_stability.compat import Connection
from airflow_stability.errors import StabilityConfigurationError, StabilityTransientError
from airflow_stability.hooks.connection import client_from_connection, reading_failure, unknown_fields
from airflow_stability.hooks.stability import StabilityHook


def connection(extra=None, *, password="sk-KEY", **fields):
    extra = extra if isinstance(extra, str) else json.dumps(extra or {})
    return Connection(
        conn_id="stability_default", conn_type="stability", password=password, extra=extra, **fields
    )


def make(extra=None, *, retry_deadline=None, **fields):
    return client_from_connection(connection(extra, **fields), retry_deadline=retry_deadline)


def test_a_key_is_enough():
    client = make()

    assert client.base_url == "https://api.stability.ai"
    assert (client.api_version, client.organization) == ("auto", None)
    assert (client.request_timeout, client.retry_deadline) == (10.0, 120.0)


@pytest.mark.parametrize(
    ("fields", "base_url"),
    [
        ({"host": "gateway.example.com"}, "https://gateway.example.com"),
        ({"host": "gateway.example.com", "port": 8443}, "https://gateway.example.com:8443"),
        (
            {"host": "gateway.example.com/stability", "port": 8443},
            "https://gateway.example.com:8443/stability",
        ),
        ({"host": "https://gateway.example.com/stability/"}, "https://gateway.example.com/stability"),
        ({"host": "https://api.stability.ai", "schema": "https"}, "https://api.stability.ai"),
        ({"host": "https://api.stability.ai", "port": 443}, "https://api.stability.ai:443"),
        ({"host": "127.0.0.1", "port": 8080, "schema": "http"}, "http://127.0.0.1:8080"),
        ({"host": "http://localhost:8080"}, "http://localhost:8080"),
        ({"host": "::1", "port": 8080, "schema": "HTTP"}, "http://[::1]:8080"),
        ({"port": 8443}, "https://api.stability.ai:8443"),
        ({"host": " api.stability.ai "}, "https://api.stability.ai"),
        ({"host": "HTTPS://API.STABILITY.AI"}, "https://API.STABILITY.AI"),
        ({"host": "api.stability.ai."}, "https://api.stability.ai."),
    ],
)
def test_host_port_and_schema_make_the_address(fields, base_url):
    assert make(**fields).base_url == base_url


def test_every_field_of_the_extra_counts_and_numbers_may_be_strings():
    client = make(
        {
            "organization": "org-1",
            "api_version": "v1",
            "request_timeout": "2.5",
            "retry_deadline": 7,
            "allow_http": "true",
        },
        host="http://gateway.example.com",
    )

    assert (client.organization, client.api_version) == ("org-1", "v1")
    assert (client.request_timeout, client.retry_deadline) == (2.5, 7.0)


@responses.activate
def test_client_id_and_user_agent_are_sent(base_url):
    answer = responses.get(f"{base_url}/v1/user/balance", json={"credits": 1.0})

    make({"api_version": "v1", "client_id": "acme", "user_agent": "acme/2"}, host=base_url).get_balance()

    headers = answer.calls[0].request.headers
    assert (headers["Stability-Client-ID"], headers["User-Agent"]) == ("acme", "acme/2")


def test_fields_that_were_emptied_in_a_form_are_not_set():
    client = make({"organization": "", "request_timeout": "", "proxy": None}, host="", schema="")

    assert (client.organization, client.request_timeout) == (None, 10.0)
    assert client.base_url == "https://api.stability.ai"


def test_the_argument_for_retries_counts_before_the_extra():
    assert make({"retry_deadline": 7}, retry_deadline=0).retry_deadline == 0.0


@pytest.mark.parametrize(
    ("extra", "fields", "text"),
    [
        ({}, {"password": None}, "The API key is missing"),
        ({}, {"password": None, "login": "sk-KEY"}, "missing: set it as the password, not as the login"),
        ({}, {"password": "sk KEY"}, "character at position 3 of 6"),
        ({}, {"password": "sk-KEYsk-KEY"}, "pasted twice"),
        ({}, {"password": '"sk-KEY"'}, "quotes around it"),
        ({}, {"host": "http://gateway.example.com"}, "would send the API key in clear"),
        (
            {},
            {"host": "https://a.example", "schema": "http"},
            "host begins with https:// but schema says http",
        ),
        ({}, {"host": "https://a.example:1", "port": 2}, "is not a URL"),
        ({}, {"host": "user:pw@a.example"}, "has a user"),
        ({}, {"host": "a.example?x=1"}, "a query"),
        ({}, {"host": "a b.example"}, "has a blank"),
        ({}, {"host": "//a.example"}, "is not a URL"),
        ({}, {"host": "https//a.example"}, "has an invalid host or port"),
        ({}, {"host": "a.example", "port": 0}, "has an invalid host or port"),
        ({}, {"host": "a.example", "port": 99999}, "is not a URL"),
        ({}, {"host": "api.stability.ai/v1"}, "has a path"),
        ({}, {"host": "a.example\\b"}, "has an invalid host or port"),
        ({}, {"schema": "ftp"}, "is neither http nor https"),
        (
            {"request_timeout": "soon"},
            {},
            "unable to parse string as a number, but is 'soon'",
        ),
        ({"request_timeout": 0}, {}, "request_timeout must be a finite number of seconds, more than 0"),
        ({"retry_deadline": -1}, {}, "retry_deadline must be a finite number of seconds, 0 or more"),
        ({"api_version": "v2"}, {}, "api_version must be auto, v1alpha or v1; got 'v2'"),
        ({"organization": "org 1"}, {}, "organization must be an id"),
        ({"organization": "org\r\nX: 1"}, {}, "organization must be an id"),
        ({"organization": "sk-KEY0KEY0"}, {}, "organization must be an id"),
        ({"api_version": "sk-KEY0KEY0"}, {}, "api_version must be auto, v1alpha or v1; got 'sk-***'"),
        ({"organization": 5}, {}, "extra.organization: input should be a valid string, but is 5"),
        ({"allow_http": "perhaps"}, {}, "extra.allow_http: "),
        ({"proxy": "proxy"}, {}, "proxy must be a URL"),
        ({"ca_bundle": "/no/such/file"}, {}, "ca_bundle must be the path of an existing file or folder"),
        ({"user_agent": "a\nb"}, {}, "user_agent must be"),
    ],
)
def test_a_field_that_cannot_work_is_named_in_one_sentence(extra, fields, text):
    with pytest.raises(StabilityConfigurationError) as raised:
        make(extra, **fields)

    assert str(raised.value).startswith("Connection 'stability_default': ")
    assert text in str(raised.value)
    assert "KEY" not in str(raised.value)
    assert raised.value.__context__ is None


@pytest.mark.parametrize(
    "written",
    [
        "stability://:sk-KEY@api.stability.ai",
        "stability://:Bearer%20sk-KEY%0D%0A@https%3A%2F%2Fapi.stability.ai",
        "stability://:STABILITY_API_KEY%3Dsk-KEY@/https",
        '{"conn_type": "stability", "password": "\ufeffsk-KEY\\n", "host": " HTTPS://api.stability.ai/ "}',
        '{"conn_type": "stability", "password": "Authorization: Bearer sk-KEY"}',
    ],
)
def test_a_key_that_was_copied_with_something_around_it_is_understood_in_each_form(written, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", written)
    client = StabilityHook().get_conn()

    assert (client.secrets, client.base_url) == (("sk-KEY",), "https://api.stability.ai")


def test_a_proxys_password_is_in_no_text():
    with pytest.raises(StabilityConfigurationError) as raised:
        make({"proxy": "http://user:SECRET@[bad"})

    assert "SECRET" not in str(raised.value)


def test_mistyped_fields_are_found():
    assert unknown_fields(connection({"organisation": "org-1", "organization": "org-1"})) == ["organisation"]


# Airflow 2.11 warns of such an extra, and takes it.
takes_any_extra = pytest.mark.filterwarnings("ignore:Encountered")


@takes_any_extra
@pytest.mark.parametrize("extra", ["[1, 2]", '"abc"', "5", "null"])
def test_an_extra_that_is_no_object_is_named(extra):
    with pytest.raises(StabilityConfigurationError, match="extra must be a JSON object"):
        make(extra)


@takes_any_extra
def test_a_broken_extra_is_not_taken_for_none():
    broken = connection()
    broken.extra = '{"organization": "org-1"'  # as a secrets backend may hand it out

    with pytest.raises(StabilityConfigurationError, match="extra must be a JSON object"):
        client_from_connection(broken)


def test_the_key_stands_in_no_variable_of_a_traceback():
    broken = connection({"api_version": "v9", "proxy": "http://user:SECRET@127.0.0.1"})
    with pytest.raises(StabilityConfigurationError) as raised:
        client_from_connection(broken)

    trace = traceback.TracebackException.from_exception(raised.value, capture_locals=True)
    ours = [frame for frame in trace.stack if "airflow_stability" in frame.filename]
    assert ours
    assert not [frame for frame in ours if "KEY" in str(frame.locals) or "SECRET" in str(frame.locals)]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("sk-KEY"), StabilityConfigurationError),
        (PermissionError("sk-KEY"), StabilityConfigurationError),
        (RuntimeError("sk-KEY"), StabilityTransientError),
        (OSError("sk-KEY"), StabilityTransientError),
    ],
)
def test_what_kept_airflow_from_reading_the_connection_may_pass_or_not(error, kind):
    failure = reading_failure("stability_default", error)

    assert isinstance(failure, kind)
    assert type(error).__name__ in str(failure)
    assert "KEY" not in str(failure)


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "https://user:sk-SECRET0SECRET0SECRET0@example.com"},
        {"password": "sk-SECRET0SECRET0SECRET0 twice"},
        {"extra": {"proxy": "http://user:sk-SECRET0SECRET0SECRET0@", "request_timeout": "soon"}},
    ],
    ids=["host", "password", "proxy"],
)
def test_no_variable_of_the_tracebacks_frames_holds_a_secret(fields):
    described = connection(**fields)
    with pytest.raises(StabilityConfigurationError) as raised:
        client_from_connection(described)

    trace = raised.value.__traceback__.tb_next  # without this test's own frame
    assert raised.value.__context__ is None
    while trace is not None:
        for value in trace.tb_frame.f_locals.values():
            shown = str(getattr(value, "__dict__", value))
            assert "SECRET0" not in shown
        trace = trace.tb_next
