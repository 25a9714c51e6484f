"""What a client may be set to: each rule once, each with one sentence for whoever set it wrong.

Everything here raises StabilityConfigurationError, which is also a ValueError, and shows no secret.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from airflow_stability.errors import KEYS_URL, StabilityConfigurationError
from airflow_stability.validation import check_organization as _check_organization
from airflow_stability.validation import safe_repr

#: ``auto`` asks them in this order until one is known to answer.
API_VERSIONS = ("v1alpha", "v1")

# Blanks, and marks that nobody sees: copied along with a key, such as the one that a file may begin with.
_BLANK = r"[\s\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]"

# A key, and what may have been copied in front of it. A name and "=" are taken for the name of a setting only
# in front of "sk-", with which the vendor's keys begin: a gateway's keys may look like anything.
_COPIED_KEY = re.compile(
    rf"""{_BLANK}*
    (?: (?:export\s+)?\w*key\w*\s*=(?=\s*(?:bearer\s)?\s*["'`]?sk-)  # a line of an .env file
      | authorization\s*:  # a header
    )? {_BLANK}*
    (?: bearer (?: : | {_BLANK} | $ ) )? {_BLANK}*
    (?P<key>.*?) {_BLANK}*""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)

_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")


def check_api_version(api_version: str) -> str:
    """Return ``auto`` or the name of an API version."""
    if not isinstance(api_version, str) or api_version not in ("auto", *API_VERSIONS):
        raise StabilityConfigurationError(
            f"api_version must be auto, v1alpha or v1; got {safe_repr(api_version)}."
        )
    return api_version


def check_api_key(api_key: object) -> str:
    """Return the key without what was copied along: blanks around it; in front, ``Bearer`` or the name of a
    header or of a setting.

    :raises StabilityConfigurationError: there is none, or it holds what an HTTP header cannot carry.
    """
    copied = _COPIED_KEY.fullmatch(api_key) if isinstance(api_key, str) else None
    key = copied["key"] if copied else ""
    if not key:
        raise StabilityConfigurationError(f"The API key is missing: keys are made at {KEYS_URL}.")
    if {key[0], key[-1]} & set("\"'`"):
        raise StabilityConfigurationError("The API key has quotes around it: leave them out.")
    odd = re.search(r"[^!-~]", key)
    if odd:
        raise StabilityConfigurationError(
            f"The API key has a blank, control or non-ASCII character at position {odd.start() + 1} of "
            f"{len(key)}: paste it again."
        )
    if key == key[: len(key) // 2] * 2:
        raise StabilityConfigurationError("The API key was pasted twice: leave one of the two out.")
    return key


def check_base_url(base_url: str, *, allow_http: bool = False) -> str:
    """Return the URL of the API with its scheme in lower case and without a slash at its end.

    :raises StabilityConfigurationError: it is no such URL, or plain http to another host than loopback.
    """
    problem = "is not a URL"
    try:
        parts = urlsplit(base_url if isinstance(base_url, str) else "")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if host and re.search(r"[^!-~]", base_url):
        host, problem = None, "has a blank, control or non-ASCII character"
    elif host and parts.scheme not in ("http", "https"):
        host, problem = None, "is neither http nor https"
    elif host and ("@" in parts.netloc or re.search("[?#]", base_url)):
        host, problem = None, "has a user, a query or a fragment, which the API's address has not"
    elif host and (not _is_host(host) or port == 0 or parts.netloc.endswith(":")):
        host, problem = None, "has a host or a port that cannot be one"
    elif host and host.rstrip(".") == "api.stability.ai" and parts.path.strip("/"):
        host, problem = None, "has a path, which api.stability.ai has not"
    elif host and re.search(r"/sk-[\w-]{20,}(?=[:/]|$)", base_url):
        host, problem = None, "has an API key in it, which belongs into the password"
    if not host:
        # A key may stand in either place, by mistake.
        shown = re.sub(r"^(\w+://)?.*@", r"\1***@", re.split("[?#]", str(base_url))[0], flags=re.DOTALL)
        raise StabilityConfigurationError(
            f"The API's address {safe_repr(shown)} {problem}: set one such as https://api.stability.ai."
        )
    if parts.scheme == "http" and not allow_http and not _is_loopback(host):
        raise StabilityConfigurationError(
            f"Plain http to {host} would send the API key in clear: use https, or set allow_http."
        )
    return f"{parts.scheme}{base_url[len(parts.scheme) :]}".rstrip("/")


def _is_host(host: str) -> bool:
    if host in ("http", "https"):  # https//host, with the colon forgotten
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
        return _check_organization(organization)
    except ValueError as error:
        problem = str(error)
    raise StabilityConfigurationError(problem)


def check_seconds(name: str, value: float, *, zero: bool = False) -> float:
    """Return a number of seconds, up to a day.

    :param zero: whether 0 is allowed too.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and (0 < value <= 86400 or (zero and value == 0)):
        return float(value)
    raise StabilityConfigurationError(
        f"{name} must be a number of seconds, {'0 or more' if zero else 'above 0'} and up to 86400; "
        f"got {safe_repr(value)}."
    )


def check_header(name: str, value: str) -> str:
    """Return the value of a header that a person set."""
    if isinstance(value, str) and re.fullmatch(r"[ -~]{1,256}", value):
        return value
    raise StabilityConfigurationError(
        f"{name} must be 1 to 256 printable ASCII characters; got {safe_repr(value)}."
    )


def check_proxy(proxy: str) -> str:
    """Return the URL of a proxy. The error does not show it: it may hold a password."""
    try:
        parts = urlsplit(proxy if isinstance(proxy, str) else "")
        if parts.scheme and parts.hostname and parts.port != 0:
            return proxy
    except ValueError:
        pass
    raise StabilityConfigurationError("proxy must be a URL such as http://proxy.example.com:3128.")


def proxy_secrets(proxy: str) -> list[str]:
    """Return the password in a proxy's URL, as it stands there and as it is meant."""
    user, at, _ = proxy.rpartition("@")  # not urlsplit: a broken URL holds its password just as well
    password = user.split("//")[-1].partition(":")[2] if at else ""
    return sorted({password, unquote(password)} - {""})


def check_ca_bundle(ca_bundle: str | None) -> str | None:
    """Return the path of a CA file or folder that exists."""
    try:
        if ca_bundle is None or Path(ca_bundle).exists():
            return ca_bundle
    except (TypeError, ValueError, OSError):
        pass
    raise StabilityConfigurationError(f"ca_bundle names no file or folder here: {safe_repr(ca_bundle)}.")
