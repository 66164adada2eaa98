"""The plan: everything the exporter needs, found in PyTorch, read without it.

Two files side by side: `plan.json` (numbers and names) and `plan.safetensors` (tensors). Both are
written to a temporary name in the same folder and renamed; `plan.json` comes last and holds the
SHA-256 of the tensors, so a plan is either whole or not there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regcache_engines.documents import read_json

from .errors import BundleError
from .files import atomic_write_bytes, sha256_bytes, sha256_file
from .json_types import check_fields, expect
from .merge import Merge
from .published_quant import PublishedQuant
from .regcache_config import RegCacheConfig
from .spec import EncoderSpec
from .tensor_quant import LinearQuant, TensorQuant
from .treated import problem_of

__all__ = ["SCHEMA", "LinearQuant", "Plan", "TensorQuant"]

SCHEMA = 1

MERGED_SCHEMA = 2
"""Of a plan that merges tokens: a reader that does not know of it would leave the merge out."""

LINEAR_ROLES = ("input", "weight")
TREATMENTS = {"input_multiplier": np.float32, "float_channels": np.int64}
"""Optional tensors of a linear's input; a plan without treated inputs has none of them."""

MATMUL_ROLES = ("left", "right")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Plan:
    """What to bake.

    Attributes:
        encoder: structure.
        weights: float32, after all exact folds of the baseline; names as in `spec`.
        linears: layer name -> quantizers; a layer that is absent stays in float.
        regcache: the chosen numbers, or None for the baseline alone.
        register: block -> mean LN1 output `[D]`, folded like the weights.
        preprocess: open_clip's preprocess_cfg layout: size, mode, mean, std, interpolation, ...
        text_features: `[classes, E]`, L2-normalized zero-shot head, or None.
        labels: class names of the head.
        logit_scale: factor on the cosine similarities.
        provenance: model, weights SHA-256, data hash, seed, versions, resolved configuration.
        matmuls: `blocks.I.attn.qk` or `blocks.I.attn.pv` -> quantizers of its two operands, for
            targets that compute attention in integers; a product that is absent stays in float.
        published: linears and products whose quantizers no INT8 runtime has -> input and weight,
            or left and right operand; in no other of the two.
        merge: how tokens are merged, or None. Ranges are only valid for it.
    """

    encoder: EncoderSpec
    weights: dict[str, Array] = field(repr=False)
    linears: dict[str, LinearQuant]
    regcache: RegCacheConfig | None = None
    register: dict[int, Array] = field(default_factory=dict, repr=False)
    preprocess: dict[str, Any] = field(default_factory=dict)
    text_features: Array | None = field(default=None, repr=False)
    labels: tuple[str, ...] = ()
    logit_scale: float = 100.0
    provenance: dict[str, Any] = field(default_factory=dict)
    matmuls: dict[str, tuple[TensorQuant, TensorQuant]] = field(default_factory=dict)
    published: dict[str, tuple[PublishedQuant, PublishedQuant]] = field(default_factory=dict)
    merge: Merge | None = None

    def save(self, folder: Path) -> None:
        """Write `plan.safetensors` and `plan.json` into `folder`."""
        data, described = self._serialized()
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(folder / "plan.safetensors", data)
        document = {
            "schema": MERGED_SCHEMA if self.merge else SCHEMA,
            "tensors_sha256": sha256_bytes(data),
            "encoder": self.encoder.to_json(),
            **described,
            "regcache": self.regcache.to_json() if self.regcache else None,
            "preprocess": self.preprocess,
            "labels": list(self.labels),
            "logit_scale": self.logit_scale,
            "provenance": self.provenance,
        }
        if self.merge:
            document["merge"] = self.merge.to_json()
        text = json.dumps(document, indent=1, sort_keys=True) + "\n"
        atomic_write_bytes(folder / "plan.json", text.encode())

    def tensors_sha256(self) -> str:
        """SHA-256 of the `plan.safetensors` that `save` writes."""
        return sha256_bytes(self._serialized()[0])

    def _serialized(self) -> tuple[bytes, dict[str, Any]]:
        """Bytes of the tensors, and what plan.json says of the quantizers among them."""
        from safetensors.numpy import save

        tensors = {f"weights/{k}": v for k, v in self.weights.items()}
        tensors |= {f"register/{i}": v for i, v in self.register.items()}
        if self.text_features is not None:
            tensors["text_features"] = self.text_features
        linears = {
            name: _described(tensors, name, LINEAR_ROLES, (layer.input, layer.weight))
            for name, layer in self.linears.items()
        }
        for name, layer in self.linears.items():
            for part, kind in TREATMENTS.items():
                if (value := getattr(layer, part)) is not None:
                    tensors[f"quant/{name}/{part}"] = value.astype(kind)
        matmuls = {
            name: _described(tensors, name, MATMUL_ROLES, operands)
            for name, operands in self.matmuls.items()
        }
        published = {
            name: [q.save(tensors, f"published/{name}/{i}") for i, q in enumerate(pair)]
            for name, pair in self.published.items()
        }
        contiguous = {k: np.ascontiguousarray(v) for k, v in sorted(tensors.items())}
        described = {"linears": linears, "matmuls": matmuls, "published": published}
        return save(contiguous), described

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read a plan.

        Raises:
            BundleError: missing, damaged, of a newer schema, or incomplete.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            document = read_json(folder / "plan.json")
        except (OSError, ValueError) as error:
            raise BundleError(f"no readable plan.json in {folder}: {error}") from error
        found = document.get("schema") if isinstance(document, dict) else None
        known = MERGED_SCHEMA if isinstance(document, dict) and "merge" in document else SCHEMA
        if found != known:
            raise BundleError(f"{folder}/plan.json has schema {found}; this version reads {known}")
        path = folder / "plan.safetensors"
        _check_document(document, f"{folder}/plan.json")
        try:
            if sha256_file(path) != document["tensors_sha256"]:
                raise BundleError(f"{path} does not belong to its plan.json (SHA-256 differs)")
            tensors: dict[str, Array] = load_file(path)
            linears = {
                name: LinearQuant(
                    *_quantizers(tensors, name, LINEAR_ROLES, layer),
                    *(tensors.get(f"quant/{name}/{part}") for part in TREATMENTS),
                )
                for name, layer in document["linears"].items()
            }
            matmuls = {
                name: _quantizers(tensors, name, MATMUL_ROLES, operands)
                for name, operands in document.get("matmuls", {}).items()
            }
            plan = cls(
                encoder=EncoderSpec.from_json(document["encoder"]),
                weights=_under(tensors, "weights/"),
                linears=linears,
                matmuls=matmuls,
                published={
                    name: _published(tensors, name, pair)
                    for name, pair in document.get("published", {}).items()
                },
                regcache=RegCacheConfig.from_json(document["regcache"])
                if document["regcache"] is not None
                else None,
                register={int(i): v for i, v in _under(tensors, "register/").items()},
                preprocess=document["preprocess"],
                text_features=tensors.get("text_features"),
                labels=tuple(document["labels"]),
                logit_scale=float(document["logit_scale"]),
                provenance=document["provenance"],
                merge=Merge.from_json(document["merge"]) if "merge" in document else None,
            )
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise BundleError(f"the plan in {folder} is damaged: {error}") from error
        plan.check()
        return plan

    def check(self) -> None:
        """Raise BundleError where a weight or a register is missing or has the wrong shape."""
        for name, shape in self.encoder.weight_shapes().items():
            if name not in self.weights or self.weights[name].shape != shape:
                raise BundleError(f"the plan lacks weight {name} of shape {shape}")
        for name, layer in self.linears.items():
            if f"{name}.weight" not in self.weights:
                continue  # the exporter says which linear it is
            problem = problem_of(name, layer, self.weights[f"{name}.weight"].shape[1])
            if problem:
                raise BundleError(f"{problem}; calibrate again")
        if self.regcache:
            for block in self.regcache.prefix_blocks(self.encoder.depth):
                if block not in self.register:
                    raise BundleError(f"the plan lacks the register of block {block}")


