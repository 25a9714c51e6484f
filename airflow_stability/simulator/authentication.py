"""Who asks: the API key of a request, and the organization that it names."""

from __future__ import annotations

from fastapi import Request

from airflow_stability.simulator.error_bodies import ApiError, version_of
from airflow_stability.simulator.request_log import Authorization
from airflow_stability.simulator.state import ApiKey, Organization, SimulatorState

#: The form in which each API version takes a key.
KEY_FORMS = {"v1alpha": "raw", "v1": "bearer", "v2beta": "bearer"}


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
    version = version_of(request.url.path)
    form, key = read_authorization(request.headers.get("authorization"))
    found = state.find_key(key)
    if found is not None and not found.revoked and form == KEY_FORMS[version]:
        return found
    if version == "v2beta":
        raise ApiError(401, "authorization: invalid or missing header value")
    if form == "none":
        raise ApiError(401, "missing authorization header")
    if version == "v1" and state.repeat_keys:
        raise ApiError(401, f"Incorrect API key provided: {key}")
    raise ApiError(401, "Incorrect API key provided")


def named_organization(request: Request, key: ApiKey) -> Organization:
    """Return the organization that the ``Organization`` header names; without it, the account's default.

    :raises ApiError: 400 for an empty header, 403 for an organization that is not the account's.
    """
    organizations = key.account.organizations
    wanted = request.headers.get("organization", organizations[0].id)
    if wanted == "":
        raise ApiError(400, "The Organization header must not be empty.")
    for organization in organizations:
        if organization.id == wanted:
            return organization
    # An assumption: the vendor documents no response for an organization that is not the account's. One
    # that does not exist gets the same response, so that nobody can find out which ones exist.
    raise ApiError(403, "The account is not a member of that organization.")
