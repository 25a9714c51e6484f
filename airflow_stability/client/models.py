"""What the user API answers with, as the vendor's OpenAPI documents of March 2023 describe it.

Strict: a value of another type than documented is a malformed answer, never converted. Unknown fields
are ignored, so that an addition to the API breaks nothing.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _as_double(value: object) -> object:
    """Read a whole number as a double: pydantic before 2.12 refuses those beyond 64 bits."""
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    return value


class _Answer(BaseModel):
    # hide_input_in_errors: a validation error may end up in a log, and an e-mail address must not.
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", hide_input_in_errors=True)


class OrganizationMembership(_Answer):
    """One organization that the account belongs to.

    :param id: such as ``org-123456``: what the ``Organization`` header takes.
    :param name: the organization's name.
    :param role: the account's role in it, a free string such as ``MEMBER``.
    :param is_default: whether calls that name no organization count for this one.
    """

    id: str
    name: str
    role: str
    is_default: bool


class Account(_Answer):
    """The account that an API key belongs to (``GET /user/account``).

    :param id: such as ``user-1234``.
    :param email: personal data: do not log it.
    :param organizations: the account's organizations.
    :param profile_picture: URL of a picture, where there is one.
    """

    id: str
    email: str
    organizations: tuple[OrganizationMembership, ...]
    profile_picture: str | None = None

    @property
    def default_organization(self) -> OrganizationMembership | None:
        """The organization that pays where none is named; None if the account has no default."""
        return next((membership for membership in self.organizations if membership.is_default), None)


class Balance(_Answer):
    """The credit balance of one organization (``GET /user/balance``).

    :param credits: a double, exactly as sent; fractions, zero and negative values occur. One credit
        costs 0.01 USD.
    """

    credits: Annotated[float, BeforeValidator(_as_double), Field(allow_inf_nan=False)]
