from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
import requests
import responses

from airflow_stability.client import StabilityClient
from airflow_stability.errors import StabilityConfigurationError
from airflow_stability.page import balance_cache
from airflow_stability.page.balance_cache import (
    CONNECTION_MAX_AGE_SECONDS,
    MAX_AGE_SECONDS,
    MAX_CALLS,
    MAX_ORGANIZATIONS,
    BalanceCache,
    CachedBalance,
)


class Clock:
    """A clock that the test moves. Its time of day can be set, too."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)
        self.passed = 0.0

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.passed

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
        self.passed += seconds

    def set(self, seconds: float) -> None:
        """Set the time of day ahead, or back if the seconds are negative."""
        self.time += timedelta(seconds=seconds)


class PatientCache(BalanceCache):
    """A cache that waits longer than the page does, since a busy machine may need more for the first read."""

    def get(self, wanted, *, wait_seconds=30.0):
        return super().get(wanted, wait_seconds=wait_seconds)


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
def keys():
    """The API keys of connections. Any other connection has a key of its own."""
    return {}


@pytest.fixture
def balances(api, base_url, keys, time):
    def connect(conn_id):
        if conn_id == "broken":
            raise StabilityConfigurationError("Connection 'broken': it is.")
        organization = "org-own" if conn_id == "with_organization" else None
        return StabilityClient(
            keys.get(conn_id, f"sk-of-{conn_id}"),
            base_url=base_url,
            api_version="v1",
            organization=organization,
            retry_deadline=0,
        )

    return PatientCache(connect, now=time.now, monotonic=time.monotonic)


def requested(api) -> list[str | None]:
    return [call.request.headers.get("Organization") for call in api.calls]


def test_a_balance_is_requested_at_most_once_a_minute(balances, api, url, time):
    api.get(url, json={"credits": 40.0})
    for _ in range(20):
        balances.get({"wallet": [None]})
    assert len(api.calls) == 1

    time.advance(MAX_AGE_SECONDS)
    api.replace(responses.GET, url, json={"credits": 30.0})
    known = balances.get({"wallet": [None]})["wallet"].balances[None]

    assert len(api.calls) == 2
    assert known.last.credits == 30.0
    assert [reading.credits for reading in known.readings] == [40.0, 30.0]
    assert known.failure is None


def answer_later(api, url):
    """Let the API answer with 40 credits once the test lets it.

    :returns: the event that lets it, and one that tells that a request has come.
    """
    answer, under_way = threading.Event(), threading.Event()

    def slow(request):
        under_way.set()
        answer.wait(10)
        return (200, {}, '{"credits": 40.0}')

    api.add_callback(responses.GET, url, slow)
    return answer, under_way


def test_a_page_that_comes_during_a_request_waits_for_its_result(balances, api, url):
    answer, under_way = answer_later(api, url)
    first = balances.get({"wallet": [None]}, wait_seconds=0)["wallet"]
    assert first.pending
    assert not first.balances

    under_way.wait(10)
    threading.Timer(0.05, answer.set).start()
    assert balances.get({"wallet": [None]}, wait_seconds=10)["wallet"].balances[None].last.credits == 40.0
    assert len(api.calls) == 1


def test_no_page_waits_for_a_request_that_has_hung_for_long(balances, api, url, time):
    answer, _ = answer_later(api, url)
    balances.get({"wallet": [None]}, wait_seconds=0)
    time.advance(3600)
    try:
        # It would wait for an hour, less what has passed.
        assert balances.get({"wallet": [None]}, wait_seconds=3600)["wallet"].pending
    finally:
        answer.set()


def test_connections_that_hang_do_not_delay_another_one(balances, api, url, monkeypatch):
    monkeypatch.setattr(balance_cache, "TURN_SECONDS", 0.05)
    answer = threading.Event()
    hanging = [f"hanging-{number}" for number in range(2 * MAX_CALLS)]

    def respond(request):
        if "hanging" in request.headers["Authorization"]:
            answer.wait(10)
        return (200, {}, '{"credits": 40.0}')

    api.add_callback(responses.GET, url, respond)
    balances.get({conn_id: [None] for conn_id in hanging}, wait_seconds=0)
    try:
        well = balances.get({"well": [None]}, wait_seconds=5)["well"]
        assert well.balances[None].last.credits == 40.0
    finally:
        answer.set()
    assert not any(each.pending for each in balances.get({each: [None] for each in hanging}).values())


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
    wallet = balances.get({"wallet": [None, "org-a", "org-b"]})["wallet"]

    assert requested(api) == [None]
    assert set(wallet.balances) == {None}
    assert set(wallet.skipped) == {"org-a", "org-b"}
    reason = "the request for the key's default organization failed: The API answered with status 503."
    assert all(reason in why for why in wallet.skipped.values())


def test_a_skipped_organization_is_so_no_more_once_it_was_requested(balances, api, url, time):
    api.get(url, json={"credits": 40.0})
    balances.get({"wallet": [None, "org-a"]})
    time.advance(MAX_AGE_SECONDS)
    api.replace(responses.GET, url, status=503)
    wallet = balances.get({"wallet": [None, "org-a"]})["wallet"]
    assert set(wallet.skipped) == {"org-a"}
    assert wallet.balances["org-a"].failure is None  # it had none itself

    wallet = balances.get({"wallet": [None, "org-a"]})["wallet"]
    assert requested(api) == [None, "org-a", None, "org-a"]
    assert not wallet.skipped
    assert "status 503" in wallet.balances["org-a"].failure


def test_beyond_the_limit_an_organization_is_not_said_to_be_skipped(balances, api, url):
    api.get(url, status=503)
    many = [f"org-{number:03}" for number in range(100)]
    wallet = balances.get({"wallet": many})["wallet"]

    assert set(wallet.skipped) == set(many[:MAX_ORGANIZATIONS])


def test_after_a_permanent_failure_the_other_organizations_are_requested(balances, api, url):
    api.get(url, status=403, json={"name": "permission_denied", "message": "no", "id": "1"})
    balances.get({"wallet": [None, "org-a", "org-b"]})

    assert requested(api) == [None, "org-a", "org-b"]


def test_the_text_of_a_response_is_not_shown(balances, api, url):
    api.get(url, status=500, json={"name": "odd", "message": "the secrets of another host", "id": "1"})
    failure = balances.get({"wallet": [None]})["wallet"].balances[None].failure

    assert failure.startswith("The API answered with status 500.")
    assert "secrets" not in failure


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (
            requests.ConnectionError("BadStatusLine: the secrets of another host"),
            "No complete response came.",
        ),
        (requests.Timeout(), "No complete response came in time."),
    ],
)
def test_the_text_of_a_host_that_speaks_no_http_is_not_shown(api, base_url, key, problem, text):
    refusal = {"name": "odd", "message": "the secrets of another host", "id": "1"}
    api.get(f"{base_url}/v1alpha/user/balance", status=404, json=refusal)
    api.get(f"{base_url}/v1/user/balance", body=problem)
    balances = PatientCache(lambda conn_id: StabilityClient(key, base_url=base_url, retry_deadline=0))

    failure = balances.get({"wallet": [None]})["wallet"].balances[None].failure

    assert failure.startswith(text)
    assert "secrets" not in failure


def test_a_balance_that_came_while_a_page_waited_is_not_stale_for_it():
    assert not CachedBalance(requested_at=101.0).is_stale(100.0)


@pytest.mark.parametrize("skew", [-86400, 86400])
def test_a_clock_that_is_set_changes_neither_when_a_balance_is_requested_nor_a_lock_out(
    balances, api, url, time, skew
):
    api.get(url, json={"credits": 40.0})
    balances.get({"wallet": [None]})
    time.set(skew)
    time.advance(MAX_AGE_SECONDS - 1)
    balances.get({"wallet": [None]})
    assert len(api.calls) == 1

    time.advance(1)
    api.replace(
        responses.GET, url, status=429, headers={"Retry-After": "300"}, json={"id": "1", "name": "rate"}
    )
    balances.get({"wallet": [None]})
    assert len(api.calls) == 2
    time.set(skew)
    time.advance(299)
    connection = balances.get({"wallet": [None]})["wallet"]
    assert connection.locked_until == time.time + timedelta(seconds=1)
    assert len(api.calls) == 2

    time.advance(1)
    balances.get({"wallet": [None]})
    assert len(api.calls) == 3


def test_a_clock_that_is_set_back_leaves_no_reading_of_the_future(balances, api, url, time):
    api.get(url, json={"credits": 40.0})
    balances.get({"wallet": [None]})
    time.set(-86400)
    time.advance(MAX_AGE_SECONDS)
    api.replace(responses.GET, url, json={"credits": 30.0})

    balance = balances.get({"wallet": [None]})["wallet"].balances[None]

    assert [(reading.at, reading.credits) for reading in balance.readings] == [(time.time, 30.0)]


# Connections with one key


@pytest.fixture
def one_key(keys, key):
    keys |= {"one": key, "other": key, "with_organization": key}


@pytest.mark.usefixtures("one_key")
def test_connections_with_one_key_share_a_balance(balances, api, url, time):
    api.get(url, json={"credits": 40.0})
    balances.get({"one": [None]})
    time.advance(30)
    connections = balances.get({"one": [None], "other": [None], "with_organization": [None]})

    assert requested(api) == [None, "org-own"]
    assert connections["one"].balances == connections["other"].balances
    time.advance(30)
    balances.get({"one": [None], "other": [None], "with_organization": [None]})
    assert requested(api) == [None, "org-own", None]


@pytest.mark.usefixtures("one_key")
def test_connections_with_one_key_that_are_looked_at_together_make_one_request(balances, api, url):
    answer, under_way = answer_later(api, url)
    balances.get({"one": [None], "other": [None]}, wait_seconds=0)
    under_way.wait(10)
    threading.Timer(0.05, answer.set).start()

    connections = balances.get({"one": [None], "other": [None]}, wait_seconds=10)

    assert [each.balances[None].last.credits for each in connections.values()] == [40.0, 40.0]
    assert len(api.calls) == 1


@pytest.mark.usefixtures("one_key")
def test_connections_with_one_key_share_its_lock_out(balances, api, url, time):
    api.get(url, status=429, headers={"Retry-After": "300"}, json={"name": "rate", "message": "", "id": "1"})
    balances.get({"one": [None]})
    connections = balances.get({"other": ["org-1"], "with_organization": [None]})

    assert requested(api) == [None]
    assert {each.locked_until for each in connections.values()} == {time.time + timedelta(seconds=300)}


@pytest.mark.usefixtures("one_key")
def test_a_failure_stays_with_its_connection(balances, api, url):
    """The connection's proxy or certificates may be the cause."""
    api.get(url, body=OSError())
    api.get(url, json={"credits": 40.0})
    one = balances.get({"one": [None]})["one"]
    other = balances.get({"other": [None]})["other"]

    assert one.balances[None].failure.startswith("No complete response came.")
    assert other.balances[None].failure is None
    assert other.balances[None].last.credits == 40.0


