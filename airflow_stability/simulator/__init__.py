"""A Stability API to run at home: a real HTTP server for tests, demos and the tests of users' own DAGs.

    from airflow_stability.simulator import Fault, StabilitySimulator

    with StabilitySimulator(credits=2.0) as simulator:
        os.environ["AIRFLOW_CONN_STABILITY_DEFAULT"] = simulator.connection_uri()
        simulator.inject(Fault.status(503, retry_after=5), times=2)
        simulator.top_up(10.0)

Or on the command line: ``python -m airflow_stability.simulator``.

It knows nothing of Airflow and nothing of the client that it is used to test, so that neither's mistakes can
repeat themselves here. How the modules stand on each other:

    world    accounts, organizations, keys, credits, the rate limit (no HTTP)
    faults   what can go wrong, and whose turn it is (no HTTP)
    journal  what was asked, without keys (no HTTP)
    answers  the error bodies of each API version; the picture that is sold
    api      the Stability API's routes
    front    what every API request meets first: the journal, the rate limit, faults
    controls everything that can be done to a simulator, from Python and over HTTP
    server   StabilitySimulator: all of it, on a socket
"""

from __future__ import annotations

try:
    import fastapi  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"The simulator needs {error.name}: install airflow-provider-stability[simulator]."
    ) from error

from airflow_stability.simulator.faults import Fault
from airflow_stability.simulator.request_log import RequestRecord
from airflow_stability.simulator.server import StabilitySimulator
from airflow_stability.simulator.state import RateLimit

__all__ = ["Fault", "RateLimit", "RequestRecord", "StabilitySimulator"]
