"""What answers mean: every error shape, every status, and foreign text made fit for a log."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_stability.client import Account, Balance
from airflow_stability.client.responses import clean, error_from_response, parse_error_body, parse_response
from airflow_stability.errors import (
    StabilityAuthenticationError,
    StabilityBlockedError,
    StabilityMalformedResponseError,
    StabilityModeratedError,
    StabilityNotFoundError,
    StabilityPayloadTooLargeError,
    StabilityPaymentRequiredError,
    StabilityPermissionError,
    StabilityRateLimitError,
    StabilityRedirectError,
    StabilityRequestError,
    StabilityUnavailableError,
)

CALL = "GET /v1/user/balance"
V1 = {"id": "e123", "name": "some_name", "message": "Some words."}
V1ALPHA = {**V1, "temporary": False, "timeout": False, "fault": False}
V2 = {"id": "e123", "name": "some_name", "errors": ["Some words.", "Others."]}


def error_of(status, body=V1, headers=None, secrets=()):
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    return error_from_response(status, headers or {}, sent, call=CALL, secrets=secrets)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, StabilityRequestError),
        (401, StabilityAuthenticationError),
        (402, StabilityPaymentRequiredError),
        (403, StabilityPermissionError),
        (404, StabilityNotFoundError),
        (405, StabilityRequestError),
        (407, StabilityRequestError),
        (408, StabilityUnavailableError),
        (410, StabilityNotFoundError),
        (413, StabilityPayloadTooLargeError),
        (422, StabilityRequestError),
        (425, StabilityUnavailableError),
        (429, StabilityRateLimitError),
        (499, StabilityRequestError),
        (500, StabilityUnavailableError),
        (503, StabilityUnavailableError),
        (529, StabilityUnavailableError),
        (599, StabilityUnavailableError),
        (300, StabilityRedirectError),
        (301, StabilityRedirectError),
        (308, StabilityRedirectError),
        (101, StabilityMalformedResponseError),
        (204, StabilityMalformedResponseError),
        (600, StabilityMalformedResponseError),
        (999, StabilityMalformedResponseError),
    ],
)
@pytest.mark.parametrize("body", [V1, V1ALPHA, V2])
def test_a_status_stands_for_one_error(status, kind, body):
    error = error_of(status, body)
    assert type(error) is kind
    assert (error.status, error.error_id, error.name) == (status, "e123", "some_name")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Forbidden</html>",
        b'{"id": "e1"',
        b"{}",
        b"[]",
        b"null",
        b'{"message": "no"}',
        b"\xff\xfe",
    ],
)
def test_a_403_that_is_not_the_apis_own_is_a_firewall_speaking(body):
    assert type(error_of(403, body)) is StabilityBlockedError


def test_temporary_in_the_body_makes_a_refusal_pass():
    assert type(error_of(400, {**V1ALPHA, "temporary": True})) is StabilityUnavailableError
    assert type(error_of(401, {**V1ALPHA, "temporary": True})) is StabilityUnavailableError
    assert type(error_of(500, {**V1ALPHA, "temporary": False})) is StabilityUnavailableError
    assert error_of(500, {**V1ALPHA, "temporary": False}).temporary is False


@pytest.mark.parametrize("facts", [{}, {"id": "e1"}])
@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "invalid_prompts"),
        (403, "content_moderation"),
        (422, "public_figure"),
        (422, "invalid_language"),
    ],
)
def test_a_refusal_of_the_content_is_neither_a_firewall_nor_a_missing_right(status, name, facts):
    error = error_of(status, {**facts, "name": name, "errors": ["Flagged; you were not charged"]})
    assert type(error) is StabilityModeratedError
    assert "Flagged; you were not charged" in str(error)


def test_a_name_means_moderation_only_with_its_status():
    assert type(error_of(403, {**V2, "name": "public_figure"})) is StabilityPermissionError
    assert type(error_of(422, {**V2, "name": "content_moderation"})) is StabilityRequestError


@pytest.mark.parametrize("advice", ["true", 1, None, [], {}])
def test_advice_that_is_no_boolean_is_none(advice):
    error = error_of(400, {**V1ALPHA, "temporary": advice})
    assert type(error) is StabilityRequestError
    assert error.temporary is None


def test_want_of_credit_stays_want_of_credit_whatever_the_advice():
    assert type(error_of(402, {**V1ALPHA, "temporary": True})) is StabilityPaymentRequiredError
    assert type(error_of(402, b"<html>")) is StabilityPaymentRequiredError


def test_the_text_says_what_happened_where_and_what_to_do():
    assert str(
        error_of(401, {"id": "e9", "name": "unauthorized", "message": "missing authorization header"})
    ) == (
        "GET /v1/user/balance answered 401 unauthorized: missing authorization header (error id e9). "
        "Check the API key; keys are made at https://platform.stability.ai/account/keys."
    )


def test_the_messages_of_v2beta_are_joined():
    assert error_of(400, V2).message == "Some words.; Others."
    assert error_of(400, {**V2, "errors": [1, None, {"a": 1}, "One."]}).message == "One."
    assert error_of(400, {**V2, "errors": "One."}).message is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", None),
        (b"   \r\n", None),
        (b"upstream connect error", "upstream connect error"),
        (b"<html>\n<h1>503</h1>\n</html>", "<html> <h1>503</h1> </html>"),
        (b'{"id": "e1", "na', '{"id": "e1", "na'),
        (b"caf\xe9", "caf\ufffd"),
        (b'"text"', '"text"'),
        (b"[" * 100_000, "[" * 499 + "…"),
        (b'{"a":' * 100_000, ('{"a":' * 100)[:499] + "…"),
        (b"9" * 5000, "9" * 499 + "…"),
    ],
)
def test_a_body_of_a_proxy_is_quoted_as_text(body, message):
    said = parse_error_body(body, ())
    assert (said.message, said.error_id, said.name, said.from_api) == (message, None, None, False)


def test_fields_of_other_types_are_left_out():
    said = parse_error_body(b'{"id": 5, "name": ["x"], "message": {"a": 1}, "temporary": true}', ())
    assert (said.error_id, said.name, said.message, said.temporary) == (None, None, None, True)


def test_halves_of_surrogate_pairs_do_not_get_into_a_text():
    error = error_of(400, b'{"id": "a\\ud800b", "name": "n", "message": "\\udfff x"}')
    assert (error.error_id, error.message) == ("a b", "x")
    str(error).encode()


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, 60),
        ({"Retry-After": "soon"}, 60),
        ({"Retry-After": "5"}, 5),
        ({"Retry-After": "0"}, 0),
        ({"Retry-After": "90"}, 90),
        ({"Retry-After": "Fri, 01 May 2026 12:00:45 GMT", "Date": "Fri, 01 May 2026 12:00:00 GMT"}, 45),
    ],
)
def test_a_lockout_lasts_as_long_as_the_server_says_or_sixty_seconds(headers, told):
    error = error_of(429, headers=headers)
    assert error.retry_after == told
    assert f"no new attempt for {told} s." in str(error)


def test_a_date_is_reckoned_with_the_servers_own_clock():
    headers = {"Retry-After": "Thu, 01 Jan 1970 00:02:00 GMT", "Date": "Thu, 01 Jan 1970 00:01:00 GMT"}
    assert error_of(503, headers=headers).retry_after == 60


def test_a_date_without_the_servers_clock_is_reckoned_with_ours():
    assert error_of(503, headers={"Retry-After": "Thu, 01 Jan 1970 00:02:00 GMT"}).retry_after == 0
    headers = {"Retry-After": "Fri, 01 Jan 2999 00:02:00 GMT", "Date": "x"}
    assert error_of(503, headers=headers).retry_after == 86400  # the longest that counts


def test_an_outage_names_no_time_of_its_own():
    assert error_of(503).retry_after is None
    assert "no new attempt" not in str(error_of(503))


def test_a_redirect_says_where_to_without_the_body():
    error = error_of(
        302, b"<html>moved</html>", {"Location": "https://other.example/\x1b[31m?k=sk-1"}, secrets=["sk-1"]
    )
    assert "answered 302 to https://other.example/ [31m?k=***. Redirects are not followed" in str(error)


@given(st.text(max_size=3000))
def test_clean_text_is_short_and_has_no_control_characters(text):
    cleaned = clean(text, ())
    assert len(cleaned) <= 500
    assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in cleaned)
    cleaned.encode()


@pytest.mark.parametrize(
    "mark", ["\u061c", "\u200e", "\u200f", "\u202a", "\u202e", "\u2066", "\u2069", "\ufeff", "\x1b", "\r\n"]
)
def test_marks_that_turn_or_end_a_line_become_blanks(mark):
    assert clean(f"a{mark}b", ()) == "a b"


@given(st.text(max_size=700), st.text(max_size=700))
def test_a_secret_is_masked_wherever_it_stands(before, after):
    assert "sk-SECRET" not in clean(f"{before}sk-SECRET{after}", ["sk-SECRET"])


def test_a_secret_is_masked_in_lower_case_too():
    assert clean("no host sk-secret", ["sk-SECRET"]) == "no host ***"


def test_a_secret_across_the_cut_is_masked_before_cutting():
    assert clean("x" * 495 + "sk-SECRET", ["sk-SECRET"]) == "x" * 495 + "***"
    assert "sk" not in clean("x" * 497 + "sk-SECRET" + "x" * 9, ["sk-SECRET"])


def test_a_secret_that_holds_another_is_masked_as_a_whole():
    assert clean("pw-sk-1-end", ["sk-1", "pw-sk-1-end"]) == "***"


def test_a_malformed_response_names_the_field_and_not_its_value():
    body = b'{"id": "u", "email": "someone@example.com", "organizations": [{"id": "someone@example.com"}]}'
    with pytest.raises(StabilityMalformedResponseError) as failure:
        parse_response(Account, {"Content-Type": "application/json"}, body, call=CALL, secrets=())
    assert "organizations.0.name: Field required" in str(failure.value)
    assert "(application/json)" in str(failure.value)
    assert "someone" not in str(failure.value)
    assert failure.value.__context__ is None  # the validation error does not come along


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff",
        b"\x00",
        b'{"credits": "\\ud800"}',
        b"[" * 10_000,
        b'\xef\xbb\xbf{"credits": 1}',
        b"null",
    ],
)
def test_a_body_that_is_no_json_object_is_malformed(body):
    with pytest.raises(
        StabilityMalformedResponseError, match=r"answered 200, but the body .* is not a valid Balance"
    ):
        parse_response(Balance, {}, body, call=CALL, secrets=())


def test_a_response_sent_as_html_is_judged_by_its_body():
    headers = {"Content-Type": "text/html"}
    assert parse_response(Balance, headers, b'{"credits": 5}', call=CALL, secrets=()).credits == 5


def test_a_key_in_the_content_type_is_masked():
    with pytest.raises(StabilityMalformedResponseError) as failure:
        parse_response(Balance, {"Content-Type": "text/sk-1"}, b"", call=CALL, secrets=["sk-1"])
    assert "(text/***)" in str(failure.value)
