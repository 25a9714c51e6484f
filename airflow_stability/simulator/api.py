"""The Stability API as one application: the routes about users, and those of the modules that generate.

The rate limit, faults and versions that are switched off are handled before them, in the module
``middleware``.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from airflow_stability.simulator.authentication import authenticate, named_organization
from airflow_stability.simulator.error_bodies import ApiError, error
from airflow_stability.simulator.generate import add_generate_routes
from airflow_stability.simulator.generate_v1 import add_generate_v1_routes
from airflow_stability.simulator.state import Account, SimulatorState


def account_body(account: Account) -> dict[str, object]:
    """Return an account as JSON, with exactly the documented fields."""
    default = account.organizations[0]
    body: dict[str, object] = {
        "id": account.id,
        "email": account.email,
        "organizations": [
            {
                "id": organization.id,
                "name": organization.name,
                "role": account.role,
                "is_default": organization is default,
            }
            for organization in account.organizations
        ],
    }
    if account.profile_picture is not None:
        body["profile_picture"] = account.profile_picture
    return body


def create_api(state: SimulatorState) -> FastAPI:
    """Return the Stability API over a state, as an ASGI application."""
    api = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    @api.exception_handler(ApiError)
    async def api_error(request: Request, failure: ApiError) -> Response:
        return error(request.url.path, failure.status_code, *failure.messages, name=failure.name)

    @api.exception_handler(HTTPException)
    async def framework_error(request: Request, failure: HTTPException) -> Response:
        messages = {404: "There is no such endpoint.", 405: "This endpoint does not take that method."}
        message = messages.get(failure.status_code, "The request could not be read.")
        return error(request.url.path, failure.status_code, message, headers=failure.headers)

    @api.get("/v1alpha/user/account")
    @api.get("/v1/user/account")
    async def account(request: Request) -> Response:
        return JSONResponse(account_body(authenticate(request, state).account))

    @api.get("/v1alpha/user/balance")
    @api.get("/v1/user/balance")
    async def balance(request: Request) -> Response:
        organization = named_organization(request, authenticate(request, state))
        return JSONResponse({"credits": organization.credits})

    add_generate_routes(api, state)
    add_generate_v1_routes(api, state)
    return api
