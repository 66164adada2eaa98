"""The text tower of a bundle: the smallest form that keeps the original's embeddings."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from regcache_engines.onnxruntime_session import open_session
from regcache_engines.text_config import INPUT, LONGEST, OUTPUT, TEXT_FILES, TextConfig
from regcache_export.graph import serialize
from regcache_export.text import build_text_model
from regcache_export.text_weights import in_half, in_int8

from ..encoders.text_side import TextSide
from ..errors import ConfigError, ModelError, UnsupportedEncoderError, VerificationError
from ..work.progress import Reporter

COSINE = 0.999
"""What the least similar of the checked texts must keep for a smaller form to be taken."""

FLOAT_ERROR = 1e-4
"""Largest difference of the float graph's L2-normalized embeddings to the original tower's."""

NAMES = ("dog", "red bicycle", "sea", "old church", "cup of coffee", "aeroplane", "tree", "face")
"""For the prompts of a model whose data has no class names."""

CHECKED = 32

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TextPart:
    """What a bundle gets.

    Attributes:
        files: by name in the bundle; empty where the text tower is left out.
        manifest: the entry `text`.
    """

    files: dict[str, bytes]
    manifest: dict[str, Any]


def text_part(side: TextSide, names: Sequence[str], dim: int, reporter: Reporter) -> TextPart:
    """Write the text tower: as INT8 or with float16 weights, the smaller one that keeps `COSINE`.

    A tower or a tokenizer that has no place in a bundle is left out, with a warning and the reason
    in the manifest.

    Args:
        side: of the model.
        names: class names, for the prompts on which it is checked.
        dim: length of the image side's embedding.

    Raises:
        VerificationError: the float graph is not the original tower, or the tokenizer not the
            original one.
    """
    try:
        # its parts are read when they are asked for
        side.encoder, side.tokenizer  # noqa: B018
        if side.encoder.spec.output_dim != dim:
            raise UnsupportedEncoderError(
                f"a text embedding of {side.encoder.spec.output_dim} numbers beside an image's of "
                f"{dim}"
            )
    except (ModelError, ConfigError) as error:  # UnsupportedEncoderError is a ModelError
        log.warning("the bundle gets no text tower: %s", error)
        return TextPart({}, {"left_out": str(error)})
    with reporter.stage("text tower"):
        return _written(side, _texts(side.templates, names))


def _texts(templates: Sequence[str], names: Sequence[str]) -> list[str]:
    """Every template once, each with another name, at least `CHECKED` texts."""
    count = max(CHECKED, len(templates))
    pairs = zip(cycle(templates or ("{}",)), cycle(names or NAMES), range(count), strict=False)
    # not str.format: other braces are the user's own text
    return [template.replace("{}", name) for template, name, _ in pairs]


def _written(side: TextSide, texts: Sequence[str]) -> TextPart:
    encoder, tokenizer = side.encoder, side.tokenizer
    rows = _same_tokens(side, texts)
    reference = side.features(texts).numpy()
    whole = build_text_model(encoder.spec, {k: v.numpy() for k, v in encoder.weights.items()})
    found = _embed(whole, rows, side, one_by_one=False)
    error = float(np.abs(_unit(found) - _unit(reference)).max())
    if not error <= FLOAT_ERROR:
        raise VerificationError(
            f"the text tower's graph differs from the original tower by {error:.1e} of unit length"
        )
    precision, model, cosine = _smallest(whole, rows, side, reference)
    config = TextConfig(
        embedding=encoder.spec.output_dim,
        context_length=encoder.spec.context_length,
        padding=side.padding,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        pooling=encoder.spec.pooling,
        lower_case=tokenizer.lower_case,
        html_unescape=tokenizer.html_unescape,
        precision=precision,
        cosine=cosine,
        logit_scale=side.logit_scale,
        logit_bias=side.logit_bias,
        weights_sha256=encoder.sha256(),
        templates=side.templates,
    )
    described = json.dumps(config.to_json(), indent=1, sort_keys=True, ensure_ascii=False)
    contents = serialize(model), tokenizer.to_json().encode(), (described + "\n").encode()
    entry = {
        "precision": precision,
        "cosine": cosine,
        "context_length": config.context_length,
        "weights_sha256": config.weights_sha256,
    }
    return TextPart(dict(zip(TEXT_FILES, contents, strict=True)), entry)


def _same_tokens(side: TextSide, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of the bundle's tokenizer, held against the original's."""
    long = " ".join(texts)
    rows = side.tokenizer.ids([*texts, long])
    for text, ids, known in zip([*texts, long], rows, side.tokens([*texts, long]), strict=True):
        padded = torch.full_like(known, side.tokenizer.pad_id)
        padded[: len(ids)] = torch.tensor(ids)
        if not torch.equal(padded, known):
            raise VerificationError(f"the bundle's tokenizer splits '{text:.60}' otherwise")
    return rows[:-1]


def _smallest(
    whole: onnx.ModelProto, rows: list[list[int]], side: TextSide, reference: Array
) -> tuple[str, onnx.ModelProto, dict[str, float]]:
    """Precision, graph and cosines of the smallest form whose lowest cosine is enough."""
    for precision, make in (("int8", in_int8), ("float16", in_half)):
        model = make(whole)
        if model is None:
            continue
        found = _embed(model, rows, side, one_by_one=precision == "int8")
        cosine = _cosine(found, reference)
        if cosine["lowest"] >= COSINE:
            return precision, model, cosine
        log.info("text tower in %s: lowest cosine %.5f, not taken", precision, cosine["lowest"])
    return "float32", whole, _cosine(_embed(whole, rows, side, one_by_one=False), reference)


def _embed(
    model: onnx.ModelProto, rows: list[list[int]], side: TextSide, one_by_one: bool
) -> Array:
    """Embeddings as `TextTower` computes them."""
    session = open_session(serialize(model), name="the text tower")
    context = side.encoder.spec.context_length
    parts = []
    for part in [[row] for row in rows] if one_by_one else [rows]:
        length = max(map(len, part)) if side.padding == LONGEST else context
        ids = np.full((len(part), length), side.tokenizer.pad_id, np.int64)
        for row, values in zip(ids, part, strict=True):
            row[: len(values)] = values
        parts.append(session.run([OUTPUT], {INPUT: ids})[0])
    return np.concatenate(parts)


def _unit(features: Array) -> Array:
    unit: Array = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit


def _cosine(found: Array, reference: Array) -> dict[str, float]:
    cosine = (_unit(found) * _unit(reference)).sum(axis=1)
    lowest, mean = float(cosine.min()), float(cosine.mean())
    return {"mean": mean, "lowest": lowest, "texts": len(cosine)}
