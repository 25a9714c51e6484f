"""Call the simulator with requests and with LiteLLM: ``python tests/clients/python_clients.py URL KEY``."""

from __future__ import annotations

import base64
import importlib
import io
import sys
from collections.abc import Callable
from typing import Any

import requests

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
GENERATE = ("stable-image-core", "stable-image-ultra", "sd3.5-large")
EDIT = ("inpaint", "erase", "fast", "conservative")


def main(url: str, key: str) -> int:
    litellm = importlib.import_module("litellm")  # only the environment of this script has it
    access = {"prompt": "a lighthouse", "api_key": key, "api_base": url}

    def plain(accept: str) -> str:
        response = requests.post(
            f"{url}/v2beta/stable-image/generate/core",
            headers={"Authorization": f"Bearer {key}", "Accept": accept},
            files={"none": ""},
            data={"prompt": "a lighthouse"},
            timeout=30,
        )
        response.raise_for_status()
        return response.headers["content-type"]

    def generate(model: str) -> int:
        return len(litellm.image_generation(model=f"stability/{model}", **access).data[0].b64_json)

    def edit(model: str) -> int:
        image = io.BytesIO(PNG)
        image.name = "image.png"
        return len(litellm.image_edit(model=f"stability/{model}", image=image, **access).data[0].b64_json)

    done = [_show(f"requests, {accept}", plain, accept) for accept in ("image/*", "application/json")]
    done += [_show(f"litellm {model}", generate, model) for model in GENERATE]
    done += [_show(f"litellm {model}", edit, model) for model in EDIT]
    return 0 if all(done) else 1


def _show(name: str, call: Callable[[str], Any], argument: str) -> bool:
    try:
        result, success = f"success, {call(argument)}", True
    except Exception as error:
        result, success = f"{type(error).__name__}: {error}", False
    sys.stdout.write(f"{name}: {result}\n")
    return success


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
