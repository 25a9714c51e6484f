"""Everything that can be done to a simulator: as methods in Python, and the same methods over HTTP under
`/_simulator`.

The routes ask for no key, since they are there for the one who runs the simulator: whoever reaches its port
may use them.
"""

import inspect
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict

from airflow_stability.simulator.faults import Fault, FaultQueue
from airflow_stability.simulator.request_log import Journal, RequestRecord
from airflow_stability.simulator.state import RateLimit, World

FaultKind = Literal["status", "body", "html", "text", "empty", "reset", "hang", "slow", "drip", "truncated"]


class Controls:
    """What a simulator lets one do to it. Every method may be called from any thread, at any time."""

    def __init__(self, *, credits: float, api_key: str | None, rate_limit: RateLimit) -> None:
        self._world = World(credits, api_key, rate_limit)
        self._faults = FaultQueue()
        self._journal = Journal()

    @property
    def api_key(self) -> str:
        """The key of the account that is there at first. After `rotate_key` of it, the new one."""
        return self._world.api_key

    def credits(self, organization: str | None = None) -> float:
        """The balance of an organization, in credits.

        :param organization: its id; None is the first account's default, `org-default`, here and below.
        :raises KeyError: when there is no such organization.
        """
        return self._world.credits(organization)

    def set_credits(self, credits: float, organization: str | None = None) -> None:
        """Sets the balance of an organization, in credits.

        :param credits: may be below zero, as it happens with the real API.
        :raises ValueError: for what is no finite number. (What the API must never send is a fault:
            `Fault.body`.)
        :raises KeyError: when there is no such organization.
        """
        self._world.set_credits(credits, organization)

    def top_up(self, credits: float, organization: str | None = None) -> None:
        """Adds credits to an organization's balance, at once: the real API takes 1 to 15 minutes to show
        them.

        :raises ValueError: for less than zero, or what is no finite number.
        :raises KeyError: when there is no such organization.
        """
        self._world.top_up(credits, organization)

    def add_organization(
        self,
        organization: str,
        *,
        name: str | None = None,
        credits: float = 0.0,
        accounts: Sequence[str] = (),
    ) -> None:
        """Adds an organization.

        :param organization: its id.
        :param name: its name; None is the id.
        :param credits: its balance at first.
        :param accounts: ids of accounts that become members of it. Their default stays what it was.
        :raises ValueError: for an id in use or a balance that is none.
        :raises KeyError: when there is no such account.
        """
        self._world.add_organization(organization, name=name, credits=credits, accounts=accounts)

    def add_account(
        self,
        account_id: str,
        email: str,
        organizations: Sequence[str],
        *,
        role: str = "MEMBER",
        profile_picture: str | None = None,
    ) -> None:
        """Adds an account. It has no key yet: see `add_key`.

        :param account_id: its id.
        :param email: its e-mail address.
        :param organizations: ids of the organizations it belongs to; the first is its default.
        :param role: its role in each of them.
        :param profile_picture: the URL of its picture; None leaves the field out of the answer.
        :raises ValueError: for an id in use, or no organization.
        :raises KeyError: when there is no such organization.
        """
        self._world.add_account(account_id, email, organizations, role=role, profile_picture=profile_picture)

    def add_key(self, key: str | None = None, account: str | None = None) -> str:
        """Adds an API key to an account, and returns it.

        :param key: the key; None makes one up.
        :param account: the account's id; None is the first account.
        :raises ValueError: for a key that is or was in use, or has characters that no header can carry.
        :raises KeyError: when there is no such account.
        """
        return self._world.add_key(key, account)

    def rotate_key(self, old: str) -> str:
        """Gives the account of a key a new one, and refuses the old one from then on. Returns the new one.

        :raises KeyError: when there is no such key.
        """
        return self._world.rotate_key(old)

    def revoke_key(self, key: str) -> None:
        """Refuses a key from now on.

        :raises KeyError: when there is no such key.
        """
        self._world.revoke_key(key)

    def switch_off(self, version: str, status: int = 404, *, location: str | None = None) -> None:
        """Switches an API version off, as the vendor does after a sunset.

        :param version: `v1alpha` or `v1`.
        :param status: how it answers from then on: 401, 403, 404, 410, or a redirect (301, 302, 307, 308).
        :param location: where a redirect leads; None is the same path under the other version.
        :raises ValueError: for anything else.
        """
        self._world.switch_off(version, status, location)

    def switch_on(self, version: str) -> None:
        """Switches an API version on again.

        :raises ValueError: for anything but `v1alpha` and `v1`.
        """
        self._world.switch_on(version)

    def inject(
        self, fault: Fault, times: int | None = None, path: str | None = None, key: str | None = None
    ) -> None:
        """Makes requests go wrong. Of several faults that fit a request, the one injected first has its turn,
        until its times are used up: two calls make a sequence. Requests that go wrong count toward the rate
        limit.

        :param fault: what goes wrong.
        :param times: for how many requests; None: until `clear_faults`.
        :param path: only for this path and those below it, such as `/v1alpha`; None: any.
        :param key: only for requests with this API key, in either form; None: any, and none.
        :raises ValueError: for times below one, or a path without a leading slash.
        :raises KeyError: when there is no such key.
        """
        if key is not None and not self._world.knows_key(key):
            raise KeyError("There is no such API key, or it was revoked.")
        self._faults.inject(fault, times, path, key)

    def clear_faults(self) -> None:
        """Takes all faults back. Requests that hang are answered."""
        self._faults.clear()

    @property
    def requests(self) -> list[RequestRecord]:
        """What was asked of the API, in the order in which it came, at most the last 100 000 requests. No
        keys.
        """
        return self._journal.records()

    def clear_requests(self) -> None:
        """Forgets what was asked so far."""
        self._journal.clear()

    @property
    def images_made(self) -> int:
        """How many images were made and paid for."""
        return self._world.images_made

    def state(self) -> dict[str, Any]:
        """All there is, as plain JSON types; keys by their labels."""
        return {**self._world.snapshot(), "faults": self._faults.snapshot()}


