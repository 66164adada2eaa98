"""A canonical encoder in one safetensors file, with its structure, preprocessing and caution.

For encoders that no library can build, because their weights were edited after loading.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regcache_engines.documents import parse_json
from regcache_engines.files import atomic_write_bytes
from regcache_engines.preprocess_config import output_size, preprocess_problem
from regcache_export.spec import EncoderSpec

from ..errors import BundleError, ModelError
from .canonical import Encoder
from .checkpoint import explain

SCHEMA = "regcache-encoder/1"


@dataclass(frozen=True)
class EncoderFile:
    """What such a file holds.

    Attributes:
        encoder: float32.
        preprocess: open_clip's preprocess_cfg.
        caution: what every figure of this encoder must be read with.
        facts: how it was made, and what was measured then; plain JSON values.
    """

    encoder: Encoder
    preprocess: dict[str, Any]
    caution: str
    facts: dict[str, Any] = field(default_factory=dict)


def write_encoder(path: Path, content: EncoderFile) -> None:
    """Write the file in one step; identical content gives identical bytes."""
    from safetensors.torch import save

    head = {
        "spec": content.encoder.spec.to_json(),
        "preprocess": content.preprocess,
        "caution": content.caution,
        "facts": content.facts,
    }
    weights = {name: value.contiguous() for name, value in content.encoder.weights.items()}
    # one entry: safetensors writes several in an order that changes from run to run
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, save(weights, {SCHEMA: json.dumps(head, sort_keys=True)}))


def read_encoder(path: Path) -> EncoderFile:
    """Inverse of `write_encoder`.

    Raises:
        ModelError: no such file, not of this kind, or its weights do not fit its structure.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelError(f"no checkpoint file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(SCHEMA)
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {explain(error)}") from error
    if text is None:
        raise ModelError(f"{path} is no encoder of schema {SCHEMA}")
    try:
        head = parse_json(text)
        spec = EncoderSpec.from_json(head["spec"])
        preprocess, caution, facts = head["preprocess"], str(head["caution"]), head["facts"]
        problem = preprocess_problem(preprocess)
    except (ValueError, KeyError, TypeError, AttributeError, BundleError) as error:
        raise ModelError(f"{path} has a damaged description: {explain(error)}") from error
    if problem is None and output_size(preprocess) != spec.image_size:
        problem = f"gives {output_size(preprocess)} pixels, and the encoder takes {spec.image_size}"
    if problem is not None:
        raise ModelError(f"{path} has a damaged description: its preprocessing {problem}")
    if extra := sorted(weights.keys() - spec.weight_shapes().keys()):
        raise ModelError(f"{path} holds weights that its description does not have: {extra[0]}")
    try:
        return EncoderFile(Encoder(spec, weights), preprocess, caution, facts)
    except ModelError as error:
        raise ModelError(f"{path} does not fit its description: {error}") from error
