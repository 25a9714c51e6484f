"""The commands of the ledger: its tables, budgets, sums of spends, and what a person has to settle."""

from __future__ import annotations

import contextlib
import re
from argparse import Namespace
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_stability.cli import EXIT_FAILURE, EXIT_NO
from airflow_stability.cli.process import print_error, print_output

if TYPE_CHECKING:
    from airflow_stability.ledger.budgets import Budget
    from airflow_stability.ledger.ledger import Ledger
    from airflow_stability.ledger.report import OpenSpend

#: Seconds by which the database's clock may differ from this machine's. Budgets renew by the database's.
CLOCK_SECONDS = 60.0

_UNITS = {"d": "days", "h": "hours", "m": "minutes"}

_TO_SETTLE = "Find out whether it was paid for, then settle it as posted or as void."


def init(args: Namespace) -> int:
    """Make the tables."""
    with _ledger(args) as ledger:
        version = ledger.database.init()
    row = {"ledger": ledger.database.name, "version": version}
    print_output(args.output, [row], [_texts(row)])
    return 0


def check(args: Namespace) -> int:
    """Show what is wrong and what is open; the exit status tells whether somebody has to do something."""
    from airflow_stability.ledger.report import open_spends

    with _ledger(args) as ledger:
        ledger.database.check_version()
        version = ledger.database.version()
        ahead = (ledger.database.now() - datetime.now(UTC).replace(tzinfo=None)).total_seconds()
        budgets, spends = ledger.budgets(), open_spends(ledger.database)
    findings = [
        _finding("ok", "tables", f"version {version} in {ledger.database.name}"),
        _clock_finding(ahead),
        *(_budget_finding(budget) for budget in budgets),
        *(_spend_finding(spend) for spend in spends),
    ]
    data = {
        "version": version,
        "clock_ahead": round(ahead, 3),
        "budgets": [_budget_data(budget) for budget in budgets],
        "open": [_spend_data(spend) for spend in spends],
    }
    print_output(args.output, [data], findings)
    return EXIT_NO if any(finding["result"] == "to do" for finding in findings) else 0


def settle(args: Namespace) -> int:
    """Settle spends; without a key, list those that can be settled."""
    from airflow_stability.ledger.report import open_spends

    if not args.keys:
        if args.state:
            raise ValueError("Name the KEY of each spend to settle; without --as, this command lists them.")
        with _ledger(args) as ledger:
            spends = open_spends(ledger.database)
        rows = [_texts(_spend_data(spend), _SPEND_COLUMNS) for spend in spends]
        print_output(args.output, [_spend_data(spend) for spend in spends], rows)
        return 0
    if not args.state:
        raise ValueError("Say how they ended: --as posted if they were paid for, --as void if they were not.")
    settled: list[dict[str, Any]] = []
    failures = []
    with _ledger(args) as ledger:
        for key in dict.fromkeys(args.keys):
            try:
                is_new = ledger.settle(key, args.state, _user(), args.reason)
                settled.append({"key": key, "state": args.state, "settled": "now" if is_new else "before"})
            except ValueError as error:
                failures.append(str(error))
    if settled:
        print_output(args.output, settled, [_texts(each) for each in settled])
    if failures:
        print_error(" ".join(failures))
    return EXIT_FAILURE if failures else 0


def prune(args: Namespace) -> int:
    """Delete what ended long ago."""
    from airflow_stability.ledger.retention import prune

    before = time_of(args.before, argument="--before")
    with _ledger(args) as ledger:
        pruned = prune(ledger.database, before)
    row = {
        "before": _iso(pruned.before),
        "spends_deleted": pruned.spends,
        "balances_deleted": pruned.balances,
        "open_spends_kept": pruned.kept_open,
        "ended_spends_kept": pruned.kept_ended,
    }
    print_output(args.output, [row], [_texts(row)])
    return 0


def set_budget(args: Namespace) -> int:
    """Make or change a budget, and show it."""
    soft = args.soft
    if soft is not None:  # "80" and "80%"
        digits = soft.strip().removesuffix("%")
        soft = int(digits) if digits.isdecimal() else soft
    with _ledger(args) as ledger:
        budget = ledger.set_budget(
            args.name, args.limit, args.every, timezone=args.timezone, soft_percent=soft
        )
    _print_budgets(args.output, [budget])
    return 0


