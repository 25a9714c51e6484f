"""The search for secrets, with which other tests check that none is where it must not be."""

from __future__ import annotations

import gzip
import json
import os
from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote, quote_plus, urlencode

import pytest
import sqlalchemy

from tests.leaks import SHORTEST, Search, forms_of

SECRET = "sk-sim-0123456789abcdef0123456789ABCDEF01234567"
#: Holds the characters that an encoding changes.
HOSTILE = "sk-q\"'<&/+ %\\\u00fc\t~?>" + "Zx9~?>" * 5

SURROUNDINGS = {
    "log line": lambda secret: f"[2026-01-01] {{client.py:12}} INFO - the key is {secret}.\n".encode(),
    "traceback": lambda secret: f"Traceback (most recent call last):\n    key = {secret!r}\n".encode(),
    "first half": lambda secret: f"key={secret[: len(secret) // 2]}...".encode(),
    "second half": lambda secret: f"key=...{secret[len(secret) // 2 :]}".encode(),
    "Bearer header": lambda secret: f"Authorization: Bearer {secret}\r\n".encode(),
    "Bearer header in base64": lambda secret: b'"' + b64encode(f"Bearer {secret}".encode()) + b'"',
    "Bearer header in base64 for URLs": lambda secret: urlsafe_b64encode(f"Bearer {secret}".encode()),
    **{
        f"Basic header of {user!r}": lambda secret, user=user: (
            b"Authorization: Basic " + b64encode(f"{user}:{secret}@".encode()) + b"\r\n"
        )
        for user in ("", "m", "me")
    },
    "query string": lambda secret: f"GET /?{urlencode({'api_key': secret, 'n': 1})} HTTP/1.1".encode(),
    "connection's URI": lambda secret: f"stability://:{quote(secret, safe='')}@127.0.0.1:80/".encode(),
    "path": lambda secret: f"/v1/{quote(secret)}/balance".encode(),
    "path of a form": lambda secret: f"/v1/{quote_plus(secret)}".encode(),
    "JSON body": lambda secret: json.dumps({"password": secret, "port": 80}).encode(),
    "JSON body as it is": lambda secret: json.dumps([secret], ensure_ascii=False).encode(),
    "repr of a dictionary": lambda secret: repr({"password": secret}).encode(),
    "page": lambda secret: f"<td>{secret.replace('&', '&amp;').replace('<', '&lt;')}</td>".encode(),
    "hex dump": lambda secret: b"00" + secret.encode().hex().encode() + b"ff",
    "binary data": lambda secret: b"\0\xff" + secret.encode() + b"\xfe",
}


@pytest.mark.parametrize("name", SURROUNDINGS)
@pytest.mark.parametrize("secret", [SECRET, HOSTILE], ids=["of a simulator", "hostile"])
def test_a_secret_is_found_in(name, secret):
    other = "another secret that nobody writes anywhere"
    data = b"x" * 1000 + b"\n" + SURROUNDINGS[name](secret) + b"\ny" * 1000

    found = Search([other, secret]).find(data)

    if name in ("page", "JSON body as it is") and secret is HOSTILE:
        # These escape other characters than the forms do. Only the half without such characters is found.
        assert found == ["secret 1: second half"]
    else:
        assert found
    assert all(text.startswith("secret 1: ") for text in found)
    assert Search([other]).find(data) == []


@pytest.mark.parametrize("name", forms_of(HOSTILE))
def test_each_form_is_found_and_named(name):
    form = forms_of(HOSTILE)[name]

    assert f"secret 0: {name}" in Search([HOSTILE]).find(b"before " + form + b" behind")
    assert f"secret 0: {name}" not in Search([HOSTILE]).find(b"before " + form[:-1] + b" " + form[1:])


@pytest.mark.parametrize("secret", [SECRET, HOSTILE, "x1" * SHORTEST], ids=["usual", "hostile", "short"])
def test_a_form_is_found_wherever_it_stands_within_a_word(secret):
    search = Search([secret, SECRET])
    for name, form in forms_of(secret).items():
        for before in range(50):
            assert f"secret 0: {name}" in search.find(b"a" * before + form + b"z" * (before % 7))


def test_equal_forms_are_listed_once_and_none_is_short():
    forms = forms_of(SECRET)

    assert list(forms) == [
        "itself",
        "first half",
        "second half",
        "hex",
        "base64 at 0",
        "base64 at 1",
        "base64 at 2",
    ]
    for secret in (SECRET, HOSTILE):
        assert len(set(forms_of(secret).values())) == len(forms_of(secret))
        assert min(map(len, forms_of(secret).values())) >= SHORTEST


def test_a_secret_whose_half_is_too_short_is_refused():
    forms_of("x" * 2 * SHORTEST)
    with pytest.raises(AssertionError, match="by accident"):
        forms_of("x" * (2 * SHORTEST - 1))


def test_a_search_without_secrets_is_refused():
    with pytest.raises(AssertionError, match="no secret"):
        Search([])


def test_a_finding_does_not_repeat_the_secret():
    found = " ".join(Search([SECRET]).find(SECRET.encode()))

    assert found == "secret 0: first half secret 0: itself secret 0: second half"


def test_random_text_holds_no_form():
    assert Search([SECRET, HOSTILE]).find(b64encode(os.urandom(100_000))) == []


def test_names_and_contents_of_files_are_searched_also_of_compressed_ones(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "task.log").write_text(f"\nthe key is {SECRET}\n")
    (tmp_path / "logs" / "task.log.gz").write_bytes(gzip.compress(b64encode(SECRET.encode())))
    (tmp_path / SECRET[:30]).touch()
    (tmp_path / "left_out").write_text(SECRET)
    (tmp_path / "harmless").write_text("nothing")

    places, files = Search([SECRET]).find_in_files(tmp_path, but=[tmp_path / "left_out"])

    assert files == 4
    assert places == [
        f"{tmp_path / 'logs' / 'task.log'}: secret 0: first half",
        f"{tmp_path / 'logs' / 'task.log'}: secret 0: itself",
        f"{tmp_path / 'logs' / 'task.log'}: secret 0: second half",
        f"{tmp_path / 'logs' / 'task.log.gz'}: secret 0: base64 at 0",
        f"{tmp_path / SECRET[:30]}: secret 0: first half",
    ]


def test_all_rows_of_all_tables_are_searched(tmp_path):
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'database'}")
    with engine.begin() as connection:
        # A name that must be quoted.
        connection.execute(sqlalchemy.text('CREATE TABLE "order" (number INTEGER, data BLOB, value JSON)'))
        connection.execute(
            sqlalchemy.text('INSERT INTO "order" VALUES (1, :data, :value), (2, NULL, NULL)'),
            {"data": b"\x80" + SECRET.encode().hex().encode(), "value": json.dumps({"a": SECRET[23:]})},
        )

    places, rows = Search([SECRET]).find_in_database(engine)
    engine.dispose()

    assert rows == 2
    assert places == [
        "table order, column data: secret 0: hex",
        "table order, column value: secret 0: second half",
    ]
