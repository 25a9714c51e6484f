"""The Stability API's routes. They decide what is asked and answered; the state behind them is the `World`.

The rate limit, faults and versions that are switched off are no concern of theirs: see `front`.
"""

import base64
from typing import Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from airflow_stability.simulator.error_bodies import error, picture, version_of
from airflow_stability.simulator.state import NotAMemberError, NotEnoughCreditsError, World

EXPECTED_FORM = {"v1alpha": "raw", "v1": "bearer", "v2beta": "bearer"}


class ApiError(Exception):
    """Ends a request with an error in the shape of the version that was asked."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def read_authorization(header: str | None) -> tuple[Literal["raw", "bearer", "none"], str]:
    """The form in which a key was sent, and the key."""
    if not header:
        return "none", ""
    scheme, _, token = header.partition(" ")
    # Whatever the scheme's letters, as HTTP has it.
    if scheme.lower() == "bearer":
        return "bearer", token.strip()
    return "raw", header


def authenticated(request: Request, world: World) -> str:
    """The key of a request that may go on.

    :raises ApiError: 401 for no key, an unknown one, or one in the other version's form.
    """
    form, key = read_authorization(request.headers.get("authorization"))
    if form == "none":
        raise ApiError(401, "The Authorization header is missing.")
    if form != EXPECTED_FORM[version_of(request.url.path)] or not world.knows_key(key):
        raise ApiError(401, "The API key is not valid.")
    return key


def wants_json(accept: str) -> bool:
    """Whether the picture is asked for inside JSON, rather than as it is.

    :raises ApiError: 400 for neither. (An assumption: which of the client errors it is, is not documented.)
    """
    types = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    if "application/json" in types:
        return True
    if any(kind == "*/*" or kind.startswith("image/") for kind in types):
        return False
    raise ApiError(400, "Accept must be image/* or application/json.")


def create_api(world: World) -> FastAPI:
    """The Stability API over a world, as an ASGI application."""
    api = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    @api.exception_handler(ApiError)
    async def refuse(request: Request, refusal: ApiError) -> Response:
        return error(request.url.path, refusal.status, refusal.message)

    @api.exception_handler(HTTPException)
    async def refuse_by_framework(request: Request, refusal: HTTPException) -> Response:
        messages = {404: "There is no such endpoint.", 405: "This endpoint does not take that method."}
        message = messages.get(refusal.status_code, "The request could not be read.")
        return error(request.url.path, refusal.status_code, message, headers=refusal.headers)

    @api.get("/v1alpha/user/account")
    @api.get("/v1/user/account")
    async def account(request: Request) -> Response:
        return JSONResponse(world.account_of(authenticated(request, world)))

    @api.get("/v1alpha/user/balance")
    @api.get("/v1/user/balance")
    async def balance(request: Request) -> Response:
        key = authenticated(request, world)
        organization = request.headers.get("organization")
        if organization == "":
            raise ApiError(400, "The Organization header must not be empty.")
        try:
            return JSONResponse({"credits": world.balance_of(key, organization)})
        except NotAMemberError:
            # An assumption: the vendor documents no answer for an organization that is not the account's. One
            # that does not exist gets the same, so that nobody can find out which ones do.
            raise ApiError(403, "The account is not a member of that organization.") from None

    @api.post("/v2beta/stable-image/generate/core")
    async def generate(request: Request) -> Response:
        key = authenticated(request, world)
        as_json = wants_json(request.headers.get("accept", "*/*"))
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise ApiError(400, "The request must be multipart/form-data.")
        async with request.form() as form:
            prompt = form.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise ApiError(400, "prompt is required.")
        try:
            world.spend_on_image(key)
        except NotEnoughCreditsError:
            raise ApiError(402, "The organization has too few credits for this request.") from None
        png, seed = picture(prompt)
        if as_json:
            return JSONResponse(
                {"image": base64.b64encode(png).decode(), "finish_reason": "SUCCESS", "seed": seed}
            )
        return Response(png, media_type="image/png")

    return api
