from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
import responses

from airflow_stability.client import StabilityClient
from airflow_stability.errors import StabilityConfigurationError
from airflow_stability.page.balance_cache import FRESH, MOST_ORGANIZATIONS, Balances


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def pass_by(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def time():
    return Clock()


@pytest.fixture
def api(base_url):
    with responses.RequestsMock(assert_all_requests_are_fired=False) as api:
        yield api


@pytest.fixture
def url(base_url):
    return f"{base_url}/v1/user/balance"


@pytest.fixture
def balances(api, base_url, key, time):
    def connect(conn_id):
        if conn_id == "broken":
            raise StabilityConfigurationError("Connection 'broken': it is.")
        organization = "org-own" if conn_id == "with_organization" else None
        return StabilityClient(
            key, base_url=base_url, api_version="v1", organization=organization, retry_deadline=0
        )

    return Balances(connect, now=time.now)


def asked(api) -> list[str | None]:
    return [call.request.headers.get("Organization") for call in api.calls]


def test_a_balance_is_asked_for_once_a_minute_at_the_most(balances, api, url, time):
    api.get(url, json={"credits": 40.0})
    for _ in range(20):
        balances.get({"wallet": [None]})
    assert len(api.calls) == 1

    time.pass_by(FRESH.total_seconds())
    api.replace(responses.GET, url, json={"credits": 30.0})
    known = balances.get({"wallet": [None]})["wallet"].balances[None]

    assert len(api.calls) == 2
    assert known.last.credits == 30.0
    assert [reading.credits for reading in known.readings] == [40.0, 30.0]
    assert known.failure is None


def test_who_comes_while_a_call_is_under_way_waits_for_the_same(balances, api, url):
    answer, under_way = threading.Event(), threading.Event()

    def slow(request):
        under_way.set()
        answer.wait(10)
        return (200, {}, '{"credits": 40.0}')

    api.add_callback(responses.GET, url, slow)
    first = balances.get({"wallet": [None]}, patience=0)["wallet"]
    assert first.pending
    assert not first.balances

    under_way.wait(10)
    threading.Timer(0.05, answer.set).start()
    assert balances.get({"wallet": [None]}, patience=10)["wallet"].balances[None].last.credits == 40.0
    assert len(api.calls) == 1


def test_nobody_waits_for_a_call_that_has_hung_for_long(balances, api, url, time):
    answer = threading.Event()

    def hang(request):
        answer.wait(10)
        return (200, {}, '{"credits": 40.0}')

    api.add_callback(responses.GET, url, hang)
    balances.get({"wallet": [None]}, patience=0)
    time.pass_by(3600)
    try:
        # It would wait for an hour, less what has passed.
        assert balances.get({"wallet": [None]}, patience=3600)["wallet"].pending
    finally:
        answer.set()


def test_the_last_balance_stays_known_through_a_failure(balances, api, url, time):
    api.get(url, json={"credits": 40.0})
    balances.get({"wallet": [None]})
    read_at = time.time
    time.pass_by(61)
    api.replace(responses.GET, url, status=503, json={"name": "unavailable", "message": "no", "id": "1"})

    known = balances.get({"wallet": [None]})["wallet"].balances[None]

    assert "503" in known.failure
    assert (known.last.credits, known.last.at) == (40.0, read_at)


def test_a_lock_out_counts_for_all_organizations_of_a_connection_and_for_no_other(balances, api, url, time):
    api.get(url, status=429, headers={"Retry-After": "300"}, json={"name": "rate", "message": "", "id": "1"})
    answer = balances.get({"wallet": [None, "org-1"]})["wallet"]
    assert asked(api) == [None]
    assert answer.not_before == time.time + timedelta(seconds=300)

    time.pass_by(299)
    balances.get({"wallet": [None, "org-1", "org-2"]})
    assert asked(api) == [None]
    balances.get({"with_organization": [None]})
    assert asked(api) == [None, "org-own"]

    time.pass_by(2)
    api.replace(responses.GET, url, json={"credits": 40.0})
    balances.get({"wallet": [None, "org-1"]})
    assert asked(api) == [None, "org-own", None, "org-1"]


def test_the_connections_own_organization_and_none_are_one(balances, api, url):
    api.get(url, json={"credits": 40.0})

    answer = balances.get({"with_organization": [None, "org-own", "org-other"]})["with_organization"]

    assert answer.organization == "org-own"
    assert sorted(asked(api)) == ["org-other", "org-own"]
    assert answer.balances.keys() == {"org-own", "org-other"}


def test_an_organization_that_is_new_is_asked_for_alone(balances, api, url):
    api.get(url, json={"credits": 40.0})
    balances.get({"wallet": [None]})
    balances.get({"wallet": [None, "org-1"]})

    assert asked(api) == [None, "org-1"]


def test_a_connection_that_makes_no_client_says_why_and_hides_no_other(balances, api, url):
    api.get(url, json={"credits": 40.0})

    answers = balances.get({"broken": [None], "wallet": [None]})

    assert answers["broken"].failure == "Connection 'broken': it is."
    assert answers["wallet"].balances[None].last.credits == 40.0


def test_no_more_organizations_are_asked_for_than_a_page_is_worth(balances, api, url):
    api.get(url, json={"credits": 40.0})
    many = {f"org-{number}" for number in range(100)}

    balances.get({"wallet": many})
    balances.get({"wallet": many})

    assert len(api.calls) == MOST_ORGANIZATIONS + 1


def test_after_one_that_does_not_answer_the_others_of_the_key_are_not_asked_for(balances, api, url):
    api.get(url, status=503, json={"name": "unavailable", "message": "no", "id": "1"})
    known = balances.get({"wallet": [None, "org-a", "org-b"]})["wallet"].balances

    assert asked(api) == [None]
    assert set(known) == {None}


def test_after_one_that_is_refused_the_others_of_the_key_are_asked_for(balances, api, url):
    api.get(url, status=403, json={"name": "permission_denied", "message": "no", "id": "1"})
    balances.get({"wallet": [None, "org-a", "org-b"]})

    assert asked(api) == [None, "org-a", "org-b"]


def test_what_the_other_side_says_is_not_shown(balances, api, url):
    api.get(url, status=500, json={"name": "odd", "message": "the secrets of another host", "id": "1"})
    failure = balances.get({"wallet": [None]})["wallet"].balances[None].failure

    assert failure.startswith("The API answered with status 500.")
    assert "secrets" not in failure
