"""The commands ``airflow stability ...``: their names, arguments and help texts.

Airflow 3.2 and later find :func:`get_cli_commands` through the provider info. Every ``airflow`` command loads
this module. So the code of the commands is in other modules, which are loaded when a command runs, and each
function there imports heavy modules itself. ``python -m airflow_stability`` offers the same commands on every
Airflow.

All commands follow these rules:

- Only the output goes to stdout. An error is one line on stderr and never shows a secret.
- The exit status is 0 for success; 1 for any error, including Ctrl-C and output that nobody reads; 2 for
  arguments that the parser rejects, such as an unknown option; 3 for a balance of ``--minimum`` or less, and
  for a ledger in which somebody has to do something.
- No request to the API is retried, whatever ``retry_deadline`` the connection has, because a user waits for
  the result. A script can repeat the command, and a sensor can wait for credits.
"""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand

EXIT_FAILURE = 1
#: The answer to the question that the command checks is no.
EXIT_NO = 3

_BALANCE_EPILOG = (
    "Exit status with --minimum: 0 if the balance is more than the minimum, 3 if it is not, 1 if the balance "
    "could not be read. This command costs no credits."
)
_CHECK_EPILOG = (
    "Exit status: 0 if nobody needs to do anything, 3 if somebody does, 1 if the ledger could not be read. "
    "This command changes nothing."
)
_SETTLE_EPILOG = (
    "Without a KEY, this command changes nothing. It lists the spends that can be settled: those that are "
    "unknown, and those that are held beyond their leases."
)
_PRUNE_EPILOG = (
    "What is held or unknown stays, and so does what counts in the current period of a budget. Tasks can use "
    "the ledger meanwhile."
)
_SPEND_EPILOG = (
    "With --by wallet, the remainder is how much further a balance fell than the ledger can explain: "
    "somebody else has spent it, or calls cost more than their prices in the ledger."
)
_TIMES = "7d, 24h or 30m ago, or a date such as 2026-11-30 or 2026-11-30T12:00+01:00 (default zone: UTC)"


def get_cli_commands() -> list[GroupCommand]:
    """Return the commands, in the form that Airflow expects."""
    from airflow.cli.cli_config import GroupCommand

    return [
        GroupCommand(
            name="stability",
            help="Show a Stability AI account and what calls cost, and keep the ledger of spends",
            subcommands=(*_account_commands(), *_ledger_commands()),
        )
    ]


def _account_commands() -> list[ActionCommand]:
    from airflow.cli.cli_config import ARG_OUTPUT

    organization = _arg(
        "--organization",
        metavar="ID",
        help="The organization, such as org-123456 (default: the connection's, else the API key's default)",
    )
    # The commands check numbers and times, not the parser, so that a wrong one gets exit status 1, not 2.
    minimum = _arg(
        "--minimum", metavar="CREDITS", help="Exit with status 3 unless the balance is more than this"
    )
    return [
        _command(
            "account.balance",
            "Show the credit balance of an organization",
            _conn_id(),
            organization,
            minimum,
            ARG_OUTPUT,
            epilog=_BALANCE_EPILOG,
        ),
        _command(
            "account.account",
            "Show the account that the API key belongs to, and its organizations",
            _conn_id(),
            ARG_OUTPUT,
        ),
        _command(
            "account.prices",
            "Show what calls cost, as the vendor last published it; asks no server",
            ARG_OUTPUT,
        ),
    ]