def list_budgets(args: Namespace) -> int:
    """Show all budgets."""
    with _ledger(args) as ledger:
        budgets = ledger.budgets()
    _print_budgets(args.output, budgets)
    return 0


def delete_budget(args: Namespace) -> int:
    """Delete a budget. If there is none, this is an error: the name may be mistyped."""
    with _ledger(args) as ledger:
        deleted = ledger.delete_budget(args.name)
    if not deleted:
        raise ValueError(f"There is no budget {args.name!r} in the ledger.")
    row = {"deleted": args.name}
    print_output(args.output, [row], [row])
    return 0


def spend(args: Namespace) -> int:
    """Show who has spent how many credits."""
    from airflow_stability.ledger.report import BY, remainders, sums

    since = time_of(args.since, argument="--since")
    with _ledger(args) as ledger:
        found = sums(ledger.database, args.by, since)
        rest = remainders(ledger.database, since) if args.by == "wallet" else []
    data = [
        {name: value and str(value) for name, value in zip(BY[args.by], each.group, strict=True)}
        | {
            "posted": _credits(each.posted),
            "held": _credits(each.held),
            "unknown": _credits(each.unknown),
            "spends": each.spends,
        }
        for each in found
    ]
    if args.by == "wallet":
        _add_remainders(data, {each.wallet: _credits(each.microcredits) for each in rest})
    print_output(args.output, data, [_texts(row) for row in data])
    return 0


def _add_remainders(data: list[dict[str, Any]], remainders: dict[str, float]) -> None:
    """Add the remainder of each wallet; None if no balance of it was read."""
    for row in data:
        row["remainder"] = remainders.pop(row["wallet"], None)
    for wallet, credits in remainders.items():
        nothing = {"posted": 0.0, "held": 0.0, "unknown": 0.0, "spends": 0}
        data.append({"wallet": wallet, **nothing, "remainder": credits})


@contextlib.contextmanager
def _ledger(args: Namespace) -> Iterator[Ledger]:
    """Open the ledger that the arguments name."""
    from airflow_stability.compat import read_connections_as_a_command
    from airflow_stability.hooks.ledger import ledger_conn_id_of, open_ledger

    read_connections_as_a_command()
    ledger = open_ledger(args.ledger_conn_id or ledger_conn_id_of(args.conn_id))
    try:
        yield ledger
    finally:
        ledger.database.engine.dispose()


def time_of(text: str, *, argument: str) -> datetime | timedelta:
    """Return a time in UTC without a time zone, or how long before now it is.

    :param text: ``7d``, ``24h``, ``30m``, or a date or time in ISO's form; without a time zone, it is in UTC.
    :param argument: the name that the error text uses.
    :raises ValueError: it is neither.
    """
    from airflow_stability.validation import in_utc, safe_repr

    with contextlib.suppress(ValueError, OverflowError):
        if found := re.fullmatch(r"(\d{1,6})([dhm])", text):
            return timedelta(**{_UNITS[found[2]]: int(found[1])})
        return in_utc(datetime.fromisoformat(text)).replace(tzinfo=None)
    raise ValueError(
        f"{argument} must be a time before now such as 7d, 24h or 30m, or a date such as 2026-11-30 or "
        f"2026-11-30T12:00+01:00; got {safe_repr(text)}."
    )


def _finding(result: str, what: str, detail: str, advice: str = "") -> dict[str, str]:
    return {"result": result, "what": what, "detail": detail, "what to do": advice}


def _clock_finding(ahead: float) -> dict[str, str]:
    side = "behind" if ahead < 0 else "ahead of"
    detail = f"the database's clock is {abs(ahead):.1f} s {side} this machine's"
    if abs(ahead) <= CLOCK_SECONDS:
        return _finding("ok", "clock", detail)
    advice = "Correct the clock that is wrong. Budgets renew by the database's clock."
    return _finding("to do", "clock", detail, advice)


