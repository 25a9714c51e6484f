"""The state of the simulated vendor: accounts, organizations, API keys, credits, the rate limit, the API
versions.

Plain Python behind one lock, safe to use from any thread. It knows no HTTP: what a refusal looks like on the
wire is decided in `api` and `front`. No error text in here ever contains an API key.
"""

from __future__ import annotations

import math
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

IMAGE_COST = 3.0
"""What one image of stable-image/generate/core costs, in credits."""

SWITCHABLE_VERSIONS = ("v1alpha", "v1")
REFUSALS = (401, 403, 404, 410)
REDIRECTS = (301, 302, 307, 308)


@dataclass(frozen=True)
class RateLimit:
    """How many requests one key may make, and what happens past that. The defaults are the real API's.

    :param requests: requests that a key may make in any `window`; the next one is refused with 429.
    :param window: seconds.
    :param lockout: seconds for which the key is then refused altogether. Asking meanwhile does not make it
        longer.
    :param retry_after: what the 429 says in `Retry-After`, in seconds or as the literal header; None sends
        none.
    :raises ValueError: for a limit that no request could pass, or times that are no times.
    """

    requests: int = 150
    window: float = 10.0
    lockout: float = 60.0
    retry_after: float | str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.requests, bool) or not isinstance(self.requests, int) or self.requests < 1:
            raise ValueError("RateLimit.requests must be a whole number, one or more.")
        if not (math.isfinite(self.window) and self.window > 0):
            raise ValueError("RateLimit.window must be a number of seconds above zero.")
        if not (math.isfinite(self.lockout) and self.lockout >= 0):
            raise ValueError("RateLimit.lockout must be a number of seconds, zero or more.")
        advice = str(self.retry_after)
        if isinstance(self.retry_after, bool) or not (advice.isascii() and advice.isprintable()):
            raise ValueError("RateLimit.retry_after must be a number of seconds or a literal header.")


@dataclass(frozen=True)
class SwitchedOff:
    """How an API version that was switched off answers: `status`, and where to for a redirect (None: same
    path, other version).
    """

    status: int
    location: str | None


class NotEnoughCreditsError(Exception):
    """The organization that would have paid has less than the price."""


class NotAMemberError(Exception):
    """The account is no member of that organization, or there is no such organization."""


@dataclass
class _Organization:
    id: str
    name: str
    credits: float


@dataclass
class _Account:
    id: str
    email: str
    organizations: list[str]  # the first one is the default
    role: str = "MEMBER"
    profile_picture: str | None = None


@dataclass
class _Key:
    label: str
    account: str
    revoked: bool = False
    recent: deque[float] = field(default_factory=deque)
    locked_until: float = 0.0


def _balance(value: float, what: str = "credits") -> float:
    # Below zero too: the real API shows such balances.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number.")
    return float(value)


def _payment(value: float) -> float:
    if _balance(value) < 0:
        raise ValueError("A top-up must be zero credits or more.")
    return float(value)


def _identifier(value: str, what: str) -> str:
    # A header value on the wire: organizations are asked for by it.
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
        raise ValueError(f"{what} must be printable ASCII without spaces, and not empty.")
    return value


