"""Checks of a client's options, except the API key. Each error text is one sentence that says what to set.

All of them raise StabilityConfigurationError, which is also a ValueError. No text shows a secret.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from airflow_stability import validation
from airflow_stability.errors import StabilityConfigurationError
from airflow_stability.validation import MAX_CLIENT_SECONDS, safe_repr

#: ``auto`` calls them in this order until one of them has answered.
API_VERSIONS = ("v1alpha", "v1")

#: The schemes that the URL of a proxy may have. With socks5h and socks4a, the proxy looks up the host's name.
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h", "socks4", "socks4a")

#: The error of a SOCKS proxy without PySocks.
SOCKS_IS_MISSING = (
    "A SOCKS proxy needs the extra socks: pip install 'airflow-provider-stability[socks]', on each machine."
)

_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")


def check_api_version(api_version: str) -> str:
    """Return ``auto`` or the name of an API version."""
    if isinstance(api_version, str) and api_version in ("auto", *API_VERSIONS):
        return api_version
    raise StabilityConfigurationError(
        f"api_version must be auto, v1alpha or v1; got {safe_repr(api_version)}."
    )


def check_base_url(base_url: str, *, allow_http: bool = False) -> str:
    """Return the address of the API, with its scheme in lower case and without a slash at its end.

    :raises StabilityConfigurationError: it is no valid address, or plain http to another host than loopback.
    """
    try:
        parts = urlsplit(base_url if isinstance(base_url, str) else "")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    problem = ""
    if not host:
        problem = "is not a URL"
    elif re.search(r"[^!-~]", base_url):
        problem = "has a blank, control or non-ASCII character"
    elif parts.scheme not in ("http", "https"):
        problem = "is neither http nor https"
    elif "@" in parts.netloc or re.search("[?#]", base_url):
        problem = "has a user, a query or a fragment, which it must not have"
    elif not _is_host(host) or port == 0 or parts.netloc.endswith(":"):
        problem = "has an invalid host or port"
    elif host.rstrip(".") == "api.stability.ai" and parts.path.strip("/"):
        problem = "has a path, which must be left out for api.stability.ai"
    elif re.search(r"/sk-[\w-]{20,}(?=[:/]|$)", base_url):
        problem = "contains an API key, which must be set separately"
    if not host or problem:
        # By mistake, a key may be in the user or in the query.
        shown = re.sub(r"^(\w+://)?.*@", r"\1***@", re.split("[?#]", str(base_url))[0], flags=re.DOTALL)
        raise StabilityConfigurationError(
            f"The API's address {safe_repr(shown)} {problem}: set one such as https://api.stability.ai."
        )
    if parts.scheme == "http" and not allow_http and not _is_loopback(host):
        raise StabilityConfigurationError(
            f"Plain http to {host} would send the API key in clear text: use https, or set allow_http."
        )
    return f"{parts.scheme}{base_url[len(parts.scheme) :]}".rstrip("/")


def _is_host(host: str) -> bool:
    if host in ("http", "https"):  # https//host, without its colon
        return False
    try:
        return _HOST_NAME.fullmatch(host) is not None or ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_organization(organization: str | None) -> str | None:
    """Return the organization id, or None for the key's default organization."""
    try:
        return validation.check_organization(organization)
    except ValueError as error:
        problem = str(error)
    raise StabilityConfigurationError(problem)


def check_seconds(value: float, *, argument: str, allow_zero: bool = False) -> float:
    """Return a time limit in seconds, up to a day."""
    try:
        return validation.check_seconds(
            value, argument=argument, allow_zero=allow_zero, maximum=MAX_CLIENT_SECONDS
        )
    except ValueError as error:
        problem = str(error)
    raise StabilityConfigurationError(problem)


def check_header(name: str, value: str) -> str:
    """Return the value of a header that a user sets."""
    if isinstance(value, str) and re.fullmatch(r"[ -~]{1,256}", value):
        return value
    raise StabilityConfigurationError(
        f"{name} must be 1 to 256 printable ASCII characters; got {safe_repr(value)}."
    )


def check_proxy(proxy: str) -> str:
    """Return the URL of a proxy. The error does not show it: it may contain a password."""
    try:
        parts = urlsplit(proxy if isinstance(proxy, str) else "")
        usable = parts.scheme in PROXY_SCHEMES and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise StabilityConfigurationError(
            "proxy must be a URL such as http://proxy.example.com:3128 or socks5h://proxy.example.com:1080."
        )
    if parts.scheme.startswith("socks") and importlib.util.find_spec("socks") is None:
        raise StabilityConfigurationError(SOCKS_IS_MISSING)
    return proxy


def proxy_secrets(proxy: str) -> list[str]:
    """Return the password in the URL of a proxy, as it is in the URL and decoded."""
    user, at, _ = proxy.rpartition("@")  # not urlsplit: an invalid URL may contain a password too
    password = user.split("//")[-1].partition(":")[2] if at else ""
    return sorted({password, unquote(password)} - {""})


def check_ca_bundle(ca_bundle: str | None) -> str | None:
    """Return the path of an existing file or folder of CA certificates."""
    try:
        if ca_bundle is None or Path(ca_bundle).exists():
            return ca_bundle
    except (TypeError, ValueError, OSError):
        pass
    raise StabilityConfigurationError(
        f"ca_bundle must be the path of an existing file or folder; got {safe_repr(ca_bundle)}."
    )
