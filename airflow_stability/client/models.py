"""The responses of the user API, as the vendor's OpenAPI documents of March 2023 describe them.

Strict: a value of another type than documented makes the response malformed, and is never converted. Unknown
fields are ignored, so that additions to the API break nothing.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _as_double(value: object) -> object:
    """Convert a whole number to a float: pydantic before 2.12 refuses whole numbers beyond 64 bits."""
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    return value


class _UserModel(BaseModel):
    # hide_input_in_errors: validation errors may be logged, and e-mail addresses must not be.
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", hide_input_in_errors=True)


class OrganizationMembership(_UserModel):
    """An organization that the account belongs to.

    :param id: such as ``org-123456``: the value for the ``Organization`` header.
    :param name: the organization's name.
    :param role: the account's role in it, any string, such as ``MEMBER``.
    :param is_default: whether calls that name no organization are charged to this one.
    """

    id: str
    name: str
    role: str
    is_default: bool


class Account(_UserModel):
    """The account that an API key belongs to (``GET /user/account``).

    :param id: such as ``user-1234``.
    :param email: personal data: do not log it.
    :param organizations: the account's organizations.
    :param profile_picture: URL of a picture; None if there is none.
    """

    id: str
    email: str
    organizations: tuple[OrganizationMembership, ...]
    profile_picture: str | None = None

    @property
    def default_organization(self) -> OrganizationMembership | None:
        """The organization that pays if a call names none; None if the account has no default."""
        return next((membership for membership in self.organizations if membership.is_default), None)


class Balance(_UserModel):
    """The credit balance of an organization (``GET /user/balance``).

    :param credits: a double, exactly as sent; it can be zero or negative. One credit costs 0.01 USD.
    """

    credits: Annotated[float, BeforeValidator(_as_double), Field(allow_inf_nan=False)]
