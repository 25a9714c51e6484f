"""Settings: each rule with one sentence for whoever set it wrong, and no secret in it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_stability.client import options
from airflow_stability.client.api_key import check_api_key
from airflow_stability.errors import StabilityConfigurationError


@pytest.mark.parametrize(
    "quoted", ['"sk-1"', "'sk-1'", "`sk-1`", 'sk-1"', "Bearer 'sk-1'", 'STABILITY_API_KEY="sk-1"']
)
def test_a_key_in_quotes_is_told(quoted):
    with pytest.raises(StabilityConfigurationError, match="quotes around it"):
        check_api_key(quoted)


@pytest.mark.parametrize(
    "pasted",
    [
        *(
            "sk-1",
            " sk-1\n",
            "Bearer sk-1",
            "bearer   sk-1",
            "\tBEARER\tsk-1 ",
            "Bearer: sk-1",
            "Bearer:sk-1",
        ),
        *("\ufeffsk-1\r\n", "\u200bsk-1\u200b", "\xa0sk-1\u2060", "\ufeffBearer sk-1", "Bearer\xa0sk-1"),
        *("Authorization: Bearer sk-1\r\n", "authorization:sk-1", "AUTHORIZATION: sk-1"),
        *("STABILITY_API_KEY=sk-1\n", "export STABILITY_KEY=sk-1", "api_key = Bearer sk-1"),
    ],
)
def test_a_pasted_key_is_taken_without_what_surrounds_it(pasted):
    assert check_api_key(pasted) == "sk-1"


@pytest.mark.parametrize(
    "key", ["bearer-1", "a:b", "a=b", "sk-key=1", "key==", "bearer=1", "authorization-1", "mykey=abc"]
)
def test_a_key_is_not_taken_for_what_may_stand_in_front_of_one(key):
    assert check_api_key(key) == key


@pytest.mark.parametrize("pasted", ["sk-SECRET0", "Bearer sk-SECRET0"])
def test_a_key_that_was_pasted_twice_is_told_without_being_shown(pasted):
    for separator in ("", " ", "\n"):
        with pytest.raises(StabilityConfigurationError, match=r"pasted twice|paste it again") as refusal:
            check_api_key(pasted + separator + "sk-SECRET0")
        assert "SECRET0" not in str(refusal.value)


@pytest.mark.parametrize(
    "missing", [None, "", "  \n", 5, b"sk-1", ["sk-1"], "\ufeff\n", "Bearer", "Authorization: Bearer "]
)
def test_a_missing_key_says_where_keys_are_made(missing):
    with pytest.raises(StabilityConfigurationError, match=r"missing.*platform.stability.ai/account/keys"):
        check_api_key(missing)


@pytest.mark.parametrize("odd", ["\n", "\r\nX-Other: 1", "\x00", "é", "\u200b", " ", "\ud800"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(odd):
    with pytest.raises(StabilityConfigurationError, match="at position 11 of") as refusal:
        check_api_key(f"sk-SECRET0{odd}tail")
    assert "SECRET0" not in str(refusal.value)
    assert "tail" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.stability.ai",
        "https://gateway.example.com:8443/stability",
        "http://127.0.0.1:8080",
        "http://localhost",
        "http://[::1]:80",
        *("https://api.stability.ai.", "https://xn--bcher-kva.example", "https://[fe80::1%eth0]:8443"),
    ],
)
def test_an_address_of_the_api_is_taken_without_its_last_slash(url):
    assert options.check_base_url(url) == url
    assert options.check_base_url(url + "/") == url


def test_the_scheme_of_an_address_may_be_in_upper_case():
    assert options.check_base_url("HTTPS://API.STABILITY.AI/") == "https://API.STABILITY.AI"
    assert options.check_base_url("HTTP://LOCALHOST:80") == "http://LOCALHOST:80"
    with pytest.raises(StabilityConfigurationError, match="in clear"):
        options.check_base_url("HTTP://API.STABILITY.AI")


@pytest.mark.parametrize(
    "url",
    [
        *("", "api.stability.ai", "https://", "https:///path", "//api.stability.ai", "https://host:port"),
        *("https://host:99999", "https://[::1", "ftp://host", "file:///etc/passwd", "javascript:alert(1)"),
        *("https://host/?a=1", "https://host?", "https://host#", "https://host/#x"),
        *(
            "https://host\r\nX: 1",
            "https://ho st",
            "https://host/\x00",
            "https://hôst",
            "https://host/\ud800",
        ),
        *("https://api.stability.ai@evil.example", "https://127.0.0.1\\@evil.example"),
        *(
            "https://api.stability.ai\\x",
            "https:\\\\host",
            "https://ho\tst",
            "https://\ufeffhost",
            "https:host",
        ),
        *("https://host:0", "https://host:", "https://host:-1", "https://::1", "https://..", "https://a..b"),
        *("https://https://host", "https://https//host", "https://%68ost", "https://a,b", "https://a;b"),
        *("https://api.stability.ai/v1", "https://API.stability.ai./v1alpha/", f"https://{'a' * 64}"),
        *(None, 5, b"https://host", ["https://host"]),
    ],
)
def test_what_is_no_address_of_an_api_is_refused(url):
    said = r"^The API's address .*: set one such as https://api\.stability\.ai\.$"
    with pytest.raises(StabilityConfigurationError, match=said) as refusal:
        options.check_base_url(url)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    "url",
    [
        "https://sk-SECRET@host",
        "https://user:sk-SECRET@host/path",
        "sk-SECRET@host",
        "user:sk-SECRET@host",
        "https://host?key=sk-SECRET",
        "https://host#sk-SECRET",
        "https://\nsk-SECRET@host",
        "https://api.stability.ai/sk-SECRET00",
        "sk-SECRET00://host",
        f"https://sk-SECRET{'a' * 20}",
        f"https://sk-SECRET{'a' * 20}:443/path",
        f"https://host/path/sk-SECRET{'a' * 20}/",
    ],
)
def test_a_key_in_the_address_is_refused_without_being_shown(url):
    with pytest.raises(StabilityConfigurationError) as refusal:
        options.check_base_url(url)
    assert "SECRET" not in str(refusal.value)


@pytest.mark.parametrize(
    "host", ["api.stability.ai", "10.0.0.1", "0.0.0.0", "localhost.evil.example", "127.0.0.1.nip.io"]
)
def test_plain_http_is_refused_to_anything_but_loopback(host):
    with pytest.raises(StabilityConfigurationError, match="in clear"):
        options.check_base_url(f"http://{host}")
    assert options.check_base_url(f"http://{host}", allow_http=True) == f"http://{host}"


@pytest.mark.parametrize("version", ["", "v2", "V1", "v1 ", None, 1, ["v1"], {}, "v1" * 10_000])
def test_an_api_version_is_one_of_three(version):
    with pytest.raises(StabilityConfigurationError, match="auto, v1alpha or v1") as refusal:
        options.check_api_version(version)
    assert len(str(refusal.value)) < 200
    assert options.check_api_version("auto") == "auto"


@pytest.mark.parametrize("value", [-1, 86401, math.nan, math.inf, True, "10", None, [10], 10**400])
def test_seconds_are_a_number_up_to_a_day(value):
    said = r"^request_timeout must be a finite number of seconds, more than 0 and at most 86400; got "
    with pytest.raises(StabilityConfigurationError, match=said):
        options.check_seconds(value, argument="request_timeout")


def test_zero_seconds_are_allowed_where_they_mean_something():
    assert options.check_seconds(0, argument="retry_deadline", allow_zero=True) == 0
    with pytest.raises(StabilityConfigurationError):
        options.check_seconds(0, argument="request_timeout")


@pytest.mark.parametrize("value", ["", "a\r\nb", "a\x00", "é", "x" * 257, None, 5])
def test_a_header_is_printable_ascii(value):
    with pytest.raises(StabilityConfigurationError, match=r"^client_id must be 1 to 256"):
        options.check_header("client_id", value)
    assert options.check_header("client_id", "my pipeline/1.0") == "my pipeline/1.0"


def test_an_organization_that_cannot_be_one_is_a_configuration_error_with_no_other_behind_it():
    with pytest.raises(StabilityConfigurationError, match="organization must be an id") as refusal:
        options.check_organization("")
    assert refusal.value.__context__ is None


@pytest.mark.parametrize(
    "proxy",
    ["", "proxy", "proxy:3128", "http://", "http://u:pw-SECRET@", "http://u:pw-SECRET@h:x", "socks://h", 5],
)
def test_a_proxy_is_a_url_and_its_password_is_not_shown(proxy):
    with pytest.raises(StabilityConfigurationError, match="proxy must be a URL") as refusal:
        options.check_proxy(proxy)
    assert "SECRET" not in str(refusal.value)


@pytest.mark.parametrize(
    ("proxy", "secrets"),
    [
        ("http://proxy:3128", []),
        ("http://user@proxy:3128", []),
        ("http://user:@proxy:3128", []),
        ("http://user:pw@proxy:3128", ["pw"]),
        ("user:pw@proxy", ["pw"]),
        ("http://user:p%40w@proxy:port", ["p%40w", "p@w"]),
        ("http://user:p@w:x@proxy", ["p@w:x"]),
        ("", []),
        ("localhost,.example.com", []),
    ],
)
def test_the_password_of_a_proxy_is_a_secret_as_written_and_as_meant(proxy, secrets):
    assert options.proxy_secrets(proxy) == secrets


def test_a_ca_bundle_exists(tmp_path):
    assert options.check_ca_bundle(None) is None
    assert options.check_ca_bundle(str(tmp_path)) == str(tmp_path)
    for missing in (str(tmp_path / "none.pem"), "a\x00b", 5, "x" * 10_000):
        with pytest.raises(StabilityConfigurationError, match="ca_bundle must be the path of an existing"):
            options.check_ca_bundle(missing)


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.text())
)


@given(anything)
def test_no_setting_fails_in_another_way_than_by_its_own_error(value):
    for check in (
        check_api_key,
        options.check_base_url,
        options.check_api_version,
        options.check_organization,
        options.check_proxy,
        options.check_ca_bundle,
        lambda value: options.check_seconds(value, argument="timeout"),
        lambda value: options.check_header("user_agent", value),
    ):
        try:
            check(value)
        except StabilityConfigurationError as refusal:
            text = str(refusal)
        else:
            continue
        assert text.isprintable()
        assert len(text) < 400
