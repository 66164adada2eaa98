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
    from huggingface_hub import try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(repository, name), str) for name in files):
        return
    why = unreachable()
    if why is None:
        return
    raise ModelError(
        f"{what} are not in the cache {cache_folder()}, and {why}: on a machine with "
        f"network download {files[0]} of the Hugging Face repository {repository}, copy it here, "
        f"and pass {instead}"
    )


def unreachable() -> str | None:
    """Why nothing can be downloaded, or None where it may be tried."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    host = urllib.parse.urlparse(constants.ENDPOINT).hostname or ""
    # behind a proxy, names need not resolve here
    if urllib.request.getproxies() or _resolves(host):
        return None
    return f"there is no network ({host} does not resolve)"


def explain_failure(what: str, error: Exception, instead: str) -> ModelError:
    """A typed error for whatever a library raised while it fetched or read weights."""
    text = first_line(error)
    kind = f"{type(error).__module__}.{type(error).__name__}"
    damaged = ("safetensors", "pickle", "zipfile", "EOFError", "PytorchStreamReader", "CRC")
    told = re.sub(r"\S*(/|\.safetensors|\.bin)\S*", "", str(error))  # names of files say nothing
    if any(word in kind or word in told for word in damaged):
        return ModelError(
            f"{what} are damaged, perhaps half downloaded ({text}); delete the file from "
            f"{cache_folder()} and try again, or pass {instead}"
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


def cache_folder() -> Path:
    """Where the hub's client keeps what it downloaded."""
    from huggingface_hub import constants

    return Path(os.environ.get("HF_HUB_CACHE", constants.HF_HUB_CACHE))
