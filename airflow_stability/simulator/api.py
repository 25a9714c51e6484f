"""The routes of the Stability API: which requests they accept, and their responses.

The rate limit, faults and versions that are switched off are handled before them, in the module
``middleware``.
"""

from __future__ import annotations

import base64

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from airflow_stability.simulator.error_bodies import error, version_of
from airflow_stability.simulator.images import make_image
from airflow_stability.simulator.request_log import Authorization
from airflow_stability.simulator.state import Account, ApiKey, SimulatorState

#: Price of an image of ``stable-image/generate/core``, in credits.
GENERATE_CORE_CREDITS = 3.0

#: The form in which each API version takes a key.
KEY_FORMS = {"v1alpha": "raw", "v1": "bearer", "v2beta": "bearer"}


class ApiError(HTTPException):
    """Ends a request with an error in the format of the API version that was called."""


def read_authorization(header: str | None) -> tuple[Authorization, str]:
    """Return the form in which a key was sent, and the key."""
    if not header:
        return "none", ""
    scheme, _, token = header.partition(" ")
    # HTTP ignores the case of the scheme.
    if scheme.lower() == "bearer":
        return "bearer", token.strip()
    return "raw", header


def authenticate(request: Request, state: SimulatorState) -> ApiKey:
    """Return the key of a request.

    :raises ApiError: 401 for no key, one that is unknown or revoked, or one in another version's form.
    """
    form, key = read_authorization(request.headers.get("authorization"))
    if form == "none":
        raise ApiError(401, "The Authorization header is missing.")
    found = state.find_key(key)
    if form != KEY_FORMS[version_of(request.url.path)] or found is None or found.revoked:
        raise ApiError(401, "The API key is not valid.")
    return found


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


def wants_json(request: Request) -> bool:
    """Tell whether the ``Accept`` header asks for an image inside JSON, rather than as bytes.

    :raises ApiError: 400 for neither. (An assumption: the vendor does not document which status it is.)
    """
    accept = request.headers.get("accept", "*/*")
    types = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    if "application/json" in types:
        return True
    if any(kind == "*/*" or kind.startswith("image/") for kind in types):
        return False
    raise ApiError(400, "Accept must be image/* or application/json.")


async def read_prompt(request: Request) -> str:
    """Return the prompt of a form.

    :raises ApiError: 400 for a body that is not a multipart form, and for a form without a prompt.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(400, "The request must be multipart/form-data.")
    async with request.form() as form:
        prompt = form.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ApiError(400, "prompt is required.")
    return prompt


def create_api(state: SimulatorState) -> FastAPI:
    """Return the Stability API over a state, as an ASGI application."""
    api = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    @api.exception_handler(ApiError)
    async def api_error(request: Request, failure: ApiError) -> Response:
        return error(request.url.path, failure.status_code, failure.detail)

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
        organizations = authenticate(request, state).account.organizations
        wanted = request.headers.get("organization", organizations[0].id)
        if wanted == "":
            raise ApiError(400, "The Organization header must not be empty.")
        for organization in organizations:
            if organization.id == wanted:
                return JSONResponse({"credits": organization.credits})
        # An assumption: the vendor documents no response for an organization that is not the account's. One
        # that does not exist gets the same response, so that nobody can find out which ones exist.
        raise ApiError(403, "The account is not a member of that organization.")

    @api.post("/v2beta/stable-image/generate/core")
    async def generate_core(request: Request) -> Response:
        key = authenticate(request, state)
        as_json = wants_json(request)
        prompt = await read_prompt(request)
        if not state.charge(key.account, GENERATE_CORE_CREDITS):
            raise ApiError(402, "The organization has too few credits for this request.")
        png, seed = make_image(prompt)
        if as_json:
            image = base64.b64encode(png).decode()
            return JSONResponse({"image": image, "finish_reason": "SUCCESS", "seed": seed})
        return Response(png, media_type="image/png")

    return api
