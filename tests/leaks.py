"""A search for secrets in files and databases: the secret itself, each half of it, and its encodings.

The tests and the demo use it. A finding names the form and the number of the secret, never the secret.
"""

from __future__ import annotations

import contextlib
import gzip
import html
import json
import os
import re
from base64 import b64encode, urlsafe_b64encode
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

#: The least number of bytes of a form. So many do not stand anywhere by accident.
SHORTEST = 12
#: The number of bytes that are looked up at once.
PIECE = 8


def forms_of(secret: str) -> dict[str, bytes]:
    """Return the bytes to search for, by the name of the form. A form equal to an earlier one is left out."""
    assert len(secret) >= 2 * SHORTEST, "a half of this secret could stand somewhere by accident"
    plain, middle = secret.encode(), len(secret) // 2
    forms = {
        "itself": plain,
        "first half": secret[:middle].encode(),
        "second half": secret[middle:].encode(),
        "hex": plain.hex().encode(),
        "URL-encoded": quote(secret, safe="").encode(),
        "URL-encoded as a path": quote(secret).encode(),
        "URL-encoded as a form": quote_plus(secret).encode(),
        "JSON": json.dumps(secret)[1:-1].encode(),
        "repr": repr(secret)[1:-1].encode(),
        "HTML": html.escape(secret).encode(),
    }
    for offset in range(3):
        forms[f"base64 at {offset}"] = _within(b64encode, plain, offset)
        forms[f"URL-safe base64 at {offset}"] = _within(urlsafe_b64encode, plain, offset)
    names: dict[bytes, str] = {}
    for name, form in forms.items():
        names.setdefault(form, name)
    return {name: form for form, name in names.items()}


def _within(encode: Callable[[bytes], bytes], plain: bytes, offset: int) -> bytes:
    """Return the base64 of a secret between other bytes, as in ``Bearer ...`` or ``user:...``.

    :param offset: the number of bytes before the secret, modulo 3.
    """
    # A character stands for six bits. The first and the last may include bits of neighbouring bytes, and are
    # left out then.
    return encode(b"\0" * offset + plain)[-(-offset * 8 // 6) : (offset + len(plain)) * 8 // 6]


class Search:
    """A search for any number of secrets in one pass.

    :param secrets: the secrets. A finding gives their number, from 0 on.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        named = [
            (form, f"secret {number}: {name}")
            for number, secret in enumerate(secrets)
            for name, form in forms_of(secret).items()
        ]
        assert named, "there is no secret to look for"
        shortest = min(len(form) for form, _ in named)
        alphabet = bytes(sorted({byte for form, _ in named for byte in form}))
        # Most of the data is words too short to hold a form, and repeated lines.
        self._runs = re.compile(b"[%s]{%d,}" % (re.escape(alphabet), shortest))
        # In steps of this size, at least one piece lies within the beginning of any form in the data.
        self._step = shortest - PIECE + 1
        self._pieces: defaultdict[bytes, list[tuple[int, bytes, str]]] = defaultdict(list)
        for form, name in named:
            for offset in range(self._step):
                self._pieces[form[offset : offset + PIECE]].append((offset, form, name))

    def find(self, data: bytes) -> list[str]:
        """Return which forms of which secrets are in the data."""
        found = set()
        for run in set(self._runs.findall(data)):
            for at in range(0, len(run) - PIECE + 1, self._step):
                for offset, form, name in self._pieces.get(run[at : at + PIECE], ()):
                    if at >= offset and run.startswith(form, at - offset):
                        found.add(name)
        return sorted(found)

    def find_in_files(self, folder: Path, but: Collection[Path] = ()) -> tuple[list[str], int]:
        """Search the names and contents of all files in a folder.

        :param but: files to leave out.
        :returns: what was found in which file, and the number of files searched.
        """
        places, files = [], 0
        for file in sorted(folder.rglob("*")):
            if not file.is_file() or file in but:
                continue
            # Airflow may still run, and delete files.
            with contextlib.suppress(FileNotFoundError):
                data = file.read_bytes()
                content = gzip.decompress(data) if file.suffix == ".gz" else data
                places += [f"{file}: {what}" for what in self.find(os.fsencode(file) + b"\n" + content)]
                files += 1
        return places, files

    def find_in_database(self, engine: Any) -> tuple[list[str], int]:
        """Search all rows of all tables of a database.

        :returns: what was found in which column, and the number of rows searched.
        """
        import sqlalchemy

        places: set[str] = set()
        rows = 0
        with engine.connect() as connection:
            for table in sqlalchemy.inspect(connection).get_table_names():
                for row in connection.execute(sqlalchemy.text(f'SELECT * FROM "{table}"')):
                    rows += 1
                    for column, value in row._mapping.items():
                        # PostgreSQL's driver returns bytes as a memoryview.
                        data = bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
                        places.update(f"table {table}, column {column}: {what}" for what in self.find(data))
        return sorted(places), rows
