"""The state of the simulated API (accounts, organizations, API keys, credits), and what a test does to it.

Knows no HTTP: the modules that have routes, and ``middleware``, decide how a refusal looks. No error text in
here contains an API key.
"""

from __future__ import annotations

import math
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from airflow_stability.simulator.books import Charge, Jobs, total
from airflow_stability.simulator.faults import Fault, Injection
from airflow_stability.simulator.moderation import Moderation, Objection
from airflow_stability.simulator.rate_limit import RateLimit, RateLimiter
from airflow_stability.simulator.request_log import MAX_REQUESTS, LoggedRequest, RequestRecord

SWITCHABLE_VERSIONS = ("v1alpha", "v1")
REFUSALS = (401, 403, 404, 410)
REDIRECTS = (301, 302, 307, 308)


@dataclass
class Organization:
    """An organization with its balance."""

    id: str
    name: str
    credits: float


@dataclass
class Account:
    """An account. The first of its organizations is its default, which pays."""

    id: str
    email: str
    organizations: list[Organization]
    role: str
    profile_picture: str | None


@dataclass
class ApiKey:
    """An API key without the key itself. The label is a running number, so it reveals nothing of the key."""

    label: str
    account: Account
    limiter: RateLimiter = field(repr=False)
    revoked: bool = False


def _check_finite(value: float, what: str = "credits") -> float:
    # Credits may be below zero: the real API shows such balances.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number.")
    return float(value)


def _check_identifier(value: str, what: str) -> str:
    # Organizations and keys are sent as header values.
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
        raise ValueError(f"{what} must be printable ASCII without spaces, and not empty.")
    return value


def _check_version(version: str) -> None:
    if version not in SWITCHABLE_VERSIONS:
        raise ValueError(f"The versions that can be switched off are {' and '.join(SWITCHABLE_VERSIONS)}.")


