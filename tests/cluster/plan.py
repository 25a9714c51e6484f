"""What waits and spends in the cluster, and when it may go on: for the test and for its DAGs."""

from __future__ import annotations

from dataclasses import dataclass

#: One after another, in an order of the seed. After each comes a top-up: what it lets go has to end while
#: the cluster mends itself.
DISTURBANCES = ("worker", "triggerer", "scheduler", "api-server", "outage", "rotation", "database")
#: One for each of them: how many there are.
ROUNDS = len(DISTURBANCES)

#: How many gates wait in each mode, and how often each looks, in seconds. What is rescheduled takes a worker
#: at each look.
GATES = {"deferrable": 44, "poke": 8, "reschedule": 8}
INTERVALS = {"deferrable": 5.0, "poke": 5.0, "reschedule": 20.0}
#: How many tasks spend, by how they wait.
SPENDING = {"deferrable": 15, "reschedule": 5}
SPENDING_INTERVAL = 10.0
#: The budgets of the tasks that spend, in turn. Somebody else has used up each of them. After the first
#: top-up, it is raised by as much as its tasks need.
BUDGETS = ("books", "games", "maps")
#: Seconds for which a triggerer counts the credits of a task as spent.
RESERVATION_SECONDS = 15.0

#: Airflow's own retries.
RETRIES, RETRY_DELAY = 5, 2.0
TIMEOUT = 3600.0
#: The folder for images: one of its own for each run of the test.
IMAGES = "CLUSTER_IMAGES"


@dataclass(frozen=True)
class Gate:
    """One gate, on the connection `gates_MODE`."""

    mode: str
    number: int

    @property
    def task_id(self) -> str:
        return f"{self.mode}_{self.number:02}"

    @property
    def round(self) -> int:
        """The one whose top-up opens it."""
        return self.number % ROUNDS

    @property
    def minimum(self) -> int:
        """It opens on more credits than this."""
        return 10 * (self.round + 1)

    @property
    def ends_in_the_triggerer(self) -> bool:
        return self.mode == "deferrable" and self.number % 3 > 0

    @property
    def starts_in_the_triggerer(self) -> bool:
        return self.mode == "deferrable" and self.number % 3 == 2


ALL_GATES = [Gate(mode, number) for mode, count in GATES.items() for number in range(count)]


def balance(number: int) -> float:
    """Return the credits after the top-up of a round, just enough for its gates; of -1, those at first."""
    return 10 * (number + 1) + 5.5


def tasks_of(budget: str) -> int:
    """Return how many tasks spend from a budget."""
    numbers = [number for count in SPENDING.values() for number in range(count)]
    return sum(BUDGETS[number % len(BUDGETS)] == budget for number in numbers)


def images(mode: str, number: int) -> int:
    """Return how many images the top-up of a round pays for."""
    return len(range(number, SPENDING[mode], ROUNDS))
