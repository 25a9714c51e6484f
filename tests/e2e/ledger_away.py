"""A ledger in a real Airflow that is away from when a task has begun to pay until it has ended."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from airflow_stability.ledger.schema import spends
from airflow_stability.simulator import StabilitySimulator
from tests.e2e.ledgers import LedgerOfTasks
from tests.real_airflow import XCOM, RealAirflow

DAG_FILE = Path(__file__).parent / "dags" / "ledger_away.py"
#: The DAG whose ledger goes away, which is also the name of its connection and its organization; and the DAG
#: that spends when the ledger is back.
AWAY, LATER = "ledger_away", "ledger_is_back"
#: The environment variable that names the ledger's folder.
LEDGER = "LEDGER_AWAY_FOLDER"
#: Credits that an image costs.
COST = 3.0


class LedgerAway:
    """The story of this ledger.

    :param folder: for the ledger.
    """

    def __init__(self, simulator: StabilitySimulator, folder: Path) -> None:
        self.simulator = simulator
        self.folder = folder / "ledger-of-one"
        self.folder.mkdir()
        self.ledger = LedgerOfTasks(f"sqlite:///{self.folder / 'ledger.db'}")

    def environment(self) -> dict[str, str]:
        """Return the environment variables that the tasks need."""
        return {LEDGER: str(self.folder)}

    def begin(self, airflow: RealAirflow) -> None:
        """Let the first task spend. It waits for its ledger for a minute."""
        self.simulator.add_organization(AWAY, credits=2 * COST)
        self.simulator.add_account(AWAY, "someone@example.org", [AWAY])
        address = self.simulator.connection_uri(self.simulator.add_key(account=AWAY))
        airflow.connect(
            {
                AWAY: f"{address}?api_version=v1&ledger_conn_id=ledger_that_goes_away",
                "ledger_that_goes_away": self.ledger.connection,
            }
        )
        airflow.unpause(AWAY)

    def finish(self, airflow: RealAirflow) -> None:
        """Check what the first task has left, and what becomes of it when another one spends.

        :raises AssertionError: it is not what must be.
        """
        airflow.wait_for("the task has ended", lambda: airflow.states(AWAY).get(("paint", 0)) == "success")
        Path(f"{self.folder}-is-away").rename(self.folder)
        (call,) = self.ledger.rows(dag_id=AWAY, endpoint="stable-image/generate/core")
        assert (call.state, call.map_index) == ("held", 0)
        assert f"the spend {call.spend_key} is posted. A later task" in airflow.task_log(AWAY, "paint")
        left = f"SELECT value FROM {XCOM} WHERE key = :key AND map_index = 0"
        assert len(airflow.query(left, key=f"stability_spend_{call.spend_key}")) == 1
        self._let_time_pass()
        airflow.unpause(LATER)
        airflow.wait_for("a later task", lambda: airflow.states(LATER).get(("paint", -1)) == "success")
        assert [row.state for row in self.ledger.rows(spend_key=call.spend_key)] == ["posted"]
        assert self.ledger.credits("posted") == 2 * COST
        assert self.simulator.credits(AWAY) == 0.0

    def _let_time_pass(self) -> None:
        """Make the call overdue."""
        age = timedelta(minutes=6)
        for row in self.ledger.rows(state="held"):
            values = {"started_at": row.started_at - age, "lease_ends_at": row.lease_ends_at - age}
            change = spends.update().where(spends.c.spend_key == row.spend_key).values(values)
            self.ledger.ledger.database.run(
                lambda connection, _now, change=change: connection.execute(change)
            )
