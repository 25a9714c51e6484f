"""The README, the pages in docs, and the code blocks on them.

A comment before a code block says how the block is tested:

- ``<!-- runs: PLACE -->``: the test in this file runs the block.
- ``<!-- runs: PLACE: TEXT -->``: this file runs one of the block's commands, and contains this text.
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
    """A fenced code block of a page.

    :param where: file and line.
    :param runs: the contents of its ``runs`` comments.
    :param serves: the content of its ``serves`` comment; None if it has none.
    """

    where: str
    language: str
    text: str
    runs: tuple[str, ...]
    serves: str | None

    @property
    def commands(self) -> list[str]:
        """The commands of a block of shell code."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]

    def python_for(self, airflow_version: tuple[int, ...]) -> str:
        """Return a block of Python code for a version of Airflow, as its comments say."""
        if airflow_version >= (3, 0):
            return self.text
        return re.sub("from airflow.sdk import .* # Airflow 2.11: (.*)", r"\1", self.text)


def blocks_of(page: Path) -> list[Block]:
    """Return the code blocks of a page."""
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
    """Return the blocks that a test runs unchanged, in their order.

    :param file: of the test.
    """
    place = str(Path(file).relative_to(ROOT))
    return [block for block in BLOCKS if block.runs == (place,)]
