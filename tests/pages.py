"""README, the pages in docs, and the blocks of code on them.

A block may have comments in front of it:

- ``<!-- runs: FILE -->``: the test in that file runs the block.
- ``<!-- runs: FILE: TEXT -->``: that file runs one of the block's commands, written as this text.
- ``<!-- serves: TEXT -->``: the block starts a server, which prints this text once it is ready.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("bash", "sh", "shell")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    :param where: file and line of the block.
    :param language: language of the block, such as ``python``; empty if none is given.
    :param text: content of the block, without indentation of its own.
    :param runs: files that run the block, from its comments.
    :param serves: text that the block's server prints; None if the block is not a server.
    """

    where: str
    language: str
    text: str
    runs: tuple[str, ...]
    serves: str | None

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]

    def python_for(self, airflow_version: tuple[int, ...]) -> str:
        """Return a Python block for an Airflow version: the block's comments have the imports for 2.11."""
        if airflow_version >= (3, 0):
            return self.text
        return re.sub("from airflow.sdk import .* # Airflow 2.11: (.*)", r"\1", self.text)


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page."""
    found = []
    content = page.read_text()
    for match in re.finditer(
        r"^(?P<comments>(?: *<!--[^\n]*-->\n)*)(?P<indent> *)```(?P<language>\S*)\n(?P<text>.*?)^ *```$",
        content,
        flags=re.MULTILINE | re.DOTALL,
    ):
        line = content.count("\n", 0, match.start("language")) + 1
        text = re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        runs = tuple(re.findall("<!-- runs: (.*) -->", match["comments"]))
        serves = next(iter(re.findall("<!-- serves: (.*) -->", match["comments"])), None)
        found.append(Block(f"{page.relative_to(ROOT)}:{line}", match["language"], text, runs, serves))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def run_by(file: str) -> list[Block]:
    """Return the blocks that a test runs as they stand, in the order of the page.

    :param file: path of the test file.
    """
    place = str(Path(file).relative_to(ROOT))
    return [block for block in BLOCKS if block.runs == (place,)]
