"""The routes of v1 that are not about users: its engines, and its calls that cost credits.

v1 differs from v2beta: text-to-image takes JSON, the ``Organization`` header says who pays, one call can make
several pictures, and JSON is the usual response. How much of a request the real v1 checks is not documented;
the simulator checks what is required.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from airflow_stability.simulator.authentication import authenticate, named_organization
from airflow_stability.simulator.endpoints import ENDPOINTS, ENGINES, MAX_SEED, Endpoint
from airflow_stability.simulator.error_bodies import ApiError, version_of
from airflow_stability.simulator.forms import digest_of, is_seed, read_form
from airflow_stability.simulator.generate import TOO_FEW_CREDITS
from airflow_stability.simulator.outputs import Output, make_output
from airflow_stability.simulator.state import SimulatorState

#: How many pictures one call may ask for.
MAX_SAMPLES = 10


@dataclass(frozen=True)
class Wish:
    """What a request asks for, whether it came as JSON or as a form."""

    prompts: list[str]
    files: dict[str, bytes]
    samples: str
    seed: str
    digest: bytes


def add_generate_v1_routes(api: FastAPI, state: SimulatorState) -> None:
    """Add the routes to the API."""
    for endpoint in ENDPOINTS:
        if version_of(endpoint.path) == "v1":
            api.add_api_route(endpoint.path, _generate(state, endpoint), methods=["POST"])

    @api.get("/v1/engines/list")
    async def engines(request: Request) -> Response:
        authenticate(request, state)
        return JSONResponse(
            [
                {"id": engine, "name": name, "description": name, "type": "PICTURE"}
                for engine, name in ENGINES.items()
            ]
        )


def _generate(state: SimulatorState, endpoint: Endpoint) -> Callable[[Request, str], Awaitable[Response]]:
    async def generate(request: Request, engine: str) -> Response:
        key = authenticate(request, state)
        paying = named_organization(request, key)
        if engine not in ENGINES:
            raise ApiError(404, "The specified engine was not found")
        wish = await (_read_form(request) if endpoint.files else _read_json(request))
        if problems := _problems(wish, endpoint):
            raise ApiError(400, *problems)
        objection = state.objection(wish.prompts)
        if objection not in (None, "blur"):
            raise ApiError(400, "One or more prompts contains filtered words.", name="invalid_prompts")
        samples = int(wish.samples)
        credits = samples * endpoint.price()
        if not state.charge(key, paying, credits, path=request.url.path, request=wish.digest.hex()):
            raise ApiError(402, TOO_FEW_CREDITS)
        pictures = [_picture(wish, number, blurred=objection == "blur") for number in range(samples)]
        if request.headers.get("accept", "").lower().startswith("image/png"):
            return _png_response(pictures[0])
        return _json_response(pictures)

    return generate


async def _read_json(request: Request) -> Wish:
    # A body that is not JSON raises a ValueError.
    try:
        body = json.loads(await request.body())
        prompts = [prompt["text"] for prompt in body.get("text_prompts", [])]
        canonical = json.dumps(body, sort_keys=True).encode()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ApiError(
            400, "text_prompts: must be a list of objects with a text, in a JSON object"
        ) from error
    return Wish(
        prompts=[prompt for prompt in prompts if isinstance(prompt, str)],
        files={},
        samples=_number(body.get("samples", 1)),
        seed=_number(body.get("seed", 0)),
        digest=digest_of(request.url.path, [("", canonical)]),
    )


def _number(value: Any) -> str:
    """Return a whole number as a form would send it; nothing else becomes a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


async def _read_form(request: Request) -> Wish:
    form = await read_form(request)
    return Wish(
        prompts=[
            text for name, text in form.texts.items() if re.fullmatch(r"text_prompts\[\d+\]\[text\]", name)
        ],
        files=form.files,
        samples=form.texts.get("samples", "1"),
        seed=form.texts.get("seed", "0"),
        digest=form.digest,
    )


def _problems(wish: Wish, endpoint: Endpoint) -> list[str]:
    problems = [f"{name}: is required" for name in endpoint.files if not wish.files.get(name)]
    if endpoint.texts and not any(prompt.strip() for prompt in wish.prompts):
        problems.append("text_prompts: is required")
    if wish.samples not in map(str, range(1, MAX_SAMPLES + 1)):
        problems.append(f"samples: must be a whole number from 1 to {MAX_SAMPLES}")
    if not is_seed(wish.seed):
        problems.append(f"seed: must be a whole number from 0 to {MAX_SEED}")
    return problems


def _picture(wish: Wish, number: int, *, blurred: bool) -> Output:
    """Return one of the pictures. The first has the seed that was asked for."""
    digest = hashlib.sha256(wish.digest + bytes([number])).digest()
    return make_output("png", digest, seed=int(wish.seed) if number == 0 else 0, blurred=blurred)


def _png_response(picture: Output) -> Response:
    headers = {"finish-reason": picture.finish_reason, "seed": str(picture.seed)}
    return Response(picture.content, headers=headers, media_type=picture.media_type)


def _json_response(pictures: list[Output]) -> Response:
    artifacts = [
        {
            "base64": base64.b64encode(picture.content).decode(),
            "finishReason": picture.finish_reason,
            "seed": picture.seed,
        }
        for picture in pictures
    ]
    return JSONResponse({"artifacts": artifacts})
