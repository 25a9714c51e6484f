"""The words that a test has made the API object to. Knows no HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, get_args

#: What the API does about a word: refuse the request, for one of three reasons, or blur what comes out.
Objection = Literal["refuse", "public_figure", "invalid_language", "blur"]


class Moderation:
    """The words in prompts that the API objects to. At first there are none."""

    def __init__(self) -> None:
        self._objections: dict[str, Objection] = {}

    @property
    def words(self) -> dict[str, Objection]:
        """The words, with what the API does about each."""
        return dict(self._objections)

    def add(self, word: str, objection: Objection) -> None:
        """Object to a word or a phrase from now on.

        :raises ValueError: a word without letters or digits, or no such objection.
        """
        if objection not in get_args(Objection):
            raise ValueError(f"What the API does about a word is one of {', '.join(get_args(Objection))}.")
        if not isinstance(word, str) or not re.search(r"\w", word):
            raise ValueError("A word must have letters or digits.")
        self._objections[word] = objection

    def clear(self) -> None:
        """Object to nothing any more."""
        self._objections.clear()

    def objection(self, prompts: Iterable[str]) -> Objection | None:
        """Return what the API does about these prompts; None if it objects to nothing.

        Words count as whole words, in upper or lower case. A refusal comes before blurring.
        """
        text = "\n".join(prompts)
        found = {
            objection
            for word, objection in self._objections.items()
            if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
        }
        return next((objection for objection in get_args(Objection) if objection in found), None)
