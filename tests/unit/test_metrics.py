"""Names of outcomes. That metrics arrive, and under which names, is for the end-to-end tests."""

from __future__ import annotations

import pytest

from airflow_stability import errors
from airflow_stability.metrics import outcome_name
from tests.conftest import ROOT

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.StabilityError)
]


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        (0.0, "ok"),
        (errors.StabilityRateLimitError("slower"), "rate_limit"),
        (errors.StabilityTimeoutError("late"), "timeout"),
        (errors.StabilityMalformedResponseError("odd"), "malformed_response"),
        (errors.StabilityConnectionNotFoundError("none"), "connection_not_found"),
    ],
)
def test_an_outcome_has_a_short_name(outcome, name):
    assert outcome_name(outcome) == name


def test_the_page_about_metrics_names_every_outcome_of_a_poll():
    page = (ROOT / "docs" / "metrics.md").read_text()
    branches = {
        errors.StabilityError,
        errors.StabilityPermanentError,
        errors.StabilityOutcomeUnknownError,  # a poll costs nothing
        # It is not written into the ledger, either.
        errors.StabilityBudgetExhaustedError,
        errors.StabilityBudgetNotFoundError,
        errors.StabilityLedgerUnavailableError,
    }

    for name in ["ok", *(outcome_name(kind("text")) for kind in KINDS if kind not in branches)]:
        assert f"`{name}`" in page
