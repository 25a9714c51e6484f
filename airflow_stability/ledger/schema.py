"""The ledger's tables, which users may also read with their own SQL. docs/ledger.md describes them.

Credits are whole numbers, in millionths, since not every database has exact decimals. Times are in UTC, by
the database's clock, without a time zone.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Index,
    Integer,
    MetaData,
    String,
    Table,
)
from sqlalchemy.dialects.mysql import DATETIME, VARCHAR
from sqlalchemy.types import TypeEngine

#: The version of the tables. A release refuses tables of a later version. ``ledger init`` upgrades earlier
#: ones.
VERSION = 1


def _text(length: int) -> TypeEngine[str]:
    """Return a type for text that is case-sensitive, in MySQL, too."""
    return String(length).with_variant(VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), "mysql")


#: Airflow's own longest ids.
_ID = _text(250)

_TIME = DateTime().with_variant(DATETIME(fsp=6), "mysql")

metadata = MetaData()

versions = Table(
    "stability_ledger",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("made_at", _TIME, nullable=False),
)

budgets = Table(
    "stability_budgets",
    metadata,
    Column("name", _text(100), primary_key=True),
    Column("limit_microcredits", BigInteger, nullable=False),
    #: ``day``, ``week``, ``month`` or ``total``.
    Column("every", _text(5), nullable=False),
    Column("timezone", _text(64), nullable=False),
    #: Percent of the limit at which the budget is reported; None for never.
    Column("soft_percent", Integer),
    #: The period that the next column belongs to.
    Column("starts_at", _TIME, nullable=False),
    Column("ends_at", _TIME, nullable=False),
    #: What is held, posted and unknown in the period.
    Column("used_microcredits", BigInteger, nullable=False),
    #: When the soft limit was reached in the period.
    Column("soft_reached_at", _TIME),
)

spends = Table(
    "stability_spends",
    metadata,
    Column("spend_key", _text(64), primary_key=True),
    #: ``held``, ``posted``, ``void`` or ``unknown``.
    Column("state", _text(7), nullable=False),
    Column("microcredits", BigInteger, nullable=False),
    #: How the credits are known: ``declared`` by the task, ``listed`` price, or ``unknown``.
    Column("known", _text(8), nullable=False),
    #: Whose credits: the organization, or the connection if the organization is not known.
    Column("wallet", _text(300), nullable=False),
    Column("conn_id", _ID, nullable=False),
    Column("organization", _text(256)),
    Column("budget", _text(100)),
    Column("dag_id", _ID),
    Column("run_id", _ID),
    Column("task_id", _ID),
    Column("map_index", Integer),
    Column("try_number", Integer),
    #: The path below ``/v2beta/``, or the whole path; None for credits that a task holds beyond its calls.
    Column("endpoint", _text(250)),
    #: Where the output of a durable call is, and a hash of this address.
    Column("output", _text(1000)),
    Column("output_hash", _text(64)),
    #: Whether every payment of the run has a spend of its own, so that nothing else can have been paid for.
    Column("itemized", Boolean, nullable=False),
    Column("held_at", _TIME, nullable=False),
    #: The day of ``held_at``, in UTC. Sums by day, DAG and budget are read from one index, in its order.
    Column("held_on", Date, nullable=False),
    #: When the function began to run, or the call was sent; None if neither happened.
    Column("started_at", _TIME),
    Column("lease_ends_at", _TIME, nullable=False),
    Column("ended_at", _TIME),
    #: Why the spend is void or unknown, or who settled it.
    Column("reason", _text(500)),
    Index("stability_spends_by_state", "state", "lease_ends_at"),
    Index(
        "stability_spends_by_wallet", "wallet", "state", "ended_at", "started_at", "itemized", "microcredits"
    ),
    Index("stability_spends_by_budget", "budget", "held_at"),
    Index("stability_spends_by_time", "held_at"),
    Index("stability_spends_by_day", "held_on", "dag_id", "budget", "state", "known", "microcredits"),
    Index("stability_spends_by_output", "output_hash"),
)
_is_durable = spends.c.output_hash.is_not(None)
Index(
    "stability_spends_by_task",
    spends.c.run_id,
    spends.c.task_id,
    # An index of durable calls only, where the database can do that: nothing else is looked up in it.
    postgresql_where=_is_durable,
    sqlite_where=_is_durable,
)

#: The last balance of each wallet. A transaction locks this row while it lets tasks go.
wallets = Table(
    "stability_wallets",
    metadata,
    Column("wallet", _text(300), primary_key=True),
    Column("microcredits", BigInteger, nullable=False),
    Column("read_at", _TIME, nullable=False),
)

#: The balances that were read, one for each change.
balances = Table(
    "stability_balances",
    metadata,
    Column("wallet", _text(300), primary_key=True),
    Column("read_at", _TIME, primary_key=True),
    Column("microcredits", BigInteger, nullable=False),
)