class SimulatorState:
    """The simulated API without its server. Every method may be called from any thread, at any time."""

    def __init__(
        self,
        *,
        credits: float,
        api_key: str | None,
        rate_limit: RateLimit,
        job_seconds: float,
        repeat_keys: bool,
    ) -> None:
        self._lock = threading.RLock()
        self._rate_limit = rate_limit
        self._organizations: dict[str, Organization] = {}
        self._accounts: dict[str, Account] = {}
        self._keys: dict[str, ApiKey] = {}
        self._switched_off: dict[str, tuple[int, str | None]] = {}
        self._injections: list[Injection] = []
        self._requests: deque[LoggedRequest] = deque(maxlen=MAX_REQUESTS)
        #: How often faults were cleared; a request that hangs watches it.
        self.times_faults_cleared = 0
        self._charges: list[Charge] = []
        self._moderation = Moderation()
        #: The asynchronous calls that were paid for.
        self.jobs = Jobs()
        self.job_seconds = job_seconds
        self.repeat_keys = repeat_keys
        self.add_organization("org-default", name="Default Organization", credits=credits)
        self.add_organization("org-other", name="Other Organization")
        self.add_account("user-1", "user-1@example.com", ["org-default", "org-other"])
        self._api_key = self.add_key(api_key)

    # Credits

    def credits(self, organization: str | None = None) -> float:
        """Return the balance of an organization, in credits.

        :param organization: its id; None is the first account's default, ``org-default``, here and below.
        :raises KeyError: there is no such organization.
        """
        with self._lock:
            return self._organization(organization).credits

    def set_credits(self, credits: float, organization: str | None = None) -> None:
        """Set the balance of an organization, in credits.

        :param credits: may be below zero, as with the real API.
        :raises ValueError: not a finite number. (To send a balance that is not valid, use ``Fault.body``.)
        :raises KeyError: there is no such organization.
        """
        with self._lock:
            self._organization(organization).credits = _check_finite(credits)

    def top_up(self, credits: float, organization: str | None = None) -> None:
        """Add credits to the balance of an organization.

        They show at once. With the real API, a top-up takes 1 to 15 minutes to show.

        :raises ValueError: less than zero, or not a finite number.
        :raises KeyError: there is no such organization.
        """
        with self._lock:
            if _check_finite(credits) < 0:
                raise ValueError("A top-up must be zero credits or more.")
            paying = self._organization(organization)
            paying.credits = _check_finite(total(paying.credits, credits), "The balance after a top-up")

    @property
    def charges(self) -> list[Charge]:
        """All payments, in their order. A request that was refused is not among them."""
        with self._lock:
            return list(self._charges)

    @property
    def images_made(self) -> int:
        """How many images, sounds and models were made and paid for."""
        return len(self._charges)

    # Accounts and organizations

    def add_organization(
        self,
        organization: str,
        *,
        name: str | None = None,
        credits: float = 0.0,
        accounts: Sequence[str] = (),
    ) -> None:
        """Add an organization.

        :param organization: its id.
        :param name: its name; None is the id.
        :param credits: its balance at first.
        :param accounts: ids of accounts that become members. Their default organization stays the same.
        :raises ValueError: an id that is in use, or a balance that is not valid.
        :raises KeyError: there is no such account.
        """
        with self._lock:
            _check_identifier(organization, "An organization id")
            if organization in self._organizations:
                raise ValueError(f"There is an organization {organization!r} already.")
            members = [self._account(account) for account in dict.fromkeys(accounts)]
            added = Organization(organization, name or organization, _check_finite(credits))
            self._organizations[organization] = added
            for member in members:
                member.organizations.append(added)

    def add_account(
        self,
        account_id: str,
        email: str,
        organizations: Sequence[str],
        *,
        role: str = "MEMBER",
        profile_picture: str | None = None,
    ) -> None:
        """Add an account. It has no key yet: see ``add_key``.

        :param account_id: its id.
        :param email: its e-mail address.
        :param organizations: ids of the organizations it belongs to; the first is its default.
        :param role: its role in each of them.
        :param profile_picture: URL of its picture; None leaves the field out of the response.
        :raises ValueError: an id that is in use, or no organization.
        :raises KeyError: there is no such organization.
        """
        with self._lock:
            _check_identifier(account_id, "An account id")
            if account_id in self._accounts:
                raise ValueError(f"There is an account {account_id!r} already.")
            if not organizations:
                raise ValueError("An account needs an organization: the first one named is its default.")
            memberships = [self._organization(organization) for organization in dict.fromkeys(organizations)]
            self._accounts[account_id] = Account(account_id, email, memberships, role, profile_picture)

    # API keys

    @property
    def api_key(self) -> str:
        """The key of the first account. When ``rotate_key`` has replaced it, this is the new one."""
        return self._api_key

    def add_key(self, key: str | None = None, account: str | None = None) -> str:
        """Add an API key to an account, and return it.

        :param key: the key; None generates one.
        :param account: the account's id; None is the first account.
        :raises ValueError: a key that is or was in use, or has characters that no header can carry.
        :raises KeyError: there is no such account.
        """
        with self._lock:
            owner = self._account(account)
            if key is None:
                key = f"sk-sim-{secrets.token_hex(20)}"
            _check_identifier(key, "An API key")
            if key in self._keys:
                raise ValueError("That API key is in use already, or was.")
            self._keys[key] = ApiKey(f"key-{len(self._keys) + 1}", owner, RateLimiter(self._rate_limit))
            return key

    def rotate_key(self, old: str) -> str:
        """Give the account of a key a new one, refuse the old one from now on, and return the new one.

        :raises KeyError: there is no such key, or it was revoked.
        """
        with self._lock:
            replaced = self._valid_key(old)
            new = self.add_key(account=replaced.account.id)
            replaced.revoked = True
            if self._api_key == old:
                self._api_key = new
            return new

    def revoke_key(self, key: str) -> None:
        """Refuse a key from now on.

        :raises KeyError: there is no such key, or it was revoked already.
        """
        with self._lock:
            self._valid_key(key).revoked = True

    # API versions

    def switch_off(self, version: str, status: int = 404, *, location: str | None = None) -> None:
        """Switch an API version off, as the vendor does after a sunset.

        :param version: ``v1alpha`` or ``v1``.
        :param status: its response from now on: 401, 403, 404, 410, or a redirect (301, 302, 307, 308).
        :param location: where a redirect leads; None is the same path under the other version.
        :raises ValueError: anything else.
        """
        _check_version(version)
        if status not in REFUSALS + REDIRECTS:
            raise ValueError(f"A version is switched off with one of {REFUSALS + REDIRECTS}.")
        if location is not None:
            if status not in REDIRECTS:
                raise ValueError(f"A location belongs to a redirect: one of {REDIRECTS}.")
            _check_identifier(location, "A location")
        with self._lock:
            self._switched_off[version] = (status, location)

    def switch_on(self, version: str) -> None:
        """Switch an API version on again.

        :raises ValueError: anything but ``v1alpha`` and ``v1``.
        """
        _check_version(version)
        with self._lock:
            self._switched_off.pop(version, None)

    # Settings

    @property
    def job_seconds(self) -> float:
        """How long an asynchronous call takes, in seconds. A new value counts for calls that have begun, too.

        :raises ValueError: to set it to less than zero, or to what is not a finite number.
        """
        return self._job_seconds

    @job_seconds.setter
    def job_seconds(self, seconds: float) -> None:
        if _check_finite(seconds, "job_seconds") < 0:
            raise ValueError("job_seconds must be zero or more.")
        self._job_seconds = float(seconds)

    def moderate(self, word: str, objection: Objection = "refuse") -> None:
        """Object to prompts that name a word, as the API's moderation does. At first it objects to nothing.

        :param word: a word or a phrase. It counts as a whole word, in upper or lower case.
        :param objection: ``refuse`` (403 ``content_moderation``), ``public_figure`` or ``invalid_language``
            (422): nothing is charged. Or ``blur``: a 200 with a grey picture, which is charged. v1 refuses
            with 400 ``invalid_prompts``.
        :raises ValueError: a word without letters or digits, or no such objection.
        """
        with self._lock:
            self._moderation.add(word, objection)

    def clear_moderation(self) -> None:
        """Object to nothing any more."""
        with self._lock:
            self._moderation.clear()

    # Faults and the request log

    def inject(
        self, fault: Fault, times: int | None = None, path: str | None = None, key: str | None = None
    ) -> None:
        """Make requests fail.

        If several faults match a request, the one injected first applies, until its times are used up: two
        calls make a sequence. Failed requests count toward the rate limit.

        :param fault: what goes wrong.
        :param times: for how many requests; None is until ``clear_faults``.
        :param path: only for this path and those below it, such as ``/v1alpha``; None is any.
        :param key: only for requests with this API key, in either form; None is any key, and none.
        :raises ValueError: times below one, or a path without a leading slash.
        :raises KeyError: there is no such key, or it was revoked.
        """
        with self._lock:
            label = None if key is None else self._valid_key(key).label
            self._injections.append(Injection(fault, times, path, label))

    def clear_faults(self) -> None:
        """Remove all faults. Requests that hang get their response."""
        with self._lock:
            self._injections.clear()
            self.times_faults_cleared += 1

    @property
    def requests(self) -> list[RequestRecord]:
        """The latest 100 000 requests to the API, in the order in which they came. No keys."""
        with self._lock:
            return [request.record for request in self._requests]

    def clear_requests(self) -> None:
        """Remove all requests from the log."""
        with self._lock:
            self._requests.clear()

    def state(self) -> dict[str, Any]:
        """Return the whole state as plain JSON types, with labels in place of keys."""
        with self._lock:
            return {
                "accounts": [
                    {
                        "id": account.id,
                        "email": account.email,
                        "organizations": [organization.id for organization in account.organizations],
                    }
                    for account in self._accounts.values()
                ],
                "organizations": [asdict(organization) for organization in self._organizations.values()],
                "keys": [
                    {"label": key.label, "account": key.account.id, "revoked": key.revoked}
                    for key in self._keys.values()
                ],
                "switched_off": {version: status for version, (status, _) in self._switched_off.items()},
                "images_made": self.images_made,
                "charges": [asdict(charge) for charge in self._charges],
                "moderation": self._moderation.words,
                "job_seconds": self.job_seconds,
                "repeat_keys": self.repeat_keys,
                "faults": [
                    {
                        "fault": injection.fault.kind,
                        "times": injection.times,
                        "path": injection.path,
                        "one_key_only": injection.key_label is not None,
                    }
                    for injection in self._injections
                ],
            }

    # What the server asks; a test does not need these

    def find_key(self, key: str) -> ApiKey | None:
        """Return a key, which may be revoked; None if there never was such a key."""
        return self._keys.get(key)

    def charge(self, key: ApiKey, paying: Organization, credits: float, *, path: str, request: str) -> bool:
        """Charge an organization, and tell whether it could pay. If it could not, nothing has changed.

        :param request: the digest of the request.
        """
        with self._lock:
            if paying.credits < credits:
                return False
            paying.credits = total(paying.credits, -credits)
            self._charges.append(Charge(time.time(), path, credits, key.label, paying.id, request))
            return True

    def objection(self, prompts: Iterable[str]) -> Objection | None:
        """Return what the API does about these prompts; None if it objects to nothing."""
        with self._lock:
            return self._moderation.objection(prompts)

    def switched_off(self, version: str) -> tuple[int, str | None] | None:
        """Return the status and location of a version that is switched off; None for one that is on."""
        return self._switched_off.get(version)

    def take_fault(self, path: str, key_label: str) -> Fault | None:
        """Return the fault for a request, and remove it if that was its last time."""
        with self._lock:
            for injection in self._injections:
                if injection.matches(path, key_label):
                    if injection.times is not None:
                        injection.times -= 1
                        if injection.times == 0:
                            self._injections.remove(injection)
                    return injection.fault
        return None

    def log_request(self, record: RequestRecord) -> LoggedRequest:
        """Add a request that has just come to the log."""
        logged = LoggedRequest(record)
        with self._lock:
            self._requests.append(logged)
        return logged

    def redact(self, text: str) -> str:
        """Return ``text`` without any API key: a client may have put one there by mistake."""
        with self._lock:
            # The longest first: one key may be the beginning of another.
            for key in sorted(self._keys, key=len, reverse=True):
                text = text.replace(key, "***")
            return text

    # Look-ups

    def _account(self, account_id: str | None) -> Account:
        if account_id is None:
            return next(iter(self._accounts.values()))
        if account_id not in self._accounts:
            raise KeyError("There is no such account.")
        return self._accounts[account_id]

    def _organization(self, organization: str | None) -> Organization:
        if organization is None:
            return self._account(None).organizations[0]
        if organization not in self._organizations:
            raise KeyError("There is no such organization.")
        return self._organizations[organization]

    def _valid_key(self, key: str) -> ApiKey:
        found = self._keys.get(key)
        if found is None or found.revoked:
            raise KeyError("There is no such API key, or it was revoked.")
        return found
