"""The commands of :mod:`airflow_stability.cli` on every Airflow; before 3.2 it has no place for them itself.

``python -m airflow_stability balance`` is ``airflow stability balance``.
"""

from __future__ import annotations

import argparse
import logging
import sys

from airflow_stability.cli import FAILED, get_cli_commands


def main(arguments: list[str] | None = None) -> None:
    """Run a command, which ends the process with its exit status.

    :param arguments: those of the process, if None.
    """
    logging.disable(logging.INFO)  # Airflow 3.1 tells in detail what it loads
    try:
        (group,) = get_cli_commands()
    except KeyboardInterrupt:  # loading Airflow takes seconds
        sys.stderr.write("Interrupted.\n")
        sys.exit(FAILED)
    finally:
        logging.disable(logging.NOTSET)
    parser = argparse.ArgumentParser(prog="python -m airflow_stability", description=group.help)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in group.subcommands:
        subparser = commands.add_parser(
            command.name, help=command.help, description=command.help, epilog=command.epilog
        )
        for arg in command.args:
            arg.add_to_parser(subparser)
        subparser.set_defaults(func=command.func)
    args = parser.parse_args(arguments)
    args.func(args)


if __name__ == "__main__":
    main()
