"""The hook against the simulator: what is sent, which API version answers, what a person is told."""

from __future__ import annotations

import json

import pytest

from airflow_stability.compat import AIRFLOW_VERSION
from airflow_stability.errors import (
    StabilityAuthenticationError,
    StabilityConnectionNotFoundError,
    StabilityPermissionError,
    StabilityUnavailableError,
)
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.simulator import Fault
from tests.integration.conftest import redact


@pytest.fixture
def connect(simulator, monkeypatch):
    """Return a function that makes the connection stability_default, with this extra and key."""

    def connect(key=None, **extra):
        connection = {
            "conn_type": "stability",
            "password": key or simulator.api_key,
            "host": simulator.url,
            "extra": extra,
        }
        monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", json.dumps(connection))
        return StabilityHook(retry_deadline=0)

    return connect


def sent(simulator):
    return [(record.path, record.authorization, record.organization) for record in simulator.requests]


@pytest.mark.parametrize(("version", "form"), [("v1alpha", "raw"), ("v1", "bearer")])
def test_reads_account_and_balance_as_each_version_wants_to_be_asked(version, form, connect, simulator):
    simulator.set_credits(7.25, "org-other")
    hook = connect(api_version=version)

    account = hook.get_account()
    default, other = hook.get_balance(), hook.get_balance("org-other")

    assert [membership.id for membership in account.organizations] == ["org-default", "org-other"]
    assert (default.credits, other.credits) == (25.0, 7.25)
    assert sent(simulator) == [
        (f"/{version}/user/account", form, None),
        (f"/{version}/user/balance", form, None),
        (f"/{version}/user/balance", form, "org-other"),
    ]
    identity = {(record.client_id, record.client_version) for record in simulator.requests}
    assert identity == {("airflow-provider-stability", "0.1.0") if version == "v1" else (None, None)}
    assert simulator.requests[0].user_agent.startswith("airflow-provider-stability/0.1.0 ")


def test_the_connections_organization_counts_for_balances_that_name_none(connect, simulator):
    hook = connect(api_version="v1", organization="org-other")

    hook.get_account()
    hook.get_balance()
    hook.get_balance("org-default")

    assert [organization for _, _, organization in sent(simulator)] == [None, "org-other", "org-default"]


@pytest.mark.parametrize("status", [404, 410, 401, 403, 301, 308])
def test_auto_goes_to_v1_where_v1alpha_refuses_and_remembers_it(status, connect, simulator):
    simulator.switch_off("v1alpha", status=status)

    assert connect().get_balance().credits == 25.0
    assert connect().get_balance("org-other").credits == 0.0

    assert [path for path, _, _ in sent(simulator)] == [
        "/v1alpha/user/balance",
        "/v1/user/balance",
        "/v1/user/balance",
    ]


def test_one_refused_key_does_not_send_all_others_to_a_version_that_is_out_of_order(connect, simulator):
    simulator.switch_off("v1alpha")
    assert connect().get_balance().credits == 25.0
    simulator.inject(Fault.status(503), path="/v1alpha")

    with pytest.raises(StabilityUnavailableError) as raised:
        connect(key="sk-nobody").get_balance()
    balance = connect(key=simulator.api_key).get_balance()

    assert "GET /v1/user/balance answered 401" in str(raised.value)
    assert "GET /v1alpha/user/balance answered 503" in str(raised.value)
    assert balance.credits == 25.0
    assert sent(simulator)[-1][0] == "/v1/user/balance"


def test_auto_stays_with_v1alpha_where_that_answers(connect, simulator):
    hook = connect()

    hook.get_account()
    hook.get_balance()

    assert {path.split("/")[1] for path, _, _ in sent(simulator)} == {"v1alpha"}


def test_auto_fails_when_both_refuse_and_tells_both_answers(connect, simulator):
    simulator.switch_off("v1alpha", status=410)
    hook = connect(key="sk-nobody")

    with pytest.raises(StabilityAuthenticationError) as raised:
        hook.get_balance()

    assert "GET /v1alpha/user/balance answered 410" in str(raised.value)
    assert "GET /v1/user/balance answered 401 unauthorized" in str(raised.value)
    assert "Check the API key" in str(raised.value)
    assert "sk-nobody" not in str(raised.value)


def test_a_foreign_organization_is_refused(connect):
    with pytest.raises(StabilityPermissionError, match="is a member of the organization"):
        connect(api_version="v1").get_balance("org-nobody")


def test_retries_last_as_long_as_the_connection_says(connect, simulator):
    simulator.inject(Fault.status(503), times=2)
    connect(api_version="v1", retry_deadline=30)

    assert StabilityHook().get_balance().credits == 25.0
    assert [record.status for record in simulator.requests] == [503, 503, 200]


