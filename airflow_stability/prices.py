"""What calls cost, in credits: a help, not a promise.

The API names no price in any response. These are the prices that the vendor published at :data:`SOURCE`, as
of :data:`DATE`. They may have changed since. This module knows neither Airflow nor HTTP.
"""

from __future__ import annotations

DATE = "2025-08-01"
SOURCE = "https://platform.stability.ai/pricing"

#: The model that the API takes if a request names none.
DEFAULT_MODELS = {"stable-image/generate/sd3": "sd3.5-large"}

#: Credits for one call by endpoint, the path below ``/v2beta/``, and model. The model is None where one price
#: holds for the endpoint.
PRICES: dict[tuple[str, str | None], float] = {
    ("stable-image/generate/core", None): 3.0,
    ("stable-image/generate/ultra", None): 8.0,
    ("stable-image/generate/sd3", "sd3.5-large"): 6.5,
    ("stable-image/generate/sd3", "sd3.5-large-turbo"): 4.0,
    ("stable-image/generate/sd3", "sd3.5-medium"): 3.5,
    ("stable-image/generate/sd3", "sd3.5-flash"): 2.5,
    ("stable-image/edit/erase", None): 5.0,
    ("stable-image/edit/inpaint", None): 5.0,
    ("stable-image/edit/outpaint", None): 4.0,
    ("stable-image/edit/search-and-replace", None): 5.0,
    ("stable-image/edit/search-and-recolor", None): 5.0,
    ("stable-image/edit/remove-background", None): 5.0,
    ("stable-image/edit/replace-background-and-relight", None): 8.0,
    ("stable-image/upscale/fast", None): 2.0,
    ("stable-image/upscale/conservative", None): 40.0,
    ("stable-image/upscale/creative", None): 60.0,
    ("stable-image/control/sketch", None): 5.0,
    ("stable-image/control/structure", None): 5.0,
    ("stable-image/control/style", None): 5.0,
    ("stable-image/control/style-transfer", None): 8.0,
    ("3d/stable-fast-3d", None): 10.0,
    ("3d/stable-point-aware-3d", None): 4.0,
    ("audio/stable-audio-2/text-to-audio", None): 20.0,
    ("audio/stable-audio-2/audio-to-audio", None): 20.0,
    ("audio/stable-audio-2/inpaint", None): 20.0,
    ("audio/stable-audio-3/text-to-audio", None): 26.0,
}


def price(endpoint: str, model: str | None = None) -> float:
    """Return what one call costs, in credits, as of :data:`DATE`.

    :param endpoint: the path below ``/v2beta/``, such as ``stable-image/generate/core``. Asking for a result
        (``results/...`` and ``audio/results/...``) costs 0.
    :param model: the model, for an endpoint whose price depends on it. None is the API's default model.
    :raises ValueError: for an endpoint or a model that the table does not have.
    """
    if endpoint.startswith(("results/", "audio/results/")):
        return 0.0
    models = [of for path, of in PRICES if path == endpoint]
    if not models:
        raise _unknown("endpoint", endpoint, [path for path, _ in PRICES])
    if model is None:
        model = DEFAULT_MODELS.get(endpoint)
    if (endpoint, model) not in PRICES:
        raise _unknown(f"model of {endpoint}", model, [of for of in models if of])
    return PRICES[endpoint, model]


def price_if_known(endpoint: str, model: str | None, own: dict[str, float]) -> float | None:
    """Return what one call costs, in credits; None for an endpoint or a model without a known price.

    :param own: the user's own prices, by ``ENDPOINT MODEL`` or ``ENDPOINT``. They come first.
    """
    for name in (f"{endpoint} {model}", endpoint):
        if name in own:
            return own[name]
    try:
        return price(endpoint, model)
    except ValueError:
        return None


def _unknown(what: str, name: str | None, known: list[str]) -> ValueError:
    from difflib import get_close_matches

    close = list(dict.fromkeys(get_close_matches(str(name), known)))
    matches = f"close matches are {', '.join(close)}" if close else "nothing in the table is close to it"
    return ValueError(
        f"No price is known for the {what} {name!r}: {matches}. Correct it, or give a number of your own."
    )
