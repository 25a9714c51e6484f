"""A state machine over a real database: tasks hold, call, crash and come back, and the API keeps its books.

Between any two transactions a process may die. Then what it knew is gone, and only what it had written stays.
"""

from __future__ import annotations

import dataclasses
import itertools
from datetime import datetime, timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from sqlalchemy import func, select

from airflow_stability.errors import StabilityBudgetExhaustedError
from airflow_stability.hooks.unreported_spends import write_what_was_left
from airflow_stability.ledger.budgets import COUNTING
from airflow_stability.ledger.database import Database
from airflow_stability.ledger.ledger import Call, Hold, Ledger, Reading, Spender
from airflow_stability.ledger.retention import prune
from airflow_stability.ledger.schema import budgets, metadata, spends
from airflow_stability.rules.credits import MICRO, to_microcredits

#: The budgets, with their limits and how often they renew.
LIMITS = {"images": (10, "day"), "team": (25, "week")}

CREDITS = st.sampled_from([0.1, 0.2, 1, 2.5, 3, 8])
BUDGETS = st.sampled_from([None, *LIMITS])


@dataclasses.dataclass
class Run:
    """A run of a task's function, and what its worker knows."""

    key: str
    spender: Spender
    credits: float
    itemized: bool
    alive: bool = True


@dataclasses.dataclass
class Sent:
    """A call, and what is true of it."""

    call: Call
    run: Run
    charged: bool = False
    ended: bool = False


