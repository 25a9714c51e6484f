"""Shows the figures of a run, for docs/cluster.md."""

from __future__ import annotations

import pytest

FIGURES = pytest.StashKey[dict[str, object]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if figures := config.stash.get(FIGURES, None):
        terminalreporter.section("figures")
        for name, figure in figures.items():
            terminalreporter.line(f"{name}: {figure}")
