"""The commands that show an account, its balance, and what calls cost."""

from __future__ import annotations

from argparse import Namespace
from contextlib import closing
from typing import TYPE_CHECKING

from airflow_stability.cli import EXIT_NO
from airflow_stability.cli.process import print_output

if TYPE_CHECKING:
    from airflow_stability.hooks.stability import StabilityHook

#: How a table shows the API key's default organization. The brackets tell it from an id. The column's heading
#: already says "organization", so this is shorter than the label in texts.
DEFAULT_ORGANIZATION = "(the key's default)"


def balance(args: Namespace) -> int:
    """Show the balance of an organization."""
    from airflow_stability.rules.gate import suffices
    from airflow_stability.validation import check_credits, check_organization, format_number

    minimum = None if args.minimum is None else check_credits(args.minimum, argument="--minimum")
    with closing(_hook(args)) as hook:
        organization = check_organization(args.organization) or hook.get_conn().organization
        credits = hook.get_balance(organization).credits
    print_output(
        args.output,
        [{"credits": credits, "organization": organization}],
        [{"credits": format_number(credits), "organization": organization or DEFAULT_ORGANIZATION}],
    )
    return 0 if minimum is None or suffices(credits, minimum, expected=0.0) else EXIT_NO


def account(args: Namespace) -> int:
    """Show the account that the API key belongs to."""
    with closing(_hook(args)) as hook:
        account = hook.get_account()
    user = {"account": account.id, "email": account.email}
    organizations = [
        {"organization": it.id, "name": it.name, "role": it.role, "default": "yes" if it.is_default else "no"}
        for it in account.organizations
    ]
    no_organization = dict.fromkeys(("organization", "name", "role", "default"), "")
    print_output(
        args.output,
        [account.model_dump(mode="json", include={"id", "email", "organizations"})],
        [user | each for each in organizations or [no_organization]],
    )
    return 0


def prices(args: Namespace) -> int:
    """Show what calls cost."""
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
    print_output(args.output, data, rows)
    return 0


def _hook(args: Namespace) -> StabilityHook:
    from airflow_stability.compat import read_connections_as_a_command
    from airflow_stability.hooks.stability import StabilityHook

    read_connections_as_a_command()
    return StabilityHook(args.conn_id, retry_deadline=0)