def test_a_wait_that_does_not_fit_the_deadline_is_not_begun(connect, simulator):
    simulator.inject(Fault.status(503, retry_after=31))
    connect(api_version="v1", retry_deadline=30)

    with pytest.raises(StabilityUnavailableError) as raised:
        StabilityHook().get_balance()

    assert raised.value.retry_after == 31.0
    assert len(simulator.requests) == 1


def test_key_and_proxy_password_are_masked_in_airflows_logs(connect):
    connect(key="Bearer sk-to-be-masked", proxy="http://user:pw-to-be-masked@127.0.0.1:9").get_conn()

    assert redact("it is sk-to-be-masked by pw-to-be-masked.") == "it is *** by ***."


def test_a_missing_connection_is_airflows_own_error():
    with pytest.raises(StabilityConnectionNotFoundError, match="nowhere"):
        StabilityHook("nowhere").get_conn()


def test_reload_tells_whether_the_connection_has_changed(connect, simulator):
    hook = connect(api_version="v1")
    assert hook.get_balance().credits == 25.0
    assert not hook.reload()

    connect(key=simulator.rotate_key(simulator.api_key), api_version="v1")

    old = hook.key_id
    assert hook.reload()
    assert hook.key_id != old
    assert hook.get_balance().credits == 25.0
    assert not hook.reload()


def test_reload_after_another_field_was_changed_tells_that_the_key_is_the_same(connect, simulator):
    hook = connect(api_version="v1")
    hook.get_conn()
    key = hook.key_id

    connect(f" Bearer {simulator.api_key}", api_version="v1", request_timeout=5)

    assert hook.reload()
    assert hook.key_id == key
    assert hook.get_conn().request_timeout == 5.0


def test_test_connection_tells_whose_account_it_is(connect):
    works, text = connect(api_version="v1").test_connection()

    assert works
    assert text == (
        "Account user-1 (user-1@example.com). Organizations: Default Organization (org-default, default), "
        "Other Organization (org-other). Balance of org-default: 25 credits. API version v1 answered."
    )


def test_test_connection_says_how_to_save_a_request(connect, simulator):
    simulator.switch_off("v1alpha")

    works, text = connect().test_connection()

    assert works
    assert "Set extra.api_version to v1" in text


def test_test_connection_warns_of_a_wallet_that_does_not_pay(connect):
    works, text = connect(organization="org-other").test_connection()

    assert works
    assert "Balance of org-other: 0 credits." in text
    assert "bills the key's default organization org-default, but this connection watches org-other" in text


def test_test_connection_names_an_organization_that_the_account_has_not(connect):
    works, text = connect(organization="org-nobody").test_connection()

    assert not works
    assert (
        "The account user-1 is not a member of the organization org-nobody that the connection names." in text
    )
    assert "Default Organization (org-default, default), Other Organization (org-other)" in text


def test_test_connection_names_fields_that_mean_nothing(connect):
    works, text = connect(organisation="org-other").test_connection()

    assert works
    assert "Warning: extra has fields that have no meaning here: organisation." in text


@pytest.mark.filterwarnings("ignore:Encountered")  # Airflow 2.11 says so, and takes the extra
@pytest.mark.parametrize("extra", ["[1, 2]", '"abc"'])
def test_test_connection_says_that_an_extra_is_no_object(extra, connect, monkeypatch):
    connection = {"conn_type": "stability", "password": "sk-1", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_NO_OBJECT", json.dumps(connection))

    works, text = StabilityHook("no_object").test_connection()

    assert not works
    if (3, 0) <= AIRFLOW_VERSION < (3, 2):
        # Airflow refuses to make such a connection (Connection._validate_extra), and then finds none.
        assert "isn't defined" in text
    else:
        assert "extra must be a JSON object" in text


@pytest.mark.parametrize(
    ("key", "extra", "text"),
    [
        ("sk-nobody", {"api_version": "v1"}, "Check the API key"),
        ("sk nobody", {}, "position 3 of 9"),
        (None, {"request_timeout": "soon"}, "extra.request_timeout"),
    ],
)
def test_test_connection_says_what_is_wrong(key, extra, text, connect):
    works, told = connect(key=key, **extra).test_connection()

    assert not works
    assert text in told
    assert "nobody" not in told


def test_test_connection_does_not_keep_a_person_waiting(connect, simulator):
    simulator.inject(Fault.status(503))
    connect(api_version="v1")

    works, text = StabilityHook().test_connection()

    assert not works
    assert "503" in text
    assert len(simulator.requests) == 1


def test_test_connection_of_a_missing_connection_says_so():
    works, text = StabilityHook("nowhere").test_connection()

    assert not works
    assert "nowhere" in text


class Vault(StabilityHook):
    """A hook of a user that takes connections from elsewhere."""

    @classmethod
    def get_connection(cls, conn_id):
        return super().get_connection("stability_default")


def test_test_connection_uses_what_a_subclass_has_overridden(connect):
    connect()

    works, text = Vault("elsewhere").test_connection()

    assert works, text
