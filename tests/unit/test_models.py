"""The models of the user API: strict, frozen, open to additions."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from airflow_stability.client import Account, Balance, OrganizationMembership

MEMBERSHIP = {"id": "org-1", "name": "One", "role": "MEMBER", "is_default": True}
ACCOUNT = {"id": "user-1", "email": "someone@example.com", "organizations": [MEMBERSHIP]}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_credits_are_the_same_double_that_was_sent(sent):
    received = Balance.model_validate_json(json.dumps({"credits": sent})).credits
    assert received.hex() == sent.hex()


@given(st.from_regex(r"\A-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,2})?\Z"))
def test_any_decimal_notation_is_rounded_as_python_rounds_it(written):
    assert Balance.model_validate_json(f'{{"credits": {written}}}').credits == float(written)


@pytest.mark.parametrize("written", ["0", "-0", "-0.0", "-12.25", "9007199254740993", "1e308", "5e-324"])
def test_zero_negative_and_extreme_credits_are_balances(written):
    balance = Balance.model_validate_json(f'{{"credits": {written}}}')
    assert balance.credits == float(written)
    assert type(balance.credits) is float


@pytest.mark.parametrize(
    "body",
    [
        *('{"credits": true}', '{"credits": false}', '{"credits": "5"}', '{"credits": null}', "{}"),
        *('{"credits": NaN}', '{"credits": Infinity}', '{"credits": -Infinity}', '{"credits": 1e400}'),
        *('{"credits": [5]}', '{"credits": {"value": 5}}', "5", "[]", "null", "", '{"credits": 5', "<html>"),
        '{"credits": ' + "1" * 400 + "}",
        '{"credits": ' + "[" * 10_000 + "]" * 10_000 + "}",
        '{"Credits": 5}',
    ],
)
def test_what_is_no_finite_number_is_no_balance(body):
    with pytest.raises(ValidationError):
        Balance.model_validate_json(body)


def test_unknown_fields_break_nothing_at_any_depth():
    account = Account.model_validate_json(
        json.dumps({**ACCOUNT, "new": {"a": [1]}, "organizations": [{**MEMBERSHIP, "credits": 5}]})
    )
    assert account.organizations == (OrganizationMembership(**MEMBERSHIP),)
    assert not hasattr(account, "new")


@pytest.mark.parametrize("field", ["id", "email", "organizations"])
def test_an_account_lacks_no_required_field(field):
    with pytest.raises(ValidationError, match=field):
        Account.model_validate_json(json.dumps({k: v for k, v in ACCOUNT.items() if k != field}))


@pytest.mark.parametrize(
    ("field", "value"), [("is_default", "true"), ("is_default", 1), ("name", None), ("id", 5)]
)
def test_a_membership_of_other_types_is_malformed(field, value):
    body = {**ACCOUNT, "organizations": [{**MEMBERSHIP, field: value}]}
    with pytest.raises(ValidationError, match=field):
        Account.model_validate_json(json.dumps(body))


@pytest.mark.parametrize("picture", [None, "https://example.com/p.png"])
def test_a_profile_picture_is_optional(picture):
    assert (
        Account.model_validate_json(json.dumps({**ACCOUNT, "profile_picture": picture})).profile_picture
        == picture
    )
    assert Account.model_validate_json(json.dumps(ACCOUNT)).profile_picture is None


def test_the_default_organization_is_the_one_that_pays():
    other = {**MEMBERSHIP, "id": "org-2", "is_default": False}
    account = Account.model_validate_json(json.dumps({**ACCOUNT, "organizations": [other, MEMBERSHIP]}))
    assert account.default_organization.id == "org-1"
    none = Account.model_validate_json(json.dumps({**ACCOUNT, "organizations": [other]}))
    assert none.default_organization is None


def test_models_are_frozen():
    balance = Balance(credits=5.0)
    with pytest.raises(ValidationError, match="frozen"):
        balance.credits = 500.0


def test_a_validation_error_does_not_show_an_email_address():
    body = {**ACCOUNT, "email": ["someone@example.com"]}
    with pytest.raises(ValidationError) as refusal:
        Account.model_validate_json(json.dumps(body))
    assert "someone" not in str(refusal.value)