class World:
    """The vendor's side of things. It starts with the account `user-1`, a member of two organizations:
    `org-default`, which pays, and `org-other`, which has no credits.

    :param credits: what `org-default` has at first.
    :param api_key: the key of `user-1`; None makes one up.
    :param rate_limit: applies to each key on its own.
    """

    def __init__(self, credits: float, api_key: str | None, rate_limit: RateLimit) -> None:
        self.rate_limit = rate_limit
        self._lock = threading.RLock()
        self._organizations: dict[str, _Organization] = {}
        self._accounts: dict[str, _Account] = {}
        self._keys: dict[str, _Key] = {}
        self._switched_off: dict[str, SwitchedOff] = {}
        self._images_made = 0
        self.add_organization("org-default", name="Default Organization", credits=credits)
        self.add_organization("org-other", name="Other Organization", credits=0.0)
        self.add_account("user-1", "user-1@example.com", ["org-default", "org-other"])
        self.api_key = self.add_key(api_key)

    # Accounts and organizations

    def add_organization(
        self, organization: str, *, name: str | None, credits: float, accounts: Sequence[str] = ()
    ) -> None:
        """Adds an organization, and makes the accounts named members of it."""
        with self._lock:
            _identifier(organization, "An organization id")
            if organization in self._organizations:
                raise ValueError(f"There is an organization {organization!r} already.")
            members = [self._account(account) for account in accounts]
            made = _Organization(organization, name or organization, _balance(credits))
            self._organizations[organization] = made
            for member in members:
                member.organizations.append(organization)

    def add_account(
        self,
        account_id: str,
        email: str,
        organizations: Sequence[str],
        *,
        role: str = "MEMBER",
        profile_picture: str | None = None,
    ) -> None:
        """Adds an account; the first of its organizations is its default."""
        with self._lock:
            _identifier(account_id, "An account id")
            if account_id in self._accounts:
                raise ValueError(f"There is an account {account_id!r} already.")
            if not organizations:
                raise ValueError("An account needs an organization: the first one named is its default.")
            for organization in organizations:
                self._organization(organization)
            # dict.fromkeys: an organization named twice is one membership.
            members = list(dict.fromkeys(organizations))
            self._accounts[account_id] = _Account(account_id, email, members, role, profile_picture)

    def account_of(self, key: str) -> dict[str, Any]:
        """The account behind a valid key, with exactly the documented fields."""
        with self._lock:
            account = self._accounts[self._keys[key].account]
            answer: dict[str, Any] = {
                "id": account.id,
                "email": account.email,
                "organizations": [
                    {
                        "id": organization,
                        "name": self._organizations[organization].name,
                        "role": account.role,
                        "is_default": organization == account.organizations[0],
                    }
                    for organization in account.organizations
                ],
            }
            if account.profile_picture is not None:
                answer["profile_picture"] = account.profile_picture
            return answer

    # Keys

    def add_key(self, key: str | None = None, account: str | None = None) -> str:
        """Adds a key to an account, one made up for None, and returns it."""
        with self._lock:
            owner = self._account(account).id
            if key is None:
                key = f"sk-sim-{secrets.token_hex(20)}"
            _identifier(key, "An API key")
            if key in self._keys:
                raise ValueError("That API key is in use already, or was.")
            # The label is a running number: nothing of the key can be read off it.
            self._keys[key] = _Key(f"key-{len(self._keys) + 1}", owner)
            return key

    def rotate_key(self, old: str) -> str:
        """Refuses a key from now on, and returns its account's new one."""
        with self._lock:
            new = self.add_key(account=self._valid_key(old).account)
            self._keys[old].revoked = True
            if self.api_key == old:
                self.api_key = new
            return new

    def revoke_key(self, key: str) -> None:
        """Refuses a key from now on."""
        with self._lock:
            self._valid_key(key).revoked = True

    def knows_key(self, key: str) -> bool:
        """Whether this is a key that is accepted now."""
        with self._lock:
            return key in self._keys and not self._keys[key].revoked

    def label(self, key: str) -> str:
        """A name for a key that tells nothing of it. A revoked key keeps its own: who still uses it is worth
        seeing.
        """
        with self._lock:
            return self._keys[key].label if key in self._keys else "unknown"

    def redact(self, text: str) -> str:
        """`text` without any API key, for what a client may have put one into by mistake."""
        with self._lock:
            # The longest first: one key may be the beginning of another.
            for key in sorted(self._keys, key=len, reverse=True):
                text = text.replace(key, "***")
            return text

    # Credits

    def credits(self, organization: str | None = None) -> float:
        """An organization's balance; None is the first account's default organization."""
        with self._lock:
            return self._organization(organization).credits

    def set_credits(self, credits: float, organization: str | None = None) -> None:
        """Sets an organization's balance."""
        with self._lock:
            self._organization(organization).credits = _balance(credits)

    def top_up(self, credits: float, organization: str | None = None) -> None:
        """Adds to an organization's balance."""
        with self._lock:
            paid_in = _payment(credits)
            wallet = self._organization(organization)
            wallet.credits = _balance(wallet.credits + paid_in, "The balance after a top-up")

    def balance_of(self, key: str, organization: str | None) -> float:
        """What a valid key sees of an organization, or of its account's default one.

        :raises NotAMemberError: when the key's account does not belong to `organization`.
        """
        with self._lock:
            account = self._accounts[self._keys[key].account]
            if organization is None:
                organization = account.organizations[0]
            if organization not in account.organizations:
                raise NotAMemberError
            return self._organizations[organization].credits

    def spend_on_image(self, key: str) -> None:
        """Takes the price of an image from the default organization of a valid key, all of it or nothing.

        :raises NotEnoughCreditsError: when that organization has less.
        """
        with self._lock:
            wallet = self._organizations[self._accounts[self._keys[key].account].organizations[0]]
            if wallet.credits < IMAGE_COST:
                raise NotEnoughCreditsError
            wallet.credits -= IMAGE_COST
            self._images_made += 1

    @property
    def images_made(self) -> int:
        """How many images were paid for."""
        return self._images_made

    # The rate limit

    def admit(self, key: str) -> bool:
        """Counts one request of a key, and says whether the rate limit lets it pass. Keys that are not
        accepted are not counted: it is the key that is limited, and there is none.
        """
        with self._lock:
            if not self.knows_key(key):
                return True
            state, limit, now = self._keys[key], self.rate_limit, time.monotonic()
            if now < state.locked_until:
                return False
            while state.recent and state.recent[0] <= now - limit.window:
                state.recent.popleft()
            if len(state.recent) >= limit.requests:
                state.locked_until = now + limit.lockout
                state.recent.clear()
                return False
            state.recent.append(now)
            return True

    # API versions

    def switch_off(self, version: str, status: int = 404, location: str | None = None) -> None:
        """Switches an API version off."""
        with self._lock:
            self._check_version(version)
            if status not in REFUSALS + REDIRECTS:
                raise ValueError(f"A version is switched off with one of {REFUSALS + REDIRECTS}.")
            if location is not None and status not in REDIRECTS:
                raise ValueError(f"A location belongs to a redirect: one of {REDIRECTS}.")
            if location is not None:
                _identifier(location, "A location")
            self._switched_off[version] = SwitchedOff(status, location)

    def switch_on(self, version: str) -> None:
        """Switches it on again."""
        with self._lock:
            self._check_version(version)
            self._switched_off.pop(version, None)

    def switched_off(self, version: str) -> SwitchedOff | None:
        """How a version that is off answers; None for one that is on."""
        with self._lock:
            return self._switched_off.get(version)

    def snapshot(self) -> dict[str, Any]:
        """All of it as plain JSON types, keys by their labels."""
        with self._lock:
            return {
                "accounts": [
                    {"id": account.id, "email": account.email, "organizations": list(account.organizations)}
                    for account in self._accounts.values()
                ],
                "organizations": [
                    {"id": wallet.id, "name": wallet.name, "credits": wallet.credits}
                    for wallet in self._organizations.values()
                ],
                "keys": [
                    {"label": key.label, "account": key.account, "revoked": key.revoked}
                    for key in self._keys.values()
                ],
                "switched_off": {version: off.status for version, off in self._switched_off.items()},
                "images_made": self._images_made,
            }

    # Look-ups

    def _account(self, account_id: str | None) -> _Account:
        if account_id is None:
            return next(iter(self._accounts.values()))
        if account_id not in self._accounts:
            raise KeyError("There is no such account.")
        return self._accounts[account_id]

    def _organization(self, organization: str | None) -> _Organization:
        if organization is None:
            organization = self._account(None).organizations[0]
        if organization not in self._organizations:
            raise KeyError("There is no such organization.")
        return self._organizations[organization]

    def _valid_key(self, key: str) -> _Key:
        if not self.knows_key(key):
            raise KeyError("There is no such API key, or it was revoked.")
        return self._keys[key]

    @staticmethod
    def _check_version(version: str) -> None:
        if version not in SWITCHABLE_VERSIONS:
            raise ValueError(
                f"The versions that can be switched off are {' and '.join(SWITCHABLE_VERSIONS)}."
            )
