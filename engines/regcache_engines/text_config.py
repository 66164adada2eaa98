"""`text/text.json` of a bundle: how its text tower is fed, and what was measured of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import BundleError

TEXT_FORMAT = 1

FOLDER = "text"
TEXT_MODEL, TOKENIZER, TEXT_CONFIG = "model.onnx", "tokenizer.json", "text.json"
TEXT_FILES = tuple(f"{FOLDER}/{name}" for name in (TEXT_MODEL, TOKENIZER, TEXT_CONFIG))
"""A bundle has all three or none."""

INPUT, OUTPUT = "input_ids", "text_embeds"
"""Ends of the graph: int64 `[b, L]` -> float32 `[b, E]`."""

LONGEST, WHOLE = "longest", "context_length"
PRECISIONS = ("int8", "float16", "float32")
POOLINGS = ("argmax", "eos", "first", "last", "mean")
MAX_CONTEXT, MAX_DIM = 1 << 16, 1 << 20


@dataclass(frozen=True)
class TextConfig:
    """What text.json says.

    Attributes:
        embedding: length E; that of the image side.
        context_length: most tokens of a text, special ones included. A longer text is cut, and
            where there is an end token, it takes the last place.
        padding: `longest`: rows are as long as the longest text of a call, and the tower does not
            see what stands behind a text's end; `context_length`: every row is filled up to that,
            and the tower reads the filling.
        pad_id: the filling.
        eos_id: the end token, or None.
        pooling: the token whose state becomes the embedding: at the highest id (`argmax`), the
            first end token (`eos`), the `first` or the `last` one, or the `mean` of a text's own.
        lower_case: whether the tokenizer lowers case, so that "A Dog" is "a dog".
        html_unescape: whether `&amp;` is read as `&`, twice, before the tokenizer.
        precision: of the weights: `int8` (dynamic quantization), `float16` (stored so, computed in
            float32), or `float32`.
        cosine: `mean` and `lowest` cosine similarity to the original tower on `texts` texts.
        logit_scale, logit_bias: of the model; a bias belongs to sigmoid losses.
        weights_sha256: of the tower's float weights; heads made by it carry it.
        templates: prompts of the export, with `{}` for the class name.
        l2_normalized: always False, as the image side.
        format: of this file.
    """

    embedding: int
    context_length: int
    padding: str
    pad_id: int
    eos_id: int | None
    pooling: str
    lower_case: bool
    html_unescape: bool
    precision: str
    cosine: Mapping[str, float]
    logit_scale: float
    logit_bias: float | None
    weights_sha256: str
    templates: tuple[str, ...]
    l2_normalized: bool = False
    format: int = TEXT_FORMAT

    @classmethod
    def parse(cls, data: bytes, where: str) -> TextConfig:
        """Read and check the file.

        Raises:
            BundleError: no JSON object, another format, or a field that cannot be used.
        """
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{where} is not readable ({error}); export it again") from error
        if not isinstance(values, dict):
            raise BundleError(f"{where} must hold a JSON object; export it again")
        if type(values.get("format")) is not int or values["format"] != TEXT_FORMAT:
            raise BundleError(
                f"{where} has format {values.get('format')!r:.60}, and this version reads "
                f"{TEXT_FORMAT}; install the version of regcache-deploy that wrote it"
            )
        for name, fits in _CHECKS.items():
            if not fits(values.get(name)):
                raise BundleError(f"{where} has no usable '{name}'; export it again")
        known = {field.name: values[field.name] for field in fields(cls)}
        return cls(**known | {"templates": tuple(known["templates"])})

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"templates": list(self.templates), "cosine": dict(self.cosine)}


def has_one_place(template: str) -> bool:
    """Whether the class name has its one place in a prompt."""
    return template.count("{}") == 1


def _is_count(limit: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 1 <= value <= limit


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e30


def _are_templates(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(t, str) and has_one_place(t) for t in value)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "embedding": _is_count(MAX_DIM),
    "context_length": _is_count(MAX_CONTEXT),
    "padding": lambda value: value in (LONGEST, WHOLE),
    "pad_id": _is_id,
    "eos_id": lambda value: value is None or _is_id(value),
    "pooling": lambda value: value in POOLINGS,
    "lower_case": lambda value: isinstance(value, bool),
    "html_unescape": lambda value: isinstance(value, bool),
    "precision": lambda value: value in PRECISIONS,
    "cosine": lambda value: (
        isinstance(value, dict)
        and all(_is_number(value.get(name)) for name in ("mean", "lowest", "texts"))
    ),
    "logit_scale": _is_number,
    "logit_bias": lambda value: value is None or _is_number(value),
    "weights_sha256": lambda value: isinstance(value, str),
    "templates": _are_templates,
    "l2_normalized": lambda value: value is False,
}
