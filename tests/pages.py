"""README and the pages of docs, and the blocks of code on them.

What a comment in front of a block says of it:

- ``<!-- runs: PLACE -->``: the test in that file runs it.
- ``<!-- runs: PLACE: TEXT -->``: for one of its commands, the file that runs it as this text.
- ``<!-- serves: TEXT -->``: it is a server, which says this once it is ready.
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

    :param where: file and line.
    :param runs: what the comments say of places that run it.
    :param serves: what it says when it is a server.
    """

    where: str
    language: str
    text: str
    runs: tuple[str, ...]
    serves: str | None

    @property
    def commands(self) -> list[str]:
        """The commands of a block of shell."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]

    def python_for(self, airflow_version: tuple[int, ...]) -> str:
        """Return a block of Python for a version of Airflow, as its own comments say."""
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
    """Return the blocks that a test runs as they stand, in their order.

    :param file: the test's.
    """
    place = str(Path(file).relative_to(ROOT))
    return [block for block in BLOCKS if block.runs == (place,)]