class _Body(BaseModel):
    # Strict: "50" and true are no credits.
    model_config = ConfigDict(extra="forbid", strict=True)


class _Credits(_Body):
    credits: float
    organization: str | None = None


class _NewOrganization(_Body):
    organization: str
    name: str | None = None
    credits: float = 0.0
    accounts: list[str] = []


class _NewAccount(_Body):
    account_id: str
    email: str
    organizations: list[str]
    role: str = "MEMBER"
    profile_picture: str | None = None


class _NewKey(_Body):
    key: str | None = None
    account: str | None = None


class _Key(_Body):
    key: str


class _Version(_Body):
    version: str
    on: bool = False
    status: int = 404
    location: str | None = None


class _NewFault(BaseModel):
    # Whatever else comes is an argument of the Fault's class method of that name, which checks it.
    model_config = ConfigDict(extra="allow", strict=True)

    kind: FaultKind
    times: int | None = None
    path: str | None = None
    key: str | None = None

    def fault(self) -> Fault:
        make = getattr(Fault, self.kind)
        try:
            fault: Fault = make(**(self.model_extra or {}))
        except TypeError:
            wanted = ", ".join(inspect.signature(make).parameters) or "nothing"
            raise ValueError(
                f"A fault of kind {self.kind} takes {wanted}; every fault takes times, path and key."
            ) from None
        return fault


def create_controls(controls: Controls) -> FastAPI:
    """The controls over HTTP, an ASGI application. Bad input gets 400 or 422 and one sentence in `detail`."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    @app.exception_handler(RequestValidationError)
    async def unreadable(request: Request, refusal: RequestValidationError) -> JSONResponse:
        # FastAPI's own answer repeats the input, which may hold a key.
        first = refusal.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return JSONResponse({"detail": f"{where}: {first['msg']}."}, status_code=422)

    @app.exception_handler(ValueError)
    @app.exception_handler(KeyError)
    async def refused(request: Request, refusal: Exception) -> JSONResponse:
        return JSONResponse({"detail": refusal.args[0]}, status_code=400)

    def known() -> list[str]:
        return [f"{min(route.methods)} {route.path}" for route in app.routes if isinstance(route, APIRoute)]

    @app.exception_handler(404)
    async def unknown(request: Request, missing: Exception) -> JSONResponse:
        return JSONResponse({"detail": f"No such control. There are: {', '.join(known())}."}, status_code=404)

    @app.get("/_simulator")
    async def all_controls() -> list[str]:
        return known()

    @app.get("/_simulator/state")
    async def state() -> dict[str, Any]:
        return controls.state()

    @app.get("/_simulator/requests")
    async def requests() -> list[dict[str, Any]]:
        return [asdict(record) for record in controls.requests]

    @app.delete("/_simulator/requests")
    async def clear_requests() -> dict[str, Any]:
        controls.clear_requests()
        return {}

    @app.post("/_simulator/credits")
    async def set_credits(body: _Credits) -> dict[str, Any]:
        controls.set_credits(body.credits, body.organization)
        return {"credits": controls.credits(body.organization)}

    @app.post("/_simulator/top-up")
    async def top_up(body: _Credits) -> dict[str, Any]:
        controls.top_up(body.credits, body.organization)
        return {"credits": controls.credits(body.organization)}

    @app.post("/_simulator/organizations")
    async def add_organization(body: _NewOrganization) -> dict[str, Any]:
        controls.add_organization(**body.model_dump())
        return {}

    @app.post("/_simulator/accounts")
    async def add_account(body: _NewAccount) -> dict[str, Any]:
        controls.add_account(**body.model_dump())
        return {}

    @app.post("/_simulator/keys")
    async def add_key(body: _NewKey) -> dict[str, Any]:
        return {"key": controls.add_key(body.key, body.account)}

    @app.post("/_simulator/keys/rotate")
    async def rotate_key(body: _Key) -> dict[str, Any]:
        return {"key": controls.rotate_key(body.key)}

    @app.post("/_simulator/keys/revoke")
    async def revoke_key(body: _Key) -> dict[str, Any]:
        controls.revoke_key(body.key)
        return {}

    @app.post("/_simulator/versions")
    async def switch(body: _Version) -> dict[str, Any]:
        if body.on:
            controls.switch_on(body.version)
        else:
            controls.switch_off(body.version, body.status, location=body.location)
        return {}

    @app.post("/_simulator/faults")
    async def inject(body: _NewFault) -> dict[str, Any]:
        controls.inject(body.fault(), times=body.times, path=body.path, key=body.key)
        return {}

    @app.delete("/_simulator/faults")
    async def clear_faults() -> dict[str, Any]:
        controls.clear_faults()
        return {}

    return app
