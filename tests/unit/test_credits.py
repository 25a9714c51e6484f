"""Sums of credits, in this package and in the simulator."""

from __future__ import annotations

from decimal import localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_stability.rules import credits
from airflow_stability.rules.gate import suffices
from airflow_stability.simulator import books

finite = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("total", [credits.total, books.total])
@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((), 0.0),
        ((100.3, -100.0), 0.3),
        ((0.1, 0.2), 0.3),
        ((0.7, 0.1), 0.8),
        ([0.1] * 10, 1.0),
        ((1e22, -1e22), 0.0),
        ((5, -3), 2.0),
    ],
)
def test_a_sum_is_what_people_make_of_the_numbers(total, numbers, expected):
    assert total(*numbers) == expected
    assert type(total(*numbers)) is float


@given(finite)
def test_a_single_number_stays_the_same_double(number):
    assert credits.total(number) == number
    assert credits.total(number, -0.0) == number


def test_a_context_of_the_dags_code_makes_no_difference():
    with localcontext(prec=3):
        assert credits.total(1234.5, 0.25) == 1234.75


@pytest.mark.parametrize(
    ("balance", "minimum", "expected", "reserved", "enough"),
    [
        (100.3, 100.0, 0.3, 0.0, True),
        (0.8, 0.0, 0.1, 0.7, True),
        (0.3, 0.1, 0.2, 0.0, True),
        (0.29, 0.1, 0.2, 0.0, False),
        (8.0, 8.0, 0.0, 0.0, False),
        (0.0, 0.0, 0.0, 0.0, False),
        (0.0, None, 0.0, 0.0, True),
        (-0.5, None, 0.0, 0.0, False),
        (3.0, None, 0.0, 3.0, True),
        (-0.5, 0.0, 0.0, 0.0, False),
    ],
)
def test_a_balance_suffices(balance, minimum, expected, reserved, enough):
    assert suffices(balance, minimum, expected, reserved=reserved) is enough