def _budget_finding(budget: Budget) -> dict[str, str]:
    what, _, detail = budget.text.partition(": ")
    if budget.left < 0:
        advice = "Its limit was lowered below what is used. Raise it, or let its tasks wait."
        return _finding("to do", what, detail, advice)
    if budget.left == 0:
        return _finding("note", what, detail, "It is used up: its tasks wait.")
    if budget.is_nearly_used_up:
        return _finding("note", what, detail, f"It has reached {budget.soft_percent} % of its limit.")
    return _finding("ok", what, detail)


def _spend_finding(spend: OpenSpend) -> dict[str, str]:
    data = _texts(_spend_data(spend))
    names = [("DAG", data["dag_id"]), ("task", data["task_id"]), ("run", data["run_id"])]
    if spend.map_index is not None and spend.map_index >= 0:
        names.append(("map index", data["map_index"]))
    who = ", ".join(f"{name} {value}" for name, value in names if value) or "no task"
    reason = f": {spend.reason}" if spend.reason else ""
    what = f"spend {spend.key}"
    if spend.state == "unknown":
        detail = f"{data['credits']} credits unknown, held {data['age']} ago, {who}{reason}"
        return _finding("to do", what, detail, _TO_SETTLE)
    detail = f"{data['credits']} credits held for {data['age']}, beyond the lease, {who}{reason}"
    becomes = "unknown" if spend.may_be_paid else "void"
    advice = f"Its worker may be gone. It becomes {becomes} when the next task spends."
    return _finding("note", what, detail, advice)


#: What a table shows of a spend that can be settled.
_SPEND_COLUMNS = ("key", "state", "credits", "age", "dag_id", "task_id", "run_id", "map_index", "reason")


def _spend_data(spend: OpenSpend) -> dict[str, Any]:
    return {
        "key": spend.key,
        "state": spend.state,
        "credits": _credits(spend.microcredits),
        "known": spend.known,
        "budget": spend.budget,
        "dag_id": spend.dag_id,
        "task_id": spend.task_id,
        "run_id": spend.run_id,
        "map_index": spend.map_index,
        "try_number": spend.try_number,
        "endpoint": spend.endpoint,
        "output": spend.output,
        "held_at": _iso(spend.held_at),
        "age": round(spend.age),
        "reason": spend.reason,
    }


def _print_budgets(output: str, budgets: list[Budget]) -> None:
    from airflow_stability.rules.budget_periods import renewal_text

    data = [_budget_data(budget) for budget in budgets]
    rows = []
    for budget, each in zip(budgets, data, strict=True):
        renews = renewal_text(budget.period.ends_at.replace(tzinfo=UTC), budget.timezone)
        soft = "" if budget.soft_percent is None else f"{budget.soft_percent}%"
        columns = _texts(each, ("name", "limit", "used", "left", "every"))
        rows.append(columns | {"renews": renews.removeprefix("renews "), "soft": soft})
    print_output(output, data, rows)


def _budget_data(budget: Budget) -> dict[str, Any]:
    ends = budget.every != "total"
    return {
        "name": budget.name,
        "limit": _credits(budget.limit),
        "used": _credits(budget.used),
        "left": _credits(budget.left),
        "every": budget.every,
        "timezone": budget.timezone,
        "soft_percent": budget.soft_percent,
        "soft_reached_at": budget.soft_reached_at and _iso(budget.soft_reached_at),
        "starts_at": _iso(budget.period.starts_at) if ends else None,
        "ends_at": _iso(budget.period.ends_at) if ends else None,
    }


def _texts(data: dict[str, Any], columns: tuple[str, ...] | None = None) -> dict[str, str]:
    """Return a row of a table."""
    return {name: _text(name, data[name]) for name in columns or data}


def _text(name: str, value: Any) -> str:
    from airflow_stability.validation import format_number

    if value is None:
        return ""
    if name == "age":
        return _age(value)
    return format_number(value) if isinstance(value, float) else str(value)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _credits(microcredits: int) -> float:
    from airflow_stability.rules.credits import from_microcredits

    return from_microcredits(microcredits)


def _iso(time: datetime) -> str:
    return f"{time.isoformat()}Z"


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "somebody"
