"""All that Airflow has written while it ran DAGs in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import pytest

from tests.conftest import HOME
from tests.leaks import Search

#: Airflow has no key here to encrypt them with, so they stand there in clear, and nowhere else they may.
PASSWORDS = "table connection, column password: "


class Written:
    """What was printed until now, and the files and rows of Airflow's home.

    :param more: texts that went elsewhere.
    """

    def __init__(self, config: pytest.Config, more: Iterable[str] = ()) -> None:
        # What pytest has captured is all: of Python's own streams as they were at any time, of Airflow's
        # loggers, which keep one of those, and of what writes past them.
        output = config.pluginmanager.getplugin("capturemanager").read_global_capture()
        sys.stdout.write(output.out)
        sys.stderr.write(output.err)
        self._texts = {"output": output.out + output.err, "elsewhere": "\n".join(more)}

    def places_of(self, *secrets: str) -> list[str]:
        """Return what stands where, in all its forms."""
        from airflow import settings

        search = Search(secrets)
        in_texts = [
            f"{name}: {what}" for name, text in self._texts.items() for what in search.find(text.encode())
        ]
        # The rows of the database are searched, but not what was deleted there: there are connections, too.
        in_files, _ = search.find_in_files(HOME, but=set(HOME.glob("airflow.db*")))
        in_rows, _ = search.find_in_database(settings.engine)
        return in_texts + in_files + in_rows
