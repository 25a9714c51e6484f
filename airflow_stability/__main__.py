"""The commands of :mod:`airflow_stability.cli` for every Airflow; ``airflow`` itself has them from 3.2 on.

``python -m airflow_stability balance`` is the same as ``airflow stability balance``.
"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING

from airflow_stability.cli import EXIT_FAILURE, get_cli_commands

if TYPE_CHECKING:
    from airflow.cli.cli_config import GroupCommand


def main(arguments: list[str] | None = None) -> None:
    """Run a command, which ends the process with its exit status.

    :param arguments: the command's arguments; None for those of the process.
    """
    logging.disable(logging.INFO)  # Airflow 3.1 logs in detail what it loads
    try:
        (group,) = get_cli_commands()
    except KeyboardInterrupt:  # loading Airflow takes seconds
        sys.stderr.write("Interrupted.\n")
        sys.exit(EXIT_FAILURE)
    finally:
        logging.disable(logging.NOTSET)
    parser = argparse.ArgumentParser(prog="python -m airflow_stability", description=group.help)
    _add(group, parser)
    args = parser.parse_args(arguments)
    args.func(args)


def _add(group: GroupCommand, parser: argparse.ArgumentParser) -> None:
    """Let a parser know the commands of a group."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in group.subcommands:
        subparser = commands.add_parser(
            command.name, help=command.help, description=command.help, epilog=command.epilog
        )
        if hasattr(command, "subcommands"):
            _add(command, subparser)
        else:
            for arg in command.args:
                arg.add_to_parser(subparser)
            subparser.set_defaults(func=command.func)


if __name__ == "__main__":
    main()
