"""The zero-shot head of a bundle: a safetensors file with one matrix, labels and a scale."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .documents import strict_json
from .errors import BundleError, ConfigError

TENSOR, METADATA = "text_features", "__metadata__"
MAX_HEADER = 16 << 20
MAX_SCALE, NORM_TOLERANCE = 1e4, 0.01
"""CLIP's scale is 100. One row longer than the others would win by its length."""

AGAIN = "export it again, or copy the whole folder again"

Head = tuple[npt.NDArray[np.float32], tuple[str, ...], float]
"""Features `[classes, E]`, labels (one per class, or none), and the factor on similarities."""


def read_head(data: bytes, path: Path) -> Head:
    """Read a head: one matrix and its metadata; the C++ library refuses the same (`head.cpp`).

    Args:
        data: the file.
        path: where it lies, for messages.

    Raises:
        BundleError: no safetensors file, another tensor, type or shape than a head has, values
            that are not finite, or labels that do not belong to them.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors, header = load(data), _header(data)
        if header.keys() != {TENSOR, METADATA}:
            raise ValueError(f"it holds other tensors than '{TENSOR}', or no metadata")
        features, described = tensors[TENSOR], header[METADATA]
        labels, scale = strict_json(described["labels"]), strict_json(described["logit_scale"])
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise BundleError(f"{path} is not readable ({error}); {AGAIN}") from error
    problem = _problem(features, labels, scale)
    if problem:
        raise BundleError(f"{path} has {problem}; {AGAIN}")
    return features, tuple(labels), float(scale)


def maker_of(data: bytes) -> str | None:
    """Hash of the weights of the text tower that made a head, where its file says so.

    Args:
        data: a file that `read_head` has read.
    """
    found: str | None = _header(data)[METADATA].get("weights_sha256")
    return found


def head_bytes(
    features: npt.NDArray[Any], labels: Sequence[str], logit_scale: float, **more: str
) -> bytes:
    """A head's file; equal heads give equal bytes.

    Args:
        features: `[classes, E]`, L2-normalized.
        labels: one per class, or none.
        logit_scale: factor on the similarities.
        more: further metadata, by name.

    Raises:
        ConfigError: labels that no head can hold.
    """
    from safetensors.numpy import save

    for label in labels:
        if "\0" in label:
            raise ConfigError(f"class name {label!r} has a zero byte; take it out")

    described = {
        "labels": json.dumps(list(labels)),
        "logit_scale": repr(float(logit_scale)),
        **more,
    }
    tensor = np.ascontiguousarray(features, dtype=np.float32)
    return _sorted_header(save({TENSOR: tensor}, metadata=described))


def _sorted_header(data: bytes) -> bytes:
    """The same safetensors file with its header in sorted order.

    The library keeps metadata in a hash map and writes it in another order in every process;
    identical input shall give identical files. Format: 8 bytes of header length, little endian,
    the header as JSON padded with spaces to a multiple of 8 bytes, then the tensors.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER:
        raise ConfigError(
            f"the class names take {len(header)} bytes, and a head holds {MAX_HEADER} of them; "
            "take fewer or shorter ones"
        )
    return len(header).to_bytes(8, "little") + header + data[end:]


def _header(data: bytes) -> Any:
    """Of a file that safetensors reads."""
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER:
        raise ValueError("its header is too large")
    if data[8:9] != b"{":  # which not every release of safetensors asks for
        raise ValueError("its header is no JSON object")
    return strict_json(data[8 : 8 + size].decode())


def _problem(features: npt.NDArray[Any], labels: Any, scale: Any) -> str | None:
    if features.dtype != np.float32 or features.ndim != 2 or not features.size:
        return f"features of type {features.dtype} and shape {list(features.shape)}"
    if not np.isfinite(features).all():
        return "NaN or infinite values"
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        return "labels that are no list of texts"
    if any("\0" in label for label in labels):  # where a label ends in C
        return "a label with a zero byte"
    if labels and len(labels) != len(features):
        return f"features of shape {list(features.shape)} for {len(labels)} labels"
    if type(scale) not in (int, float) or not 0 < scale <= MAX_SCALE:
        return f"a logit_scale that is no number above 0 and up to {MAX_SCALE:g}"
    lengths = np.linalg.norm(features.astype(np.float64), axis=1)
    if np.abs(lengths - 1).max() > NORM_TOLERANCE:
        worst = float(lengths[np.abs(lengths - 1).argmax()])
        return f"a class whose embedding has the length {worst:.4g}, where all must have 1"
    return None
