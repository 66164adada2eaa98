"""The certificate's two files in a bundle: what was compared, and on which images."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from regcache_engines.bundle import Bundle

from .errors import BundleError

SCHEMA = 1
CERTIFICATE = "certificate.json"
IMAGES = "certificate_images.safetensors"
IMAGES_KEY = "pixels"


def read_certificate(bundle: Bundle) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
    """Document and images `[n, H, W, 3]`.

    Raises:
        BundleError: the bundle has none, or it is damaged or of another schema.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    for name in (CERTIFICATE, IMAGES):
        if name not in bundle.manifest["files"]:
            raise BundleError(
                f"{bundle.path} has no {name}, so there is nothing to verify it by; export it again"
            )
    try:
        document = json.loads(bundle.read(CERTIFICATE))
        pixels: npt.NDArray[np.uint8] = load(bundle.read(IMAGES))[IMAGES_KEY]
    except (OSError, ValueError, KeyError, RecursionError, SafetensorError) as error:
        raise BundleError(f"the certificate of {bundle.path} is not readable: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise BundleError(
            f"{bundle.path}/{CERTIFICATE} has schema {schema}, and this version reads {SCHEMA}"
        )
    for section in ("parameters", "code_sha256", "files", "manifest"):
        if not isinstance(document.get(section, {}), dict):
            raise BundleError(f"{bundle.path}/{CERTIFICATE} has no readable '{section}'")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or not len(pixels):
        raise BundleError(f"{bundle.path}/{IMAGES} must hold uint8 images [n, H, W, 3]")
    return document, pixels
