"""What callers may pass: credits, seconds, ids."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_stability.validation import (
    MAX_SECONDS,
    check_conn_id,
    check_credits,
    check_organization,
    check_seconds,
    format_number,
    is_template,
)


@pytest.mark.parametrize(
    ("value", "credits"),
    [
        (0, 0.0),
        (8, 8.0),
        (12.5, 12.5),
        ("12.5", 12.5),
        (" 7\n", 7.0),
        ("1e3", 1000.0),
        (Decimal("0.1"), 0.1),
        (Fraction(1, 4), 0.25),
        (0.6336833840314097, 0.6336833840314097),
    ],
)
def test_numbers_and_strings_that_are_numbers_are_credits(value, credits):
    assert check_credits(value) == credits
    assert type(check_credits(value)) is float


@pytest.mark.parametrize(
    "value",
    [
        *(True, False, None, [], {}, b"5", object()),
        *("", " ", "many", "5 credits", "0x10", "{{ params.credits }}"),
        *(-1, -0.001, "-5", Decimal("-1")),
        *(math.nan, math.inf, -math.inf, "nan", "inf", "Infinity", "1e400", Decimal("sNaN"), 10**400),
    ],
)
def test_what_is_no_number_of_credits_is_refused_by_the_name_of_the_argument(value):
    with pytest.raises(ValueError, match=r"^spend must be a finite number of credits, 0 or more") as refusal:
        check_credits(value, argument="spend")
    assert len(str(refusal.value)) < 250


@given(st.one_of(st.floats(), st.integers(), st.text(), st.none(), st.booleans(), st.decimals(), st.binary()))
def test_credits_are_finite_and_never_negative_whatever_is_passed(value):
    try:
        credits = check_credits(value)
    except ValueError as error:
        refusal = str(error)
    else:
        assert math.isfinite(credits)
        assert credits >= 0
        return
    assert refusal.isprintable()


@given(st.floats(min_value=0, allow_infinity=False))
def test_credits_are_the_same_double_that_was_passed(value):
    assert check_credits(value) == value
    assert float(format_number(value)) == value


def test_no_organization_means_the_default_one():
    assert check_organization(None) is None


@pytest.mark.parametrize("value", ["org-123456", "o", "x" * 256])
def test_an_organization_id_is_kept_as_it_is(value):
    assert check_organization(value) == value


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "org 1",
        " org-1",
        "org-1\n",
        "org-1\r\nAuthorization: other",
        "org-\x00",
        "organisé",
        "org-\ud800",
        "x" * 257,
        5,
        True,
        b"org-1",
        ["org-1"],
    ],
)
def test_an_organization_that_a_header_cannot_carry_is_refused(value):
    with pytest.raises(ValueError, match=r"^organization must be an id such as org-123456") as refusal:
        check_organization(value)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 260


@pytest.mark.parametrize("check", [check_organization, check_credits])
@pytest.mark.parametrize("value", ["sk-SECRET0aBcD", "Bearer sk-SECRET0-aBcD", ["sk-SECRET0aBcD"]])
def test_a_key_in_the_wrong_place_is_refused_without_being_shown(check, value):
    with pytest.raises(ValueError, match=r"got .*sk-\*\*\*") as refusal:
        check(value)
    assert "SECRET0" not in str(refusal.value)
    assert "aBcD" not in str(refusal.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{{ params.credits }}", True),
        ("{% if x %}5{% endif %}", True),
        (SimpleNamespace(resolve=lambda context: 5), True),
        ("5", False),
        (5, False),
        (None, False),
    ],
)
def test_a_template_is_what_airflow_still_has_to_render(value, expected):
    assert is_template(value) is expected


@pytest.mark.parametrize(
    ("credits", "text"),
    [
        (50.0, "50"),
        (50, "50"),
        (0.6336833840314097, "0.6336833840314097"),
        (-0.5, "-0.5"),
        (0.0, "0"),
        (-0.0, "0"),
    ],
)
def test_credits_are_written_without_rounding(credits, text):
    assert format_number(credits) == text


@pytest.mark.parametrize(("value", "seconds"), [(60, 60.0), (0.2, 0.2)])
def test_numbers_are_seconds(value, seconds):
    assert check_seconds(value, argument="poke_interval") == seconds
    assert type(check_seconds(value, argument="poke_interval")) is float


@pytest.mark.parametrize("value", [0, -1, True, None, "60", math.inf, math.nan])
def test_what_is_no_time_in_seconds_is_refused_by_the_name_of_the_argument(value):
    with pytest.raises(
        ValueError,
        match=r"^pause must be a finite number of seconds, more than 0 and at most 3155760000; got ",
    ):
        check_seconds(value, argument="pause")


@pytest.mark.parametrize("value", ["", None, 7, ["stability_default"]])
def test_what_is_no_id_of_a_connection_is_refused(value):
    assert check_conn_id("stability_default") == "stability_default"
    with pytest.raises(ValueError, match=r"^stability_conn_id must be the id of a connection; got "):
        check_conn_id(value)


@pytest.mark.parametrize("check", [check_credits, check_organization, check_conn_id])
@pytest.mark.parametrize("value", ["None", "", " ", " None "])
def test_what_a_template_gives_that_has_no_value_is_said_to_be_that(check, value):
    with pytest.raises(ValueError, match=r"got '.*', which is what a template gives that has no value\.$"):
        check(value)


def test_other_values_are_not_taken_for_a_template():
    with pytest.raises(ValueError, match=r"got 'many'\.$"):
        check_credits("many")


@pytest.mark.parametrize("value", [1e12, 4e9, timedelta(days=365 * 200), 10**400])
def test_a_time_that_no_date_can_hold_is_refused(value):
    with pytest.raises(ValueError, match=r"^timeout must be .* at most 3155760000; got "):
        check_seconds(value, argument="timeout")


def test_the_longest_time_is_one_that_dates_and_threads_take():
    longest = timedelta(seconds=check_seconds(MAX_SECONDS, argument="timeout"))

    assert datetime.now(UTC) + 3 * longest
    assert longest.total_seconds() * 1e9 < 2**63 / 2  # Python's threads count nanoseconds in 63 bits
