"""The endpoints that cost credits: one table of what each takes, costs and gives. Knows no HTTP.

To add an endpoint, add a line. Prices are the vendor's of 2025-08-01; those of v1, which the vendor no longer
lists, are assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

IMAGES = ("png", "jpeg", "webp")
AUDIO = ("mp3", "wav")
MODELS = ("glb",)

ASPECT_RATIOS = ("16:9", "1:1", "21:9", "2:3", "3:2", "4:5", "5:4", "9:16", "9:21")
MAX_PROMPT = 10_000
MAX_SEED = 4_294_967_294


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that costs credits.

    :param path: the path. In v1 it names an engine.
    :param credits: the price; or the price for each value of the field ``model``, the default first.
    :param texts: fields that are required, and are text.
    :param files: fields that are required, and are files.
    :param one_of: fields of which at least one is required.
    :param kind: what comes out. It is also the first half of the media type, and the name of the JSON field.
    :param formats: what ``output_format`` may name, the default first.
    :param accepted: status of the response to an asynchronous call, which gives an id; None is synchronous.
    """

    path: str
    credits: float | Mapping[str, float]
    texts: tuple[str, ...] = ("prompt",)
    files: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    kind: Literal["image", "audio", "model"] = "image"
    formats: tuple[str, ...] = IMAGES
    accepted: int | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """What the field ``model`` may name; empty for an endpoint without that field."""
        return tuple(self.credits) if isinstance(self.credits, Mapping) else ()

    def price(self, model: str | None = None) -> float:
        """Return the price of one call, in credits.

        :param model: the field ``model``; None is the default.
        """
        if not isinstance(self.credits, Mapping):
            return self.credits
        return self.credits[model or self.models[0]]


SD3_CREDITS = {"sd3.5-large": 6.5, "sd3.5-large-turbo": 4.0, "sd3.5-medium": 3.5, "sd3.5-flash": 2.5}
AUDIO_2_CREDITS = {"stable-audio-2": 20.0, "stable-audio-2.5": 20.0}

PROMPT = ("prompt",)
IMAGE = ("image",)

GENERATE = "/v2beta/stable-image/generate"
EDIT = "/v2beta/stable-image/edit"
UPSCALE = "/v2beta/stable-image/upscale"
CONTROL = "/v2beta/stable-image/control"
AUDIO_2 = "/v2beta/audio/stable-audio-2"
AUDIO_3 = "/v2beta/audio/stable-audio-3"
V1 = "/v1/generation/{engine}"

CREATIVE_UPSCALE = Endpoint(f"{UPSCALE}/creative", 60.0, PROMPT, IMAGE, accepted=200)

ENDPOINTS = (
    Endpoint(f"{GENERATE}/core", 3.0),
    Endpoint(f"{GENERATE}/sd3", SD3_CREDITS),
    Endpoint(f"{GENERATE}/ultra", 8.0),
    Endpoint(f"{EDIT}/erase", 5.0, (), IMAGE),
    Endpoint(f"{EDIT}/inpaint", 5.0, PROMPT, IMAGE),
    Endpoint(f"{EDIT}/outpaint", 4.0, (), IMAGE, one_of=("left", "right", "up", "down")),
    Endpoint(f"{EDIT}/search-and-replace", 5.0, ("prompt", "search_prompt"), IMAGE),
    Endpoint(f"{EDIT}/search-and-recolor", 5.0, ("prompt", "select_prompt"), IMAGE),
    # The background becomes transparent, which a JPEG cannot show.
    Endpoint(f"{EDIT}/remove-background", 5.0, (), IMAGE, formats=("png", "webp")),
    Endpoint(
        f"{EDIT}/replace-background-and-relight",
        8.0,
        (),
        ("subject_image",),
        one_of=("background_prompt", "background_reference"),
        accepted=200,
    ),
    Endpoint(f"{UPSCALE}/fast", 2.0, (), IMAGE),
    Endpoint(f"{UPSCALE}/conservative", 40.0, PROMPT, IMAGE),
    CREATIVE_UPSCALE,
    Endpoint(f"{CONTROL}/sketch", 5.0, PROMPT, IMAGE),
    Endpoint(f"{CONTROL}/structure", 5.0, PROMPT, IMAGE),
    Endpoint(f"{CONTROL}/style", 5.0, PROMPT, IMAGE),
    Endpoint(f"{CONTROL}/style-transfer", 8.0, (), ("init_image", "style_image")),
    Endpoint("/v2beta/3d/stable-fast-3d", 10.0, (), IMAGE, kind="model", formats=MODELS),
    Endpoint("/v2beta/3d/stable-point-aware-3d", 4.0, (), IMAGE, kind="model", formats=MODELS),
    Endpoint(f"{AUDIO_2}/text-to-audio", AUDIO_2_CREDITS, kind="audio", formats=AUDIO),
    Endpoint(f"{AUDIO_2}/audio-to-audio", AUDIO_2_CREDITS, PROMPT, ("audio",), kind="audio", formats=AUDIO),
    Endpoint(f"{AUDIO_3}/text-to-audio", 26.0, kind="audio", formats=AUDIO, accepted=202),
    # In v1 the price is that of each picture.
    Endpoint(f"{V1}/text-to-image", 0.9, ("text_prompts",), formats=("png",)),
    Endpoint(f"{V1}/image-to-image", 0.9, ("text_prompts",), ("init_image",), formats=("png",)),
    Endpoint(f"{V1}/image-to-image/masking", 0.9, ("text_prompts",), ("init_image",), formats=("png",)),
    Endpoint(f"{V1}/image-to-image/upscale", 0.9, (), IMAGE, formats=("png",)),
)

#: The engines of v1, by id, with their names.
ENGINES = {
    "stable-diffusion-xl-1024-v1-0": "Stable Diffusion XL v1.0",
    "stable-diffusion-v1-6": "Stable Diffusion v1.6",
    "esrgan-v1-x2plus": "Real-ESRGAN x2",
}
