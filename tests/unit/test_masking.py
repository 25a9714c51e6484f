"""What a server's text may not show: a secret, a part of one, and other forms of either."""

from __future__ import annotations

import html
import json
import time
from base64 import b64encode, urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_stability.client.responses import clean
from tests.leaks import Search, forms_of

KEY = "sk-Kd83hqLw0PzYt7VbNe5RmXc2Jf9GaHsQ4uTi"
#: Holds the characters that an encoding changes.
HOSTILE = "sk-q\"'<&/+ %\\\u00fc\t~?>" + "Zx9~?>" * 5
#: A part of it, without a digit.
LETTERS = "sk-abcdefghijklmnopqrstuvwxyz-ABCDEFGHIJKLMNOPQRSTUVWXYZ"

WRITTEN = {
    "first half": lambda key: f"Incorrect API key provided: {key[: len(key) // 2]}...",
    "second half": lambda key: f"no such key: ...{key[len(key) // 2 :]}.",
    "both ends": lambda key: f"no such key: {key[:12]}********{key[-12:]}",
    "in lower case": lambda key: f"no host {key.lower()}",
    "in base64": lambda key: b64encode(key.encode()).decode(),
    "header in base64": lambda key: f"got {b64encode(f'Bearer {key}'.encode()).decode()}",
    "password in base64": lambda key: f"got {b64encode(f':{key}'.encode()).decode()}",
    "in base64 for URLs": lambda key: urlsafe_b64encode(f"Bearer: {key}".encode()).decode(),
    "half in base64": lambda key: b64encode(key[: len(key) // 2].encode()).decode(),
    "in hex": lambda key: f"0x{key.encode().hex()}",
    "in hex, upper case": lambda key: key.encode().hex().upper(),
    "in hexadecimal escapes": lambda key: "".join(f"\\x{byte:02x}" for byte in key.encode()),
    "in JSON": json.dumps,
    "in JSON escapes": lambda key: "".join(f"\\u{ord(character):04X}" for character in key),
    "as a repr": repr,
    "percent-encoded": lambda key: "".join(f"%{byte:02X}" for byte in key.encode()),
    "on a page": html.escape,
    "in decimal entities": lambda key: "".join(f"&#{ord(character)};" for character in key),
    "in hexadecimal entities": lambda key: "".join(f"&#x{ord(character):x};" for character in key),
    "in full width": lambda key: "".join(
        chr(ord(each) + 0xFEE0) if "!" <= each <= "~" else each for each in key
    ),
    **{
        f"with {mark!r} in it": lambda key, mark=mark: (
            f"key: {key[:10]}{mark}{key[10:20]}{mark * 3}{key[20:]}"
        )
        for mark in ("\n", "\r\n    ", "\t", "\0", " ", "\x1b", "\u00ad", "\u200b", "\u2028", "\ufeff", "\\n")
    },
    "a character a line": lambda key: "\n".join(key),
}


def shows(text: str, secret: str) -> bool:
    """Tell whether a text shows any 8 characters of a secret, whatever stands between them."""
    visible = "".join(each for each in text if "!" <= each <= "~").lower()
    parts = (secret[at : at + 8].lower() for at in range(len(secret) - 7))
    return any(part in visible for part in parts)


@pytest.mark.parametrize("secret", [KEY, HOSTILE, LETTERS], ids=["key", "hostile", "letters"])
@pytest.mark.parametrize("how", WRITTEN)
def test_no_part_and_no_form_of_a_secret_stays(how, secret):
    text = clean(f"The key was refused. {WRITTEN[how](secret)} Try another one.", ["pw", secret])
    assert Search([secret]).find(text.encode()) == []
    assert not shows(text, secret)
    assert text.startswith("The key was refused. ")
    assert text.endswith(" Try another one.")
    assert "***" in text


@pytest.mark.parametrize("secret", [KEY, HOSTILE, LETTERS], ids=["key", "hostile", "letters"])
def test_every_form_that_the_tests_search_for_is_masked(secret):
    for name, form in forms_of(secret).items():
        text = clean(f"x{form.decode()}y", [secret])
        assert Search([secret]).find(text.encode()) == [], name


@given(
    st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", min_size=24, max_size=80),
    st.data(),
)
def test_no_twelve_characters_of_a_secret_stay(secret, data):
    start = data.draw(st.integers(0, len(secret) - 12))
    end = data.draw(st.integers(start + 12, len(secret)))
    text = data.draw(st.text()) + secret[start:end] + data.draw(st.text())
    assert secret[start:end] not in clean(text, [secret])


def test_one_mask_stands_for_all_of_a_part():
    assert clean(f"key {KEY[:9]}\n{KEY[9:20]} refused", [KEY]) == "key *** refused"
    assert clean(f"got {b64encode(f'Bearer {KEY}'.encode()).decode()}.", [KEY]) == "got QmVhcmVyIH***Q==."


@pytest.mark.parametrize(
    "text",
    [
        "Keys begin with sk-: see https://platform.stability.ai/account/keys.",
        "sk-Kd83",
        "The organization has 50 credits, 100% of &lt;them&gt; at C:\\temp &nosuch; \\u12 %zz.",
        "café ﬁne … \U0001f600",
    ],
)
def test_other_text_stays_as_it_is(text):
    assert clean(text, [KEY, "pw"]) == text


def test_a_word_is_no_part_of_a_secret():
    secrets = ["my-Stability-proxy-organization-2024"]
    text = "https://api.stability.ai says STABILITY, Stability and stability"
    assert clean(text, secrets) == text
    assert clean("stability-proxy", secrets) == "***"  # it is more than a word
    assert clean("no organization", secrets) == "no ***"  # it is long


@pytest.mark.parametrize("secret", ["password", "sesame", "pässwört", "ü" * 9, "%41%42", "\\n", "x" * 8])
def test_a_secret_as_a_whole_is_masked_whatever_it_is(secret):
    assert clean(f"({secret})", [secret]) == "(***)"


@pytest.mark.parametrize(
    "unit",
    [
        "x",
        "%7",
        "%73",
        "&",
        "&#1",
        "&amp;",
        "\\",
        "\\u00",
        "\0",
        " ",
        "\ufdfa",
        "sk-Kd83",
        KEY,
        KEY[:9] + " ",
    ],
)
def test_a_long_text_is_cleaned_in_time_that_grows_with_its_length(unit):
    def seconds(length: int) -> float:
        text = (unit * (length // len(unit) + 1))[:length]
        began = time.process_time()
        clean(text, [KEY, HOSTILE])
        return time.process_time() - began

    seconds(1000)
    assert seconds(1024 * 1024) < 2  # of which 64 KiB are searched; it takes about 0.1
