"""The error tree: its drawing, its three branches, and errors that travel between processes."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys

import pytest

from airflow_stability import errors
from airflow_stability.errors import (
    StabilityConfigurationError,
    StabilityError,
    StabilityOutcomeUnknownError,
    StabilityPaymentRequiredError,
    StabilityPermanentError,
    StabilityRateLimitError,
    StabilityTransientError,
)

CLASSES = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, StabilityError)
]
LEAVES = [kind for kind in CLASSES if not kind.__subclasses__()]


def test_the_drawn_tree_is_the_tree():
    drawn: dict[str, str] = {}
    parents: list[str] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"    ([│├└─ ]*)(Stability\w+)", line)
        if found:
            depth = len(found[1]) // 4
            del parents[depth:]
            drawn[found[2]] = parents[-1] if parents else "Exception"
            parents.append(found[2])
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in CLASSES}


@pytest.mark.parametrize("kind", LEAVES)
def test_every_error_is_on_exactly_one_branch_and_says_what_to_do(kind):
    branches = (StabilityTransientError, StabilityPermanentError, StabilityOutcomeUnknownError)
    assert len([branch for branch in branches if issubclass(kind, branch)]) == 1
    if kind is not StabilityConfigurationError:  # its texts are about one setting each
        assert re.fullmatch(r"[A-Z].*[.]", kind.advice)


def test_a_setting_that_cannot_work_is_a_value_error_too():
    assert issubclass(StabilityConfigurationError, ValueError)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    "passed_on", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy]
)
def test_an_error_arrives_whole_in_another_process(kind, passed_on):
    facts = {
        "status": 429,
        "error_id": "e1",
        "name": "rate_limit_exceeded",
        "message": "slow down",
        "retry_after": 61.5,
        "temporary": True,
    }
    arrived = passed_on(kind("It happened.", **facts))
    assert type(arrived) is kind
    assert str(arrived) == "It happened."
    assert vars(arrived) == facts


def test_what_is_not_known_is_none():
    assert set(vars(StabilityError("It happened.")).values()) == {None}


def test_too_little_credit_can_be_told_from_too_many_requests():
    assert not issubclass(StabilityPaymentRequiredError, StabilityTransientError)
    assert not issubclass(StabilityRateLimitError, StabilityPermanentError)


@pytest.mark.parametrize("module", ["airflow_stability.errors", "airflow_stability.validation"])
def test_a_dag_file_loads_no_http_library_with_it(module):
    code = (
        f"import sys, {module}; print({{'requests', 'pydantic', 'airflow', 'tenacity'}} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_the_client_loads_no_airflow():
    code = "import sys, airflow_stability.client; print('airflow' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
