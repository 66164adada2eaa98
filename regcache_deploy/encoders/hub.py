"""Weights that a library downloads: can they be had, and if not, which file goes where."""

from __future__ import annotations

import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from ..errors import ModelError

WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""What open_clip looks for in a hub repository, the preferred one first."""

TIMM_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def require_hub_files(what: str, repository: str, files: Sequence[str], instead: str) -> None:
    """Say at once that a download cannot work, instead of after a minute of retries.

    Args:
        what: the weights, for the message.
        repository: `ORG/NAME` on the hub.
        files: any one of them is enough.
        instead: how a file placed by hand is passed, e.g. `--pretrained PATH`.

    Raises:
        ModelError: none of the files is in the hub's cache, and the hub's name does not resolve.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(repository, name), str) for name in files):
        return
    host = urllib.parse.urlparse(constants.ENDPOINT).hostname or ""
    offline = bool(constants.HF_HUB_OFFLINE)
    # behind a proxy, names need not resolve here
    if not offline and (urllib.request.getproxies() or _resolves(host)):
        return
    why = "HF_HUB_OFFLINE is set" if offline else f"no network ({host} does not resolve)"
    raise ModelError(
        f"{what} are not in the cache {_cache()}, and there is {why}: on a machine with network "
        f"download {files[0]} of the Hugging Face repository {repository}, copy it here, and pass "
        f"{instead}"
    )


def explain_failure(what: str, error: Exception, instead: str) -> ModelError:
    """A typed error for whatever a library raised while it fetched or read weights."""
    text = first_line(error)
    kind = f"{type(error).__module__}.{type(error).__name__}"
    damaged = ("safetensors", "pickle", "zipfile", "EOFError", "PytorchStreamReader", "CRC")
    told = re.sub(r"\S*(/|\.safetensors|\.bin)\S*", "", str(error))  # names of files say nothing
    if any(word in kind or word in told for word in damaged):
        return ModelError(
            f"{what} are damaged, perhaps half downloaded ({text}); delete the file from "
            f"{_cache()} and try again, or pass {instead}"
        )
    return ModelError(f"{what} could not be had ({text}); place the file and pass {instead}")


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(os.environ.get("HF_HUB_CACHE", constants.HF_HUB_CACHE))
