"""Which version of the user API to call, and the one error for the refusals of both versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from airflow_stability import errors
from airflow_stability.client.options import API_VERSIONS

# base URL -> the API version to call first there, for all clients of the process.
first_versions: dict[str, str] = {}

_Result = TypeVar("_Result")
_Error = TypeVar("_Error", bound=errors.StabilityError)


def call_versions(call: Callable[[str], _Result], base_url: str, api_version: str) -> tuple[str, _Result]:
    """Make a call with the API version that is set, or with both in turn until one does not refuse.

    :param call: makes the call with a version.
    :param api_version: ``auto`` for both.
    :returns: the version that answered, and what the call returned.
    :raises StabilityTransientError: the call failed, but a later one may succeed.
    :raises StabilityPermanentError: each version that was called refuses.
    """
    versions: tuple[str, ...] = (api_version,)
    if api_version == "auto":
        first = first_versions.get(base_url, API_VERSIONS[0])
        versions = (first, *(version for version in API_VERSIONS if version != first))
    refusals: list[errors.StabilityPermanentError] = []
    for version in versions:
        try:
            result = call(version)
        except errors.StabilityConfigurationError:
            raise  # nothing was sent, and no version has refused
        except errors.StabilityPermanentError as refusal:
            refusals.append(refusal)
        except errors.StabilityTransientError as failure:
            if not refusals:
                raise
            # Call this version first next time, unless one has answered here before: then the refusal of the
            # other may be about the key.
            first_versions.setdefault(base_url, version)
            what = "One API version refused, the other may answer later."
            raise _combined(what, failure, [*refusals, failure]) from None
        else:
            if api_version == "auto":
                first_versions[base_url] = version
            return version, result
    raise refusals[0] if len(refusals) == 1 else _combined_refusals(refusals)


def _combined_refusals(refusals: list[errors.StabilityPermanentError]) -> errors.StabilityPermanentError:
    """Return one error for the refusals of both versions.

    "Not found" and a redirect only tell that a version is not served there: the other refusal decides, since
    it is about the key. Of two of the same kind, the refusal of the version that was called last decides.
    """
    refusals.sort(
        key=lambda refusal: isinstance(refusal, errors.StabilityNotFoundError | errors.StabilityRedirectError)
    )
    same_kind = all(type(refusal) is type(refusals[0]) for refusal in refusals)
    return _combined("Both API versions refused.", refusals[-1 if same_kind else 0], refusals)


def _combined(what: str, decisive: _Error, failures: Sequence[errors.StabilityError]) -> _Error:
    """Return an error with the kind and the facts of the decisive one, and the texts of all of them."""
    facts = [str(failure).removesuffix(failure.advice).rstrip() for failure in failures]
    return type(decisive)(
        f"{what} {' '.join(facts)} {decisive.advice}",
        status=decisive.status,
        error_id=decisive.error_id,
        name=decisive.name,
        message=decisive.message,
        retry_after=decisive.retry_after,
        temporary=decisive.temporary,
    )
