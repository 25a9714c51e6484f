"""Names of outcomes, and what a poll sends. That metrics arrive is for the end-to-end tests."""

from __future__ import annotations

import pytest

from airflow_stability import errors
from airflow_stability.compat import stats
from airflow_stability.metrics import outcome_name, record_poll
from tests.conftest import ROOT

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.StabilityError)
]


class MissingError(errors.StabilityConfigurationError):
    """A kind of configuration failure."""


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        (0.0, "ok"),
        (errors.StabilityRateLimitError("slower"), "rate_limit"),
        (errors.StabilityTimeoutError("late"), "timeout"),
        (errors.StabilityMalformedResponseError("odd"), "malformed_response"),
        (errors.StabilityConfigurationError("wrong"), "configuration"),
        (MissingError("gone"), "configuration"),
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
    }

    for name in ["ok", *(outcome_name(kind("text")) for kind in KINDS if kind not in branches)]:
        assert f"`{name}`" in page


@pytest.fixture
def sent(monkeypatch):
    """Return the list of the metrics that Airflow is told to send, as (name, value)."""
    metrics = []
    monkeypatch.setattr(stats(), "incr", lambda name: metrics.append((name, 1)), raising=False)
    for kind in ("gauge", "timing"):
        monkeypatch.setattr(stats(), kind, lambda name, value: metrics.append((name, value)), raising=False)
    return metrics


def test_a_poll_sends_its_call_its_outcome_and_the_balance(sent):
    with record_poll("wallet") as poll:
        poll.organization = "org-1"
        with poll.timed_call():
            poll.credits = 12.5

    (call, seconds), *others = sent
    assert call == "stability.call.wallet.org-1"
    assert 0 <= seconds.total_seconds() < 10
    assert others == [("stability.polls.wallet.org-1.ok", 1), ("stability.balance.wallet.org-1", 12.5)]


def test_a_poll_that_fails_is_counted_once_however_many_calls_it_makes(sent):
    with pytest.raises(errors.StabilityAuthenticationError), record_poll("wallet") as poll:  # noqa: PT012
        with pytest.raises(errors.StabilityAuthenticationError), poll.timed_call():
            raise errors.StabilityAuthenticationError("the old key")
        with poll.timed_call():
            raise errors.StabilityAuthenticationError("the new key")

    assert [name for name, _ in sent] == [
        "stability.call.wallet.default",
        "stability.call.wallet.default",
        "stability.polls.wallet.default.authentication",
    ]


def test_a_poll_that_fails_before_its_call_is_counted_without_one(sent):
    with pytest.raises(errors.StabilityConfigurationError), record_poll("wallet", "org-1"):
        raise errors.StabilityConfigurationError("no connection")

    assert sent == [("stability.polls.wallet.org-1.configuration", 1)]


def test_a_poll_without_an_outcome_is_not_counted(sent):
    with record_poll("wallet"):
        pass

    assert sent == []
