"""The routes of v2beta: calls that cost credits, and the results of those that are asynchronous.

A request is checked in this order: key, ``Accept``, size and kind of the body, fields, moderation, credits.
The vendor does not document the order; this one is assumed. So is that a blurred output is charged.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from airflow_stability.simulator.authentication import authenticate
from airflow_stability.simulator.endpoints import CREATIVE_UPSCALE, ENDPOINTS, Endpoint
from airflow_stability.simulator.error_bodies import ApiError, version_of
from airflow_stability.simulator.forms import problems_of, read_form
from airflow_stability.simulator.moderation import Objection
from airflow_stability.simulator.outputs import Output, make_output
from airflow_stability.simulator.state import SimulatorState

MODERATED = (
    "Your request was flagged by our content moderation system, as a result your request was denied and you "
    "were not charged."
)

#: The response to a request that the API objects to: status, name and message.
REFUSALS: dict[Objection, tuple[int, str, str]] = {
    "refuse": (
        403,
        "content_moderation",
        MODERATED,
    ),
    # An assumption: of this one the name is known, the wording is not.
    "public_figure": (
        422,
        "public_figure",
        "Our system detected a public figure in your request, as a result your request was denied.",
    ),
    "invalid_language": (
        422,
        "invalid_language",
        "English is the only supported language for this service.",
    ),
}

TOO_FEW_CREDITS = (
    "You lack sufficient credits to make this request. Please purchase more credits at "
    "https://platform.stability.ai/account/credits and try again."
)


def wants_json(request: Request, kind: str) -> bool:
    """Tell whether the ``Accept`` header asks for an output inside JSON, rather than as bytes.

    :param kind: what comes out, such as ``image``.
    :raises ApiError: 400 for neither. (An assumption: the vendor does not document which status it is.)
    """
    accept = request.headers.get("accept", "*/*")
    types = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    if "application/json" in types:
        return True
    if any(each == "*/*" or each.startswith(f"{kind}/") for each in types):
        return False
    raise ApiError(400, f"accept: must be {kind}/* or application/json")


def request_id() -> dict[str, str]:
    """Return the header that names a response to the vendor's support."""
    return {"x-request-id": uuid.uuid4().hex}


def output_response(output: Output, *, as_json: bool, field: str) -> Response:
    """Return what was generated, as bytes or inside JSON.

    :param field: the field of the JSON that holds it.
    """
    if as_json:
        body = {
            field: base64.b64encode(output.content).decode(),
            "finish_reason": output.finish_reason,
            "seed": output.seed,
        }
        return JSONResponse(
            body, headers=request_id(), media_type=f"application/json; type={output.media_type}"
        )
    headers = request_id() | {"finish-reason": output.finish_reason, "seed": str(output.seed)}
    return Response(output.content, headers=headers, media_type=output.media_type)


def add_generate_routes(api: FastAPI, state: SimulatorState) -> None:
    """Add the routes to the API."""
    for endpoint in ENDPOINTS:
        if version_of(endpoint.path) == "v2beta":
            api.add_api_route(endpoint.path, _generate(state, endpoint), methods=["POST"])

    @api.get("/v2beta/results/{job_id}")
    async def result(request: Request, job_id: str) -> Response:
        return _result(request, state, job_id, lambda endpoint: endpoint.kind != "audio")

    @api.get("/v2beta/audio/results/{job_id}")
    async def audio_result(request: Request, job_id: str) -> Response:
        return _result(request, state, job_id, lambda endpoint: endpoint.kind == "audio")

    @api.get("/v2beta/stable-image/upscale/creative/result/{job_id}")
    async def creative_result(request: Request, job_id: str) -> Response:
        return _result(request, state, job_id, lambda endpoint: endpoint is CREATIVE_UPSCALE)


def _generate(state: SimulatorState, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def generate(request: Request) -> Response:
        key = authenticate(request, state)
        as_json = endpoint.accepted is None and wants_json(request, endpoint.kind)
        form = await read_form(request)
        if problems := problems_of(form, endpoint):
            raise ApiError(400, *problems)
        objection = state.objection(form.prompts)
        if objection in REFUSALS:
            status, name, message = REFUSALS[objection]
            raise ApiError(status, message, name=name)
        # v2beta knows no Organization header: the default organization pays.
        paying = key.account.organizations[0]
        credits = endpoint.price(form.texts.get("model"))
        if not state.charge(key, paying, credits, path=endpoint.path, request=form.digest.hex()):
            raise ApiError(402, TOO_FEW_CREDITS)
        output = make_output(
            form.texts.get("output_format", endpoint.formats[0]),
            form.digest,
            seed=form.seed,
            blurred=objection == "blur",
        )
        if endpoint.accepted is None:
            return output_response(output, as_json=as_json, field=endpoint.kind)
        job = state.jobs.start(key.label, endpoint, output, time.monotonic())
        return JSONResponse({"id": job.id}, status_code=endpoint.accepted, headers=request_id())

    return generate


def _result(
    request: Request, state: SimulatorState, job_id: str, belongs_here: Callable[[Endpoint], bool]
) -> Response:
    key = authenticate(request, state)
    now = time.monotonic()
    job = state.jobs.find(job_id, key.label, now)
    if job is None or not belongs_here(job.endpoint):
        raise ApiError(404, "id: there is no generation with this id")
    as_json = wants_json(request, job.endpoint.kind)
    if now < job.started + state.job_seconds:
        body = {"id": job.id, "status": "in-progress"}
        return JSONResponse(body, status_code=202, headers=request_id())
    return output_response(job.output, as_json=as_json, field="result")
