"""The controls over HTTP: the methods of a simulator as routes under ``/_simulator``.

The routes ask for no key, since they are for whoever runs the simulator: everyone who can connect to its port
may use them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, ValidationError, create_model

from airflow_stability.simulator.faults import Fault, FaultKind
from airflow_stability.simulator.state import SimulatorState

Call = Callable[..., Any]


def _routes(simulator: SimulatorState) -> dict[str, Call]:
    """Return the call behind each route. A ``POST`` takes the call's arguments as a JSON object."""

    def set_credits(credits: float, organization: str | None = None) -> dict[str, float]:
        simulator.set_credits(credits, organization)
        return {"credits": simulator.credits(organization)}

    def top_up(credits: float, organization: str | None = None) -> dict[str, float]:
        simulator.top_up(credits, organization)
        return {"credits": simulator.credits(organization)}

    def add_key(key: str | None = None, account: str | None = None) -> dict[str, str]:
        return {"key": simulator.add_key(key, account)}

    def rotate_key(key: str) -> dict[str, str]:
        return {"key": simulator.rotate_key(key)}

    def switch(version: str, on: bool = False, status: int = 404, location: str | None = None) -> None:
        if on:
            simulator.switch_on(version)
        else:
            simulator.switch_off(version, status, location=location)

    def inject(
        kind: FaultKind,
        times: int | None = None,
        path: str | None = None,
        key: str | None = None,
        **arguments: Any,
    ) -> None:
        simulator.inject(_strict(getattr(Fault, kind))(arguments), times, path, key)

    def settings(job_seconds: float | None = None, repeat_keys: bool | None = None) -> None:
        if job_seconds is not None:
            simulator.job_seconds = job_seconds
        if repeat_keys is not None:
            simulator.repeat_keys = repeat_keys

    routes: dict[str, Call] = {
        "GET /_simulator": lambda: list(routes),
        "GET /_simulator/state": simulator.state,
        "GET /_simulator/requests": lambda: [asdict(record) for record in simulator.requests],
        "DELETE /_simulator/requests": simulator.clear_requests,
        "GET /_simulator/charges": lambda: [asdict(charge) for charge in simulator.charges],
        "POST /_simulator/credits": set_credits,
        "POST /_simulator/top-up": top_up,
        "POST /_simulator/organizations": simulator.add_organization,
        "POST /_simulator/accounts": simulator.add_account,
        "POST /_simulator/keys": add_key,
        "POST /_simulator/keys/rotate": rotate_key,
        "POST /_simulator/keys/revoke": simulator.revoke_key,
        "POST /_simulator/versions": switch,
        "POST /_simulator/settings": settings,
        "POST /_simulator/moderation": simulator.moderate,
        "DELETE /_simulator/moderation": simulator.clear_moderation,
        "POST /_simulator/faults": inject,
        "DELETE /_simulator/faults": simulator.clear_faults,
    }
    return routes


def _strict(call: Call) -> Call:
    """Return a call that takes a dict of arguments and validates it: "50" and true are not credits."""
    fields: dict[str, Any] = {}
    extra: Literal["allow", "forbid"] = "forbid"
    for name, parameter in inspect.signature(call, eval_str=True).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            extra = "allow"
        else:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[name] = (parameter.annotation, default)
    model = create_model("Arguments", __config__=ConfigDict(strict=True, extra=extra), **fields)
    return lambda arguments: call(**model.model_validate(arguments).model_dump())


def _endpoint(call: Call, *, takes_body: bool) -> Call:
    validated = _strict(call)

    async def with_body(body: dict[str, Any]) -> JSONResponse:
        result = validated(body)
        return JSONResponse({} if result is None else result)

    async def without_body() -> JSONResponse:
        return await with_body({})

    return with_body if takes_body else without_body


def create_controls(simulator: SimulatorState) -> FastAPI:
    """Return the controls as an ASGI application. Bad input gets 400 or 422 and a ``detail``."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    routes = _routes(simulator)

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ValidationError)
    async def invalid(request: Request, failure: RequestValidationError | ValidationError) -> JSONResponse:
        # In place of FastAPI's own response, which repeats the input: it may contain a key.
        first = failure.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"detail": f"{where}: {first['msg']}."}, status_code=422)

    @app.exception_handler(ValueError)
    @app.exception_handler(KeyError)
    async def refused(request: Request, failure: Exception) -> JSONResponse:
        return JSONResponse({"detail": failure.args[0]}, status_code=400)

    @app.exception_handler(404)
    async def unknown(request: Request, failure: Exception) -> JSONResponse:
        return JSONResponse({"detail": f"No such control. There are: {', '.join(routes)}."}, status_code=404)

    for route, call in routes.items():
        method, path = route.split()
        app.add_api_route(path, _endpoint(call, takes_body=method == "POST"), methods=[method])
    return app
