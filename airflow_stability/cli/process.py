"""How each command runs as a process: its exit status, its output, and its errors."""

from __future__ import annotations

import errno
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any, NoReturn

from airflow_stability.cli import EXIT_FAILURE


def run(command: Callable[[Namespace], int], args: Namespace) -> NoReturn:
    """Run a command, and end the process with the exit status that the command returns."""
    try:
        from airflow.utils.cli import suppress_logs_and_warning

        @suppress_logs_and_warning
        def run(args: Namespace) -> NoReturn:
            sys.exit(_status_of(command, args))

        args.verbose = False  # the decorator reads it
        run(args)
    except KeyboardInterrupt:
        print_error("Interrupted.")
    sys.exit(EXIT_FAILURE)


def _status_of(command: Callable[[Namespace], int], args: Namespace) -> int:
    from airflow_stability.errors import StabilityError

    try:
        return command(args)
    except (StabilityError, ValueError) as error:
        print_error(str(error))
    return EXIT_FAILURE


def print_error(text: str) -> None:
    """Write one line to stderr."""
    sys.stderr.write(" ".join(text.split()) + "\n")


def print_output(output: str, data: Any, rows: list[dict[str, str]]) -> None:
    """Print the output with Airflow's helper.

    :param output: table, json, yaml or plain.
    :param data: the content for json and yaml, of plain types. It does not go through the helper's
        ``print_as``, which turns numbers into strings.
    :param rows: the content for table and plain.
    """
    from airflow.cli.simple_table import AirflowConsole
    from tabulate import tabulate  # type: ignore[import-untyped]

    if sys.stdout is None:  # closed by a caller who needs only the exit status
        return
    # Other people choose the names. These must not style the output or control the terminal.
    console = AirflowConsole(markup=False, emoji=False)
    rows = [{column: _printable(text) for column, text in row.items()} for row in rows]
    try:
        if output == "json":
            console.print_as_json(data)
        elif output == "yaml":
            console.print_as_yaml(data)
        elif output == "table" or not rows:  # without rows, Airflow's table says that there is nothing
            console.print_as_table(rows)
        else:
            # Airflow's helper does the same, but rounds numbers.
            table = tabulate([row.values() for row in rows], list(rows[0]), "plain", disable_numparse=True)
            sys.stdout.write(f"{table}\n")
        sys.stdout.flush()
    except (OSError, SystemExit) as error:  # rich ends the process if nobody reads
        reason = error.strerror if isinstance(error, OSError) else os.strerror(errno.EPIPE)
        print_error(f"The output could not be written: {reason}.")
        # Otherwise Python would try to write the rest at exit, and report a second error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILURE)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