def _ledger_commands() -> list[ActionCommand | GroupCommand]:
    from airflow.cli.cli_config import ARG_OUTPUT, GroupCommand

    ledger_conn_id = _arg(
        "--ledger-conn-id",
        metavar="ID",
        help="The connection of the ledger's database (default: ledger_conn_id in the extra of --conn-id)",
    )
    common = (_conn_id(), ledger_conn_id, ARG_OUTPUT)
    by = _arg(
        "--by",
        choices=("dag", "task", "run", "budget", "wallet", "day"),
        default="dag",
        help="What credits are summed up by; days are in UTC (default: %(default)s)",
    )
    since = _arg(
        "--since",
        metavar="TIME",
        default="7d",
        help=f"Count what was held since {_TIMES} (default: %(default)s)",
    )
    name = _arg("name", metavar="NAME", help="The name of the budget")
    limit = _arg("--limit", metavar="CREDITS", required=True, help="The credits of one period")
    every = _arg(
        "--every",
        choices=("day", "week", "month", "total"),
        required=True,
        help="How often the budget renews; with total, it never does",
    )
    timezone = _arg(
        "--timezone",
        metavar="ZONE",
        default="UTC",
        help="The time zone in which periods begin, such as Europe/Paris (default: %(default)s)",
    )
    soft = _arg(
        "--soft",
        metavar="PERCENT",
        help="The soft limit: report the budget when this percent of its limit is used (default: never)",
    )
    keys = _arg("keys", metavar="KEY", nargs="*", help="The keys of the spends")
    state = _arg(
        "--as",
        dest="state",
        choices=("posted", "void"),
        help="posted: they were paid for; void: they were not",
    )
    reason = _arg("--reason", metavar="TEXT", help="How you know; kept in the ledger with your user's name")
    before = _arg("--before", metavar="TIME", required=True, help=f"Delete what was held before {_TIMES}")
    return [
        _command(
            "ledger.spend",
            "Show who has spent how many credits",
            *(by, since, *common),
            epilog=_SPEND_EPILOG,
        ),
        GroupCommand(
            name="budget",
            help="Set, list and delete budgets",
            subcommands=(
                _command(
                    "ledger.set_budget",
                    "Make a budget, or replace all settings of the one with that name",
                    *(name, limit, every, timezone, soft, *common),
                    name="set",
                ),
                _command("ledger.list_budgets", "Show all budgets and what is left", *common, name="list"),
                _command(
                    "ledger.delete_budget",
                    "Delete a budget. Its spends stay, and tasks that name it fail",
                    *(name, *common),
                    name="delete",
                ),
            ),
        ),
        GroupCommand(
            name="ledger",
            help="Make, check, settle and prune the ledger",
            subcommands=(
                _command("ledger.init", "Make the ledger's tables, or upgrade them", *common),
                _command(
                    "ledger.check",
                    "Show what is wrong in the ledger, and what is open",
                    *common,
                    epilog=_CHECK_EPILOG,
                ),
                _command(
                    "ledger.settle",
                    "Write down how spends of unknown outcome ended, or list them",
                    *(keys, state, reason, *common),
                    epilog=_SETTLE_EPILOG,
                ),
                _command(
                    "ledger.prune",
                    "Delete spends and balances from long ago",
                    *(before, *common),
                    epilog=_PRUNE_EPILOG,
                ),
            ),
        ),
    ]


def _conn_id() -> Arg:
    return _arg(
        "--conn-id",
        default="stability_default",
        help="A connection of type stability (default: %(default)s)",
    )


def _arg(flag: str, **more: Any) -> Arg:
    from airflow.cli.cli_config import Arg

    return Arg((flag,), **more)  # type: ignore[no-untyped-call]


def _command(
    function: str, text: str, *args: Arg, name: str | None = None, epilog: str | None = None
) -> ActionCommand:
    """Return a command.

    :param function: its code: a module of this package and a function in it, with a dot between.
    :param text: the help text.
    :param name: the command's name; default: the function's name.
    """
    from airflow.cli.cli_config import ActionCommand

    return ActionCommand(
        name=name or function.rpartition(".")[2],
        help=text,
        func=partial(_run, function),
        args=args,
        epilog=epilog,
    )


def _run(function: str, args: Namespace) -> NoReturn:
    """Load a command and run it, which ends the process."""
    from importlib import import_module

    from airflow_stability.cli.process import run

    module, _, name = function.rpartition(".")
    run(getattr(import_module(f"airflow_stability.cli.{module}"), name), args)
