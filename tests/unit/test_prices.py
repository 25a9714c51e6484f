"""The table of prices, and how it is asked."""

from __future__ import annotations

import subprocess
import sys

import pytest

from airflow_stability.prices import PRICES, price
from airflow_stability.simulator.endpoints import ENDPOINTS


@pytest.mark.parametrize(
    ("endpoint", "credits"),
    [
        ("stable-image/generate/core", 3),
        ("stable-image/generate/ultra", 8),
        ("stable-image/edit/erase", 5),
        ("stable-image/edit/outpaint", 4),
        ("stable-image/edit/replace-background-and-relight", 8),
        ("stable-image/upscale/fast", 2),
        ("stable-image/upscale/conservative", 40),
        ("stable-image/upscale/creative", 60),
        ("stable-image/control/style", 5),
        ("stable-image/control/style-transfer", 8),
        ("3d/stable-fast-3d", 10),
        ("3d/stable-point-aware-3d", 4),
        ("audio/stable-audio-2/text-to-audio", 20),
    ],
)
def test_an_endpoint_has_its_price(endpoint, credits):
    assert price(endpoint) == credits


@pytest.mark.parametrize(
    ("model", "credits"),
    [
        (None, 6.5),
        ("sd3.5-large", 6.5),
        ("sd3.5-large-turbo", 4),
        ("sd3.5-medium", 3.5),
        ("sd3.5-flash", 2.5),
    ],
)
def test_the_price_of_sd3_is_that_of_the_model_and_large_is_the_default(model, credits):
    assert price("stable-image/generate/sd3", model) == credits


@pytest.mark.parametrize("endpoint", ["results/abc", "audio/results/abc"])
def test_asking_for_a_result_costs_nothing(endpoint):
    assert price(endpoint) == 0


def test_every_endpoint_has_a_price_without_a_model():
    assert all(price(endpoint) > 0 for endpoint, _ in PRICES)


@pytest.mark.parametrize(
    ("endpoint", "model", "match"),
    [
        ("stable-image/generate/cor", None, "stable-image/generate/core"),
        ("/v2beta/stable-image/generate/core", None, "stable-image/generate/core"),
        ("stable-image/generate/sd3", "sd3.5-larg", "sd3.5-large, "),
        ("stable-image/generate/core", "sd3.5-large", "nothing in the table is close"),
        ("weather", None, "nothing in the table is close"),
    ],
)
def test_an_unknown_name_is_refused_with_close_matches_and_the_way_out(endpoint, model, match):
    with pytest.raises(ValueError, match="No price is known") as refused:
        price(endpoint, model)

    assert match in str(refused.value)
    assert "give a number of your own" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_module_loads_no_other():
    script = (
        "import sys, airflow_stability\n"
        "before = set(sys.modules)\n"
        "import airflow_stability.prices\n"
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)

    assert set(done.stdout.split()) - {"__future__"} == {"airflow_stability.prices"}


def test_the_simulator_charges_these_prices():
    # It has a table of its own, so that it cannot repeat a mistake of this one.
    for endpoint in ENDPOINTS:
        if endpoint.path.startswith("/v2beta/"):
            path = endpoint.path.removeprefix("/v2beta/")
            for model in endpoint.models if path.endswith("/sd3") else (None,):
                assert price(path, model) == endpoint.price(model)