class LedgerMachine(RuleBasedStateMachine):
    """All that may happen to a ledger. A subclass says on which database, by an engine."""

    engine = None

    runs = Bundle("runs")
    calls = Bundle("calls")

    def __init__(self):
        super().__init__()
        self.time = datetime(2026, 1, 30, 22)
        self.numbers = itertools.count()
        #: What the API has charged, in millionths, by the key of the spend.
        self.books = {}
        #: What tasks have left of calls that they could not write down, by the key of the spend.
        self.left = {}
        metadata.drop_all(self.engine)
        self.ledger = self.restarted()
        self.ledger.database.init()

    @initialize()
    def make_budgets(self):
        for name, (limit, every) in LIMITS.items():
            self.ledger.set_budget(name, limit, every, timezone="Europe/Paris")
        self.used_before = self.used()

    def restarted(self):
        """The ledger of a process that has just started."""
        return Ledger(Database(self.engine, "the test's database", clock=lambda: self.time))

    def spender(self, budget):
        return Spender(
            "stability_default", "org-1", budget, "dag", f"run-{next(self.numbers)}", "task", -1, 1
        )

    # Tasks

    @rule(target=runs, budget=BUDGETS, credits=CREDITS, itemized=st.booleans(), starts=st.booleans())
    def hold(self, budget, credits, itemized, starts):
        return self.hold_all([(budget, credits, itemized)], None, starts=starts)

    @rule(
        wanted=st.lists(st.tuples(BUDGETS, CREDITS, st.booleans()), min_size=2, max_size=5),
        balance=st.sampled_from([0, 3, 10, 100]),
    )
    def let_go(self, wanted, balance):
        spoken_for = self.sum(spends.c.state == "held")
        self.hold_all(wanted, Reading(balance, 5.0))
        now_held = self.sum(spends.c.state == "held")
        assert now_held <= max(balance * MICRO, spoken_for)

    def hold_all(self, wanted, reading, *, starts=False):
        runs = [
            Run(f"hold-{next(self.numbers)}", self.spender(budget), credits, itemized)
            for budget, credits, itemized in wanted
        ]
        holds = [Hold(run.key, run.spender, run.credits, None, run.itemized, starts) for run in runs]
        result = self.ledger.hold(holds, reading)
        assert not result.failures
        assert sorted([*result.held, *result.refused]) == sorted(run.key for run in runs)
        for run in runs:
            run.alive = run.key in result.held
        return runs[0]

    @rule(run=runs)
    def hold_again(self, run):
        before = self.row(run.key)
        if before is None:
            return
        self.ledger.hold([Hold(run.key, run.spender, run.credits, None, run.itemized)])
        if before.state != "void":
            lease = {"lease_ends_at": None}  # it begins anew if the run has not begun
            assert dict(self.row(run.key)._mapping) | lease == dict(before._mapping) | lease

    def start(self, run):
        """Begin to run, or go on."""
        if run.alive:
            run.alive = self.ledger.start(run.key, run.spender.budget, itemized=run.itemized, lease=3600)

    @rule(run=consumes(runs))
    def end_run(self, run):
        row = self.row(run.key)
        if not run.alive or row is None or row.started_at is None:
            return
        if run.itemized:
            self.ledger.end(run.key, "void", "given back")
        else:  # it has paid by means of its own
            self.books[run.key] = row.microcredits
            self.ledger.end(run.key, "posted")
        assert not self.ledger.end(run.key, self.row(run.key).state)

    @rule(run=consumes(runs))
    def kill_worker(self, run):
        run.alive = False
        self.ledger = self.restarted()

    # Calls

    @rule(run=runs)
    def begin_run(self, run):
        self.start(run)

    @rule(target=calls, run=runs, price=st.none() | CREDITS)
    def begin_call(self, run, price):
        return self.begin(run, price, None)

    @rule(target=calls, run=runs, price=CREDITS)
    def begin_durable_call(self, run, price):
        return self.begin(run, price, f"s3://bucket/{next(self.numbers)}.png")

    def begin(self, run, price, output):
        key = f"call-{next(self.numbers)}"
        call = Call(key, run.spender, "stable-image/generate/core", price, output)
        sent = Sent(call, run)
        self.start(run)
        if not run.alive:
            sent.ended = True
            return sent
        try:
            self.ledger.begin_call(call, run.key)
        except StabilityBudgetExhaustedError:
            assert self.row(key) is None
            sent.ended = True
            return sent
        self.ledger.begin_call(call, run.key)  # its first try was committed, and nobody knew
        return sent

    @rule(
        sent=calls,
        answer=st.sampled_from(["posted", "void", "unknown"]),
        dies=st.booleans(),
        leaves=st.booleans(),
    )
    def answer(self, sent, answer, dies, leaves):
        if sent.ended or not sent.run.alive:
            return
        sent.ended = True
        sent.charged = answer == "posted" or (answer == "unknown" and sent.call.key < "call-5")
        if sent.charged:
            assert sent.call.key not in self.books
            self.books[sent.call.key] = self.row(sent.call.key).microcredits
        if dies:  # after the answer, before it is written down
            sent.run.alive = False
            if leaves:  # the ledger is away
                self.left[sent.call.key] = answer, "left by its task"
            return
        self.ledger.end(sent.call.key, answer)
        assert not self.ledger.end(sent.call.key, answer)

    @rule(sent=consumes(calls), run=runs)
    def next_try(self, sent, run):
        """The next try comes to the same durable call: it finds the output, or nothing, and pays."""
        if sent.call.output is None or sent.run.alive or self.row(sent.call.key) is None:
            return
        if sent.charged:
            self.ledger.output_found(sent.call.output)
            assert self.row(sent.call.key).state == "posted"
        else:
            other = self.begin(run, sent.call.credits, sent.call.output)
            if self.row(other.call.key) is not None:
                # Its marker may have been deleted by a person: nobody knows.
                assert self.row(sent.call.key).state in ("held", "unknown", "void")
                other.charged = other.ended = True
                self.books[other.call.key] = self.row(other.call.key).microcredits
                self.ledger.end(other.call.key, "posted")

    @rule(sent=consumes(calls))
    def settle(self, sent):
        """Somebody finds out what became of a call that nobody has heard of."""
        row = self.row(sent.call.key)
        if row is not None and row.state == "unknown":
            state = "posted" if sent.charged else "void"
            assert self.ledger.settle(sent.call.key, state, "ann")
            assert not self.ledger.settle(sent.call.key, state, "ann")
            sent.ended = True

    # The rest of the world

    @rule(hours=st.sampled_from([0.1, 1, 3, 24, 24 * 7]))
    def time_passes(self, hours):
        self.time += timedelta(hours=hours)

    @rule()
    def end_leases(self):
        self.ledger.end_leases()

    @rule()
    def look_for_what_was_left(self):
        found = {}

        def left_by_task(spend):
            if spend.spend_key in self.left:
                found[spend.spend_key] = self.left[spend.spend_key]
            return found.get(spend.spend_key)

        write_what_was_left(self.ledger, left_by_task, lambda output: False)
        for key, (state, _) in found.items():
            assert self.row(key).state == state

    @rule(days=st.sampled_from([1, 3, 10]))
    def prune(self, days):
        is_open = spends.c.state.in_(("held", "unknown"))
        before = self.sum(is_open)
        prune(self.ledger.database, timedelta(days=days))
        assert self.sum(is_open) == before
        self.books = {key: credits for key, credits in self.books.items() if self.row(key) is not None}

    @rule(name=st.sampled_from(list(LIMITS)), factor=st.sampled_from([0.85, 1, 1.5]))
    def change_limit(self, name, factor):
        limit, every = LIMITS[name]
        self.ledger.set_budget(name, limit * factor, every, timezone="Europe/Paris")

    @invariant()
    def no_budget_is_exceeded(self):
        for name, (used, limit) in self.used().items():
            assert used <= max(limit, self.used_before.get(name, (0, 0))[0])
        self.used_before = self.used()

    @invariant()
    def what_is_used_is_the_sum_of_what_counts(self):
        with self.engine.connect() as connection:
            rows = connection.execute(select(budgets)).all()
        for row in rows:
            in_period = (spends.c.held_at >= row.starts_at, spends.c.held_at < row.ends_at)
            counted = self.sum(spends.c.budget == row.name, spends.c.state.in_(COUNTING), *in_period)
            assert row.used_microcredits == counted

    @invariant()
    def what_is_posted_was_charged_and_what_was_charged_counts(self):
        with self.engine.connect() as connection:
            rows = {row.spend_key: row for row in connection.execute(select(spends))}
        assert {key for key, row in rows.items() if row.state == "posted"} <= set(self.books)
        for key, microcredits in self.books.items():
            assert rows[key].state in COUNTING
            assert rows[key].microcredits == microcredits

    def teardown(self):
        self.time += timedelta(days=400)
        self.ledger.end_leases()
        assert self.sum(spends.c.state == "held") == 0
        with self.engine.connect() as connection:
            states = set(connection.execute(select(spends.c.state)).scalars())
        assert states <= {"posted", "void", "unknown"}

    # What is in the database

    def row(self, key):
        with self.engine.connect() as connection:
            return connection.execute(select(spends).where(spends.c.spend_key == key)).first()

    def sum(self, *where):
        with self.engine.connect() as connection:
            return int(
                connection.execute(select(func.sum(spends.c.microcredits)).where(*where)).scalar() or 0
            )

    def used(self):
        return {budget.name: (budget.used, budget.limit) for budget in self.ledger.budgets()}


assert all(to_microcredits(limit) for limit, _ in LIMITS.values())


def run_machine(engine, *, examples, steps):
    """Run the machine on a database."""
    case = type("LedgerMachineOnADatabase", (LedgerMachine,), {"engine": engine}).TestCase
    case.settings = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    case("runTest").runTest()
