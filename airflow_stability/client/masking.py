"""Masking: keeps secrets, their parts and their other forms out of texts that a server has sent.

A gateway that refuses a key may repeat the key: shortened, broken into two lines, escaped for a web page, or
in base64 as part of a header. Each of these would help an attacker who reads a log.
"""

from __future__ import annotations

import html
import re
import unicodedata
from base64 import b64encode, urlsafe_b64encode
from functools import cached_property

MASK = "***"

#: The length of the shortest part of a secret that is masked. The prefix ``sk-`` is no secret.
PART_LENGTH = 8

#: A part that is one word is masked only if it is at least this long. A shorter one may be an ordinary word.
WORD_LENGTH = 12

_WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+")

# A character, as it is or as URLs, HTML, JSON and Python write it, but no blank and no control character.
_WRITTEN = re.compile(
    r"%[0-9a-f]{2} | &(?:\#\d{1,7}|\#x[0-9a-f]{1,6}|[a-z]{2,8}); | \\(?:u[0-9a-f]{4}|x[0-9a-f]{2}|.) "
    r"| [!-~] | [^\x00-\x7f]",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)


class Secrets(tuple[str, ...]):
    """Texts to mask. Their repr shows none of them: some tools show the variables of a traceback."""

    def __repr__(self) -> str:
        return f"<{len(self)} secrets>"

    def mask(self, text: str) -> str:
        """Return a text with ``***`` in place of each secret, and of its parts of 8 or more characters.

        The characters of a part may be upper or lower case, and may be escaped. Blanks, control characters
        and characters outside of ASCII may stand between them. A secret in hex or base64 is masked in the
        same way. A part of fewer than 12 characters is shown if it is a word: letters of one case, or a
        capital first.
        """
        if not self:
            return text
        spans = [match.span() for match in self._whole.finditer(text)]
        shown: list[str] = []
        end_of_mask = 0
        for start, end in sorted([*spans, *self._find_parts(text)]):
            if start > end_of_mask or not shown:
                shown += [text[end_of_mask:start], MASK]
            end_of_mask = max(end_of_mask, end)
        return "".join([*shown, text[end_of_mask:]])

    def _find_parts(self, text: str) -> list[tuple[int, int]]:
        plain, spans = _spell_out(text)
        lower = plain.lower()
        runs: list[tuple[int, int]] = []
        for at in range(len(lower) - PART_LENGTH + 1):
            if lower[at : at + PART_LENGTH] in self._parts:
                overlaps = runs and at <= runs[-1][1]
                runs.append((runs.pop()[0] if overlaps else at, at + PART_LENGTH))
        return [
            (spans[start][0], spans[end - 1][1])
            for start, end in runs
            if end - start >= WORD_LENGTH or not _WORD.fullmatch(plain, start, end)
        ]

    @cached_property
    def _whole(self) -> re.Pattern[str]:
        longest_first = sorted(self, key=len, reverse=True)  # one may be part of another
        return re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)  # as in the name of a host

    @cached_property
    def _parts(self) -> frozenset[str]:
        forms = {form.lower() for secret in self for form in _forms_of(secret)}
        return frozenset(
            form[at : at + PART_LENGTH] for form in forms for at in range(len(form) - PART_LENGTH + 1)
        )


def _forms_of(secret: str) -> list[str]:
    """Return what a secret looks like once a text that holds it is spelled out."""
    data = secret.encode(errors="replace")
    forms = [_spell_out(secret)[0], re.sub("[^!-~]", "", secret), data.hex()]
    for encode in (b64encode, urlsafe_b64encode):
        for before in range(3):  # number of bytes in front of it, modulo 3, such as those of "Bearer "
            # A character stands for six bits. Those that include bits of neighbouring bytes are left out.
            encoded = encode(b"\0" * before + data).decode()
            forms.append(encoded[-(-before * 8 // 6) : (before + len(data)) * 8 // 6])
    return forms


def _spell_out(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Return the visible ASCII characters that a text stands for, and where in the text each is written."""
    characters: list[str] = []
    spans: list[tuple[int, int]] = []
    for match in _WRITTEN.finditer(text):
        written = match[0]
        for character in written if "!" <= written <= "~" and len(written) == 1 else _meant_by(written):
            if "!" <= character <= "~":
                characters.append(character)
                spans.append(match.span())
    return "".join(characters), spans


def _meant_by(written: str) -> str:
    """Return the characters that an escape, or a character outside of ASCII, stands for."""
    if written[0] == "%":
        return chr(int(written[1:], 16))
    if written[0] == "&":
        return html.unescape(written)
    if written[0] == "\\":
        if len(written) > 2:
            return chr(int(written[2:], 16))
        return "" if written[1] in "abfnrtv0" else written[1]
    return unicodedata.normalize("NFKC", written)
