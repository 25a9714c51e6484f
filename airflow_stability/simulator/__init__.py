"""A local Stability API for tests, demos and the tests of your own DAGs: a real HTTP server.

::

    from airflow_stability.simulator import Fault, StabilitySimulator

    with StabilitySimulator(credits=2.0) as simulator:
        os.environ["AIRFLOW_CONN_STABILITY_DEFAULT"] = simulator.connection_uri()
        simulator.inject(Fault.status(503, retry_after=5), times=2)
        simulator.top_up(10.0)

On the command line: ``python -m airflow_stability.simulator``.

Knows no Airflow and nothing of the client that it tests, so that it cannot repeat their mistakes. Each of its
modules imports only from those above it:

- ``rate_limit``: the rate limit of a key
- ``faults``: what goes wrong, and which request gets it
- ``request_log``: the requests, without keys
- ``endpoints``: the table of the endpoints that cost credits
- ``outputs``: the images, sounds and 3D models that are generated
- ``moderation``: the words that a test has made the API object to
- ``books``: what was charged, and the jobs that were paid for
- ``state``: accounts, organizations, keys and credits, and what a test does to them
- ``error_bodies``: the errors of each API version
- ``authentication``: the API key of a request, and the organization that it names
- ``forms``: the forms that clients send, and what is wrong with them
- ``generate``: the routes of v2beta, which cost credits, and their results
- ``generate_v1``: the routes of v1 that cost credits
- ``api``: the Stability API, with the routes about users
- ``controls``: the methods of ``state`` over HTTP
- ``middleware``: what every API request passes first: the request log, the rate limit, faults
- ``server``: StabilitySimulator, all of it on a socket
"""

from __future__ import annotations

try:
    import fastapi  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"The simulator needs {error.name}: install airflow-provider-stability[simulator]."
    ) from error

from airflow_stability.simulator.books import Charge
from airflow_stability.simulator.faults import Fault
from airflow_stability.simulator.rate_limit import RateLimit
from airflow_stability.simulator.request_log import RequestRecord
from airflow_stability.simulator.server import StabilitySimulator

__all__ = ["Charge", "Fault", "RateLimit", "RequestRecord", "StabilitySimulator"]