def _described(
    tensors: dict[str, Array], name: str, roles: tuple[str, str], quants: Sequence[TensorQuant]
) -> dict[str, Any]:
    """Put the quantizers of a layer into `tensors`; returns what is no tensor."""
    document = {}
    for role, quant in zip(roles, quants, strict=True):
        tensors[f"quant/{name}/{role}/scale"] = quant.scale.astype(np.float32)
        tensors[f"quant/{name}/{role}/zero_point"] = quant.zero_point.astype(np.int32)
        document[role] = {
            "bits": quant.bits,
            "signed": quant.signed,
            "per_channel": quant.per_channel,
        }
    return document


def _quantizers(
    tensors: dict[str, Array], name: str, roles: tuple[str, str], document: Mapping[str, Any]
) -> tuple[TensorQuant, TensorQuant]:
    expect(f"the quantizer of {name}", document, dict, "an object")
    first, second = (_quantizer(tensors, f"quant/{name}/{role}", document[role]) for role in roles)
    return first, second


def _quantizer(tensors: dict[str, Array], key: str, data: Any) -> TensorQuant:
    names = ("scale", "zero_point")
    check_fields(f"the quantizer {key}", data, TensorQuant, absent=names)
    scale, zero_point = (tensors[f"{key}/{name}"] for name in names)
    return TensorQuant(scale=scale, zero_point=zero_point, **data)


def _published(
    tensors: dict[str, Array], name: str, pair: Any
) -> tuple[PublishedQuant, PublishedQuant]:
    expect(f"the published quantizers of {name}", pair, list, "a list")
    first, second = (
        PublishedQuant.load(tensors, f"published/{name}/{i}", data) for i, data in enumerate(pair)
    )
    return first, second


def _check_document(document: dict[str, Any], path: str) -> None:
    """Raise BundleError where a part of plan.json is of another type."""
    objects = ("encoder", "linears", "preprocess", "provenance")
    for name in (*objects, "labels", "logit_scale", "tensors_sha256", "regcache"):
        if name not in document:
            raise BundleError(f"{path} lacks '{name}'; write the plan again")
    for name in (*objects, *(n for n in ("matmuls", "published") if n in document)):
        expect(f"{path}: {name}", document[name], dict, "an object")
    expect(f"{path}: tensors_sha256", document["tensors_sha256"], str, "a string")
    expect(f"{path}: logit_scale", document["logit_scale"], (int, float), "a number")
    expect(f"{path}: labels", document["labels"], list, "a list")
    for label in document["labels"]:
        expect(f"{path}: a label", label, str, "a string")
    if document["regcache"] is not None:
        expect(f"{path}: regcache", document["regcache"], dict, "an object or null")


def _under(tensors: dict[str, Array], prefix: str) -> dict[str, Array]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
