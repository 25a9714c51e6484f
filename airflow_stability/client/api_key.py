"""The check of an API key: what may have been copied with it, and which characters it may have."""

from __future__ import annotations

import hashlib
import re
import secrets

from airflow_stability.errors import KEYS_URL, StabilityConfigurationError

#: Another one in each process: a fingerprint is of no use outside of it.
_SALT = secrets.token_bytes(32)

# Blanks and invisible marks that may be copied with a key, such as the byte order mark of a file.
_BLANK = r"[\s\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]"

# A key, and what may have been copied with it. A name and "=" are removed only in front of "sk-", which the
# vendor's keys begin with: the keys of a gateway may have any form.
_COPIED_KEY = re.compile(
    rf"""{_BLANK}*
    (?: (?:export\s+)?\w*key\w*\s*=(?=\s*(?:bearer\s)?\s*["'`]?sk-)  # a line of an .env file
      | authorization\s*:  # a header
    )? {_BLANK}*
    (?: bearer (?: : | {_BLANK} | $ ) )? {_BLANK}*
    (?P<key>.*?) {_BLANK}*""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)


def check_api_key(api_key: object) -> str:
    """Return the key without what was copied with it: blanks, ``Bearer``, the name of a header or setting.

    :raises StabilityConfigurationError: it is missing, or has characters that an HTTP header cannot carry.
    """
    copied = _COPIED_KEY.fullmatch(api_key) if isinstance(api_key, str) else None
    key = copied["key"] if copied else ""
    if not key:
        raise StabilityConfigurationError(f"The API key is missing: create one at {KEYS_URL}.")
    if {key[0], key[-1]} & set("\"'`"):
        raise StabilityConfigurationError("The API key has quotes around it: remove them.")
    odd = re.search(r"[^!-~]", key)
    if odd:
        raise StabilityConfigurationError(
            f"The API key has a blank, control or non-ASCII character at position {odd.start() + 1} of "
            f"{len(key)}: paste it again."
        )
    if key == key[: len(key) // 2] * 2:
        raise StabilityConfigurationError("The API key was pasted twice: remove one copy.")
    return key


def fingerprint(api_key: object) -> bytes:
    """Return a hash that tells one API key from another in this process. It is never stored and never logged.

    What was copied with a key makes no difference. A key that cannot be used has a fingerprint, too.

    :param api_key: the key as it was given, such as the password of a connection.
    """
    try:
        key = check_api_key(api_key)
    except StabilityConfigurationError:
        key = api_key if isinstance(api_key, str) else ""
    return hashlib.blake2b(key.encode(errors="surrogatepass"), key=_SALT, digest_size=16).digest()
