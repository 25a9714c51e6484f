"""The commands ``airflow stability balance`` and ``airflow stability account``.

Airflow from 3.2 on finds :func:`get_cli_commands` through the provider info, and loads this module at each of
its commands: heavy imports stand in the functions. ``python -m airflow_stability`` offers the same commands
on every Airflow.

What holds for both commands:

- stdout gets the output and nothing else; an error is one line on stderr, and never shows the API key.
- The exit status is 0; 1 for any error, Ctrl-C and an output that nobody reads among them; 3 where the answer
  to ``--minimum`` is no. What the command line's parser refuses, such as an unknown option, is status 2.
- The API is asked once, and not again within the connection's ``retry_deadline``: somebody waits for the
  answer. Whoever wants to wait for a better one has a shell around it, or a sensor.
"""

from __future__ import annotations

import errno
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from airflow.cli.cli_config import GroupCommand

    from airflow_stability.hooks.stability import StabilityHook

FAILED = 1
TOO_LITTLE = 3

#: What a table shows where no organization was named.
DEFAULT_ORGANIZATION = "(the key's default)"

_BALANCE_EPILOG = (
    "Exit status with --minimum: 0 if there are more credits, 3 if there are not, 1 if the balance could not "
    "be read. Costs no credits."
)


def get_cli_commands() -> list[GroupCommand]:
    """Return the commands as Airflow wants them."""
    from airflow.cli.cli_config import ARG_OUTPUT, ActionCommand, Arg, GroupCommand

    conn_id = Arg(  # type: ignore[no-untyped-call]
        ("--conn-id",),
        default="stability_default",
        help="The connection, of type stability (default: %(default)s)",
    )
    organization = Arg(  # type: ignore[no-untyped-call]
        ("--organization",),
        metavar="ID",
        help="Whose balance, such as org-123456 (default: the connection's, else the key's default)",
    )
    # Not checked by the parser: an unusable one is an error like others, and has their exit status.
    minimum = Arg(  # type: ignore[no-untyped-call]
        ("--minimum",),
        metavar="CREDITS",
        help="Let the exit status tell whether there are more credits than this",
    )
    return [
        GroupCommand(
            name="stability",
            help="Look at an account of Stability AI",
            subcommands=(
                ActionCommand(
                    name="balance",
                    help="Show the credit balance of an organization",
                    func=balance,
                    args=(conn_id, organization, minimum, ARG_OUTPUT),
                    epilog=_BALANCE_EPILOG,
                ),
                ActionCommand(
                    name="account",
                    help="Show the account that the API key belongs to, and its organizations",
                    func=account,
                    args=(conn_id, ARG_OUTPUT),
                ),
            ),
        )
    ]


def balance(args: Namespace) -> NoReturn:
    """Print the balance. Ends the process: see the module for the exit status."""
    _run(_balance, args)


def account(args: Namespace) -> NoReturn:
    """Print the account. Ends the process: see the module for the exit status."""
    _run(_account, args)


def _run(command: Callable[[StabilityHook, Namespace], int], args: Namespace) -> NoReturn:
    try:
        from airflow.utils.cli import suppress_logs_and_warning

        @suppress_logs_and_warning
        def run(args: Namespace) -> NoReturn:
            sys.exit(_call(command, args))

        args.verbose = False  # the decorator asks for it
        run(args)
    except KeyboardInterrupt:
        _say("Interrupted.")
    sys.exit(FAILED)


def _call(command: Callable[[StabilityHook, Namespace], int], args: Namespace) -> int:
    from airflow_stability.compat import read_connections_as_a_command
    from airflow_stability.errors import StabilityError
    from airflow_stability.hooks.stability import StabilityHook

    read_connections_as_a_command()
    hook = StabilityHook(args.conn_id, retry_deadline=0)
    try:
        return command(hook, args)
    except (StabilityError, ValueError) as error:
        _say(str(error))
    finally:
        hook.close()
    return FAILED


def _say(text: str) -> None:
    """Write one line to stderr."""
    sys.stderr.write(" ".join(text.split()) + "\n")


def _balance(hook: StabilityHook, args: Namespace) -> int:
    from airflow_stability.rules.gate import suffices
    from airflow_stability.validation import check_credits, check_organization, format_number

    minimum = None if args.minimum is None else check_credits(args.minimum, argument="--minimum")
    organization = check_organization(args.organization) or hook.get_conn().organization
    credits = hook.get_balance(organization).credits
    _print(
        args.output,
        [{"credits": credits, "organization": organization}],
        [{"credits": format_number(credits), "organization": organization or DEFAULT_ORGANIZATION}],
    )
    return 0 if minimum is None or suffices(credits, minimum, expected=0.0) else TOO_LITTLE


def _account(hook: StabilityHook, args: Namespace) -> int:
    account = hook.get_account()
    whose = {"account": account.id, "email": account.email}
    of_each = [
        {"organization": it.id, "name": it.name, "role": it.role, "default": "yes" if it.is_default else "no"}
        for it in account.organizations
    ]
    none = dict.fromkeys(("organization", "name", "role", "default"), "")
    _print(
        args.output,
        [account.model_dump(mode="json", include={"id", "email", "organizations"})],
        [whose | each for each in of_each or [none]],
    )
    return 0


def _print(output: str, data: Any, rows: list[dict[str, str]]) -> None:
    """Print what was read, with Airflow's own helper.

    :param output: table, json, yaml or plain.
    :param data: what json and yaml show, of plain types. The helper's ``print_as`` would make strings of its
        numbers.
    :param rows: what the others show.
    """
    from airflow.cli.simple_table import AirflowConsole
    from tabulate import tabulate  # type: ignore[import-untyped]

    if sys.stdout is None:  # closed, by who only wants the exit status
        return
    # Names are other people's: no style of rich's in them, and no sequence that a terminal obeys.
    console = AirflowConsole(markup=False, emoji=False)
    rows = [{column: _printable(text) for column, text in row.items()} for row in rows]
    try:
        if output == "json":
            console.print_as_json(data)
        elif output == "yaml":
            console.print_as_yaml(data)
        elif output == "table":
            console.print_as_table(rows)
        else:
            # As the helper does it, but that rounds numbers.
            table = tabulate([row.values() for row in rows], list(rows[0]), "plain", disable_numparse=True)
            sys.stdout.write(f"{table}\n")
        sys.stdout.flush()
    except (OSError, SystemExit) as error:  # rich ends the process when nobody reads
        reason = error.strerror if isinstance(error, OSError) else os.strerror(errno.EPIPE)
        _say(f"The output could not be written: {reason}.")
        # What is left over would be tried again, and complained of, when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
