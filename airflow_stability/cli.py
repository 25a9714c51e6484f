"""The commands ``airflow stability balance``, ``airflow stability account`` and ``airflow stability prices``.

Airflow 3.2 and later find :func:`get_cli_commands` through the provider info. Every ``airflow`` command loads
this module, so each function imports heavy modules itself. ``python -m airflow_stability`` offers the same
commands on every Airflow.

All commands follow these rules:

- Only the output goes to stdout. An error is one line on stderr and never shows the API key.
- The exit status is 0 for success; 1 for any error, including Ctrl-C and output that nobody reads; 2 for
  arguments that the parser rejects, such as an unknown option; 3 for a balance of ``--minimum`` or less.
- No request is retried, whatever ``retry_deadline`` the connection has, because a user waits for the result.
  A script can repeat the command, and a sensor can wait for credits.
"""

from __future__ import annotations

import errno
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from airflow.cli.cli_config import GroupCommand

    from airflow_stability.hooks.stability import StabilityHook

EXIT_FAILURE = 1
EXIT_NOT_MORE_THAN_MINIMUM = 3

#: How a table shows the API key's default organization. The brackets tell it from an id. The column's heading
#: already says "organization", so this is shorter than the label in texts.
DEFAULT_ORGANIZATION = "(the key's default)"

_BALANCE_EPILOG = (
    "Exit status with --minimum: 0 if the balance is more than the minimum, 3 if it is not, 1 if the balance "
    "could not be read. This command costs no credits."
)


def get_cli_commands() -> list[GroupCommand]:
    """Return the commands, in the form that Airflow expects."""
    from airflow.cli.cli_config import ARG_OUTPUT, ActionCommand, Arg, GroupCommand

    conn_id = Arg(  # type: ignore[no-untyped-call]
        ("--conn-id",),
        default="stability_default",
        help="A connection of type stability (default: %(default)s)",
    )
    organization = Arg(  # type: ignore[no-untyped-call]
        ("--organization",),
        metavar="ID",
        help="The organization, such as org-123456 (default: the connection's, else the API key's default)",
    )
    # The command checks it, not the parser, so that a wrong value gets exit status 1, not 2.
    minimum = Arg(  # type: ignore[no-untyped-call]
        ("--minimum",),
        metavar="CREDITS",
        help="Exit with status 3 unless the balance is more than this",
    )
    return [
        GroupCommand(
            name="stability",
            help="Show a Stability AI account, its credits and what calls cost",
            subcommands=(
                ActionCommand(
                    name="balance",
                    help="Show the credit balance of an organization",
                    func=partial(_run, partial(_call, _balance)),
                    args=(conn_id, organization, minimum, ARG_OUTPUT),
                    epilog=_BALANCE_EPILOG,
                ),
                ActionCommand(
                    name="account",
                    help="Show the account that the API key belongs to, and its organizations",
                    func=partial(_run, partial(_call, _account)),
                    args=(conn_id, ARG_OUTPUT),
                ),
                ActionCommand(
                    name="prices",
                    help="Show what calls cost, as the vendor last published it; asks no server",
                    func=partial(_run, _prices),
                    args=(ARG_OUTPUT,),
                ),
            ),
        )
    ]


def _run(command: Callable[[Namespace], int], args: Namespace) -> NoReturn:
    """Run a command, and end the process with the exit status that the command returns."""
    try:
        from airflow.utils.cli import suppress_logs_and_warning

        @suppress_logs_and_warning
        def run(args: Namespace) -> NoReturn:
            sys.exit(command(args))

        args.verbose = False  # the decorator reads it
        run(args)
    except KeyboardInterrupt:
        _print_error("Interrupted.")
    sys.exit(EXIT_FAILURE)


def _call(command: Callable[[StabilityHook, Namespace], int], args: Namespace) -> int:
    from airflow_stability.compat import read_connections_as_a_command
    from airflow_stability.errors import StabilityError
    from airflow_stability.hooks.stability import StabilityHook

    read_connections_as_a_command()
    hook = StabilityHook(args.conn_id, retry_deadline=0)
    try:
        return command(hook, args)
    except (StabilityError, ValueError) as error:
        _print_error(str(error))
    finally:
        hook.close()
    return EXIT_FAILURE


def _print_error(text: str) -> None:
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
    return 0 if minimum is None or suffices(credits, minimum, expected=0.0) else EXIT_NOT_MORE_THAN_MINIMUM


def _account(hook: StabilityHook, args: Namespace) -> int:
    account = hook.get_account()
    user = {"account": account.id, "email": account.email}
    organizations = [
        {"organization": it.id, "name": it.name, "role": it.role, "default": "yes" if it.is_default else "no"}
        for it in account.organizations
    ]
    no_organization = dict.fromkeys(("organization", "name", "role", "default"), "")
    _print(
        args.output,
        [account.model_dump(mode="json", include={"id", "email", "organizations"})],
        [user | each for each in organizations or [no_organization]],
    )
    return 0


def _prices(args: Namespace) -> int:
    from airflow_stability.prices import DATE, PRICES, SOURCE
    from airflow_stability.validation import format_number

    data = [
        {"endpoint": endpoint, "model": model, "credits": credits, "date": DATE, "source": SOURCE}
        for (endpoint, model), credits in PRICES.items()
    ]
    rows = [
        {
            "endpoint": endpoint,
            "model": model or "",
            "credits": format_number(credits),
            "date": DATE,
        }
        for (endpoint, model), credits in PRICES.items()
    ]
    _print(args.output, data, rows)
    return 0


def _print(output: str, data: Any, rows: list[dict[str, str]]) -> None:
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
    # Other people choose the names, which must not style the output or control the terminal.
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
            # Airflow's helper does the same, but rounds numbers.
            table = tabulate([row.values() for row in rows], list(rows[0]), "plain", disable_numparse=True)
            sys.stdout.write(f"{table}\n")
        sys.stdout.flush()
    except (OSError, SystemExit) as error:  # rich ends the process if nobody reads
        reason = error.strerror if isinstance(error, OSError) else os.strerror(errno.EPIPE)
        _print_error(f"The output could not be written: {reason}.")
        # Otherwise Python would write the rest again at exit, and report a second error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILURE)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
