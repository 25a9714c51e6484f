from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
import responses

from airflow_stability.client import StabilityClient
from airflow_stability.errors import StabilityConfigurationError
from airflow_stability.page.balance_cache import MAX_AGE, MAX_ORGANIZATIONS, BalanceCache, CachedBalance


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> None:
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

    return BalanceCache(connect, now=time.now)


def requested(api) -> list[str | None]:
    return [call.request.headers.get("Organization") for call in api.calls]


def test_a_balance_is_requested_at_most_once_a_minute(balances, api, url, time):
    api.get(url, json={"credits": 40.0})
    for _ in range(20):
        balances.get({"wallet": [None]})
    assert len(api.calls) == 1

    time.advance(MAX_AGE.total_seconds())
    api.replace(responses.GET, url, json={"credits": 30.0})
    known = balances.get({"wallet": [None]})["wallet"].balances[None]

    assert len(api.calls) == 2
    assert known.last.credits == 30.0
    assert [reading.credits for reading in known.readings] == [40.0, 30.0]
    assert known.failure is None


def test_a_page_that_comes_during_a_request_waits_for_its_result(balances, api, url):
    answer, under_way = threading.Event(), threading.Event()

    def slow(request):
        under_way.set()
        answer.wait(10)
        return (200, {}, '{"credits": 40.0}')

    api.add_callback(responses.GET, url, slow)
    first = balances.get({"wallet": [None]}, wait_seconds=0)["wallet"]
    assert first.pending
    assert not first.balances

    under_way.wait(10)
    threading.Timer(0.05, answer.set).start()
    assert balances.get({"wallet": [None]}, wait_seconds=10)["wallet"].balances[None].last.credits == 40.0
    assert len(api.calls) == 1


def test_no_page_waits_for_a_request_that_has_hung_for_long(balances, api, url, time):
    answer = threading.Event()

    def hang(request):
        answer.wait(10)
        return (200, {}, '{"credits": 40.0}')

    api.add_callback(responses.GET, url, hang)
    balances.get({"wallet": [None]}, wait_seconds=0)
    time.advance(3600)
    try:
        # It would wait for an hour, less what has passed.
        assert balances.get({"wallet": [None]}, wait_seconds=3600)["wallet"].pending
    finally:
        answer.set()


def test_the_last_balance_stays_known_through_a_failure(balances, api, url, time):
    api.get(url, json={"credits": 40.0})
    balances.get({"wallet": [None]})
    read_at = time.time
    time.advance(61)
    api.replace(responses.GET, url, status=503, json={"name": "unavailable", "message": "no", "id": "1"})

    known = balances.get({"wallet": [None]})["wallet"].balances[None]

    assert "503" in known.failure
    assert (known.last.credits, known.last.at) == (40.0, read_at)


def test_a_lock_out_applies_to_all_organizations_of_its_connection_only(balances, api, url, time):
    api.get(url, status=429, headers={"Retry-After": "300"}, json={"name": "rate", "message": "", "id": "1"})
    connection = balances.get({"wallet": [None, "org-1"]})["wallet"]
    assert requested(api) == [None]
    assert connection.locked_until == time.time + timedelta(seconds=300)

    time.advance(299)
    balances.get({"wallet": [None, "org-1", "org-2"]})
    assert requested(api) == [None]
    balances.get({"with_organization": [None]})
    assert requested(api) == [None, "org-own"]

    time.advance(2)
    api.replace(responses.GET, url, json={"credits": 40.0})
    balances.get({"wallet": [None, "org-1"]})
    assert requested(api) == [None, "org-own", None, "org-1"]


def test_the_connections_own_organization_and_none_are_one(balances, api, url):
    api.get(url, json={"credits": 40.0})

    connection = balances.get({"with_organization": [None, "org-own", "org-other"]})["with_organization"]

    assert connection.organization == "org-own"
    assert sorted(requested(api)) == ["org-other", "org-own"]
    assert connection.balances.keys() == {"org-own", "org-other"}


def test_a_new_organization_is_requested_alone(balances, api, url):
    api.get(url, json={"credits": 40.0})
    balances.get({"wallet": [None]})
    balances.get({"wallet": [None, "org-1"]})

    assert requested(api) == [None, "org-1"]


def test_a_connection_that_makes_no_client_shows_why_and_hides_no_other(balances, api, url):
    api.get(url, json={"credits": 40.0})

    connections = balances.get({"broken": [None], "wallet": [None]})

    assert connections["broken"].failure == "Connection 'broken': it is."
    assert connections["wallet"].balances[None].last.credits == 40.0


def test_the_number_of_requested_organizations_is_limited(balances, api, url):
    api.get(url, json={"credits": 40.0})
    many = {f"org-{number}" for number in range(100)}

    balances.get({"wallet": many})
    balances.get({"wallet": many})

    assert len(api.calls) == MAX_ORGANIZATIONS + 1


def test_after_a_transient_failure_the_other_organizations_are_not_requested(balances, api, url):
    api.get(url, status=503, json={"name": "unavailable", "message": "no", "id": "1"})
    known = balances.get({"wallet": [None, "org-a", "org-b"]})["wallet"].balances

    assert requested(api) == [None]
    assert set(known) == {None}


def test_after_a_permanent_failure_the_other_organizations_are_requested(balances, api, url):
    api.get(url, status=403, json={"name": "permission_denied", "message": "no", "id": "1"})
    balances.get({"wallet": [None, "org-a", "org-b"]})

    assert requested(api) == [None, "org-a", "org-b"]


def test_the_text_of_a_response_is_not_shown(balances, api, url):
    api.get(url, status=500, json={"name": "odd", "message": "the secrets of another host", "id": "1"})
    failure = balances.get({"wallet": [None]})["wallet"].balances[None].failure

    assert failure.startswith("The API answered with status 500.")
    assert "secrets" not in failure


def test_a_balance_that_came_while_a_page_waited_is_not_stale_for_it():
    began = datetime(2026, 11, 1, tzinfo=UTC)
    balance = CachedBalance(requested_at=began + timedelta(seconds=1))

    assert not balance.is_stale(began)
    assert balance.is_stale(began - timedelta(hours=1))  # the clock was set back