@pytest.mark.usefixtures("one_key")
def test_a_connection_shows_no_organization_and_no_history_of_another_one_with_its_key(
    balances, api, url, time
):
    api.get(url, json={"credits": 40.0})
    balances.get({"one": ["org-secret"]})
    time.advance(MAX_AGE_SECONDS)
    balances.get({"one": ["org-secret"]})

    other = balances.get({"other": []})["other"]

    assert other.balances.keys() == {None}
    assert len(other.balances[None].readings) == 1


def test_a_connection_shows_no_organization_that_was_not_asked_for(balances, api, url):
    api.get(url, json={"credits": 40.0})
    balances.get({"wallet": ["org-1", "org-2"]})

    assert balances.get({"wallet": ["org-2"]})["wallet"].balances.keys() == {None, "org-2"}


def test_connections_with_two_keys_share_nothing(balances, api, url):
    api.get(url, status=429, headers={"Retry-After": "300"}, json={"name": "rate", "message": "", "id": "1"})
    balances.get({"wallet": ["org-1"]})
    api.replace(responses.GET, url, json={"credits": 40.0})
    balances.get({"second": ["org-1"]})
    balances.get({"third": ["org-1"]})

    assert requested(api) == [None, None, "org-1", None, "org-1"]


@pytest.mark.parametrize("problem", ["locked out", "refused", "fresh"])
def test_a_changed_key_is_asked_anew(balances, api, url, time, keys, problem):
    if problem == "locked out":
        api.get(url, status=429, headers={"Retry-After": "3600"}, json={"name": "rate", "id": "1"})
    elif problem == "refused":
        api.get(url, status=401, json={"name": "unauthorized", "id": "1"})
    else:
        api.get(url, json={"credits": 40.0})
    balances.get({"wallet": ["org-1"]})
    before = len(api.calls)
    keys["wallet"] = "sk-another"
    time.advance(CONNECTION_MAX_AGE_SECONDS)
    api.replace(responses.GET, url, json={"credits": 30.0})

    wallet = balances.get({"wallet": ["org-1"]})["wallet"]

    assert requested(api)[before:] == [None, "org-1"]
    assert api.calls[-1].request.headers["Authorization"] == "Bearer sk-another"
    assert wallet.locked_until is None
    assert {balance.failure for balance in wallet.balances.values()} == {None}
    # The old key's default organization may be another one.
    assert [reading.credits for reading in wallet.balances[None].readings] == [30.0]
    assert [reading.credits for reading in wallet.balances["org-1"].readings][-1] == 30.0


def test_a_named_organization_keeps_its_history_when_the_key_changes(balances, api, url, time, keys):
    api.get(url, json={"credits": 40.0})
    balances.get({"with_organization": []})
    keys["with_organization"] = "sk-another"
    time.advance(CONNECTION_MAX_AGE_SECONDS)
    api.replace(responses.GET, url, status=401, json={"name": "unauthorized", "id": "1"})

    balance = balances.get({"with_organization": []})["with_organization"].balances["org-own"]

    assert "401" in balance.failure
    assert balance.last.credits == 40.0


def test_a_connection_is_read_again_after_seconds_only(balances, api, url, time, keys):
    api.get(url, json={"credits": 40.0})
    balances.get({"wallet": []})
    keys["wallet"] = "sk-another"
    balances.get({"wallet": []})

    assert len(api.calls) == 1
