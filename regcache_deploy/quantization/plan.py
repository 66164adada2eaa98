"""From a calibration in PyTorch to a plan in numpy, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regcache_export.plan import LinearQuant, Plan, TensorQuant

from ..encoders.canonical import Encoder
from ..encoders.regcache import RegCache, RegCacheConfig
from ..errors import ConfigError
from .quantizers import Quantizer, Uniform
from .simulate import Calibration, LinearQuantization, Quantization
from .strict_plan import of_published, split_published
from .treated_input import treated_arrays, treated_of


def make_plan(
    calibration: Calibration,
    *,
    regcache_config: RegCacheConfig | None = None,
    preprocess: Mapping[str, Any] | None = None,
    text_features: Tensor | None = None,
    labels: Sequence[str] = (),
    logit_scale: float = 100.0,
    provenance: Mapping[str, Any] | None = None,
    strict: bool = False,
) -> Plan:
    """Put a calibration into the form that the exporter reads.

    Args:
        calibration: folded encoder, quantizers and folded register; a calibration without
            quantizers gives a floating-point plan.
        regcache_config: the choice; it must be the one the calibration was made with, because the
            ranges are only valid for it. An empty choice is the same as None.
        preprocess: open_clip's preprocess_cfg.
        text_features: L2-normalized zero-shot head `[classes, E]`.
        labels: class names of the head.
        logit_scale: factor on the cosine similarities.
        provenance: `model`, `baseline`, hashes, seed, versions, resolved configuration.
        strict: quantizers that no INT8 runtime has go along as published, and so do those of
            attention (`--strict-paper`).

    Raises:
        BundleError: a weight or a register is missing.
        ConfigError: another choice than the calibration's, or a quantizer that only simulation has.
    """
    calibrated = calibration.regcache
    config = regcache_config if regcache_config and not regcache_config.is_empty else None
    known = calibrated.config if calibrated and not calibrated.config.is_empty else None
    if config != known:
        raise ConfigError(f"the plan asks for {config}, but the ranges were calibrated for {known}")
    spec, merge = calibration.encoder.spec, calibration.encoder.merge
    if merge is not None and merge.compat:
        raise ConfigError("the published indexing of merging (--merge-compat) is only simulated")
    register = calibrated.register if calibrated else {}
    prefix_blocks = config.prefix_blocks(spec.depth) if config else []
    published, quantization = split_published(calibration.quantization, strict)
    plan = Plan(
        encoder=spec,
        weights={name: _array(calibration.encoder.weights[name]) for name in spec.weight_shapes()},
        linears={
            name: LinearQuant(
                _uniform(name, layer.input),
                _uniform(name, layer.weight),
                *treated_arrays(layer.treated),
            )
            for name, layer in quantization.linears.items()
        },
        matmuls={
            name: (_uniform(name, left), _uniform(name, right))
            for name, (left, right) in quantization.matmuls.items()
        },
        published=published,
        regcache=config,
        register={block: _array(register[block]) for block in prefix_blocks if block in register},
        preprocess=dict(preprocess or {}),
        text_features=None if text_features is None else _array(text_features),
        labels=tuple(labels),
        logit_scale=float(logit_scale),
        provenance=dict(provenance or {}),
        merge=merge,
    )
    plan.check()
    return plan


def calibration_of(plan: Plan) -> Calibration:
    """The inverse of `make_plan`: encoder, quantizers and register as the simulation has them."""
    weights = {name: torch.from_numpy(np.array(plan.weights[name])) for name in plan.weights}
    quantization = Quantization(
        {
            name: LinearQuantization(
                _quantizer(layer.input), _quantizer(layer.weight), treated_of(layer)
            )
            for name, layer in plan.linears.items()
        },
        {
            name: (_quantizer(left), _quantizer(right))
            for name, (left, right) in plan.matmuls.items()
        },
    )
    for name, (left, right) in plan.published.items():
        pair = of_published(left), of_published(right)
        if name.endswith((".qk", ".pv")):
            quantization.matmuls[name] = pair
        else:
            quantization.linears[name] = LinearQuantization(*pair)
    regcache = None
    if plan.regcache is not None:
        register = {i: torch.from_numpy(np.array(v)) for i, v in plan.register.items()}
        regcache = RegCache(plan.regcache, register)
    return Calibration(Encoder(plan.encoder, weights, plan.merge), quantization, regcache)


def _quantizer(quant: TensorQuant) -> Uniform:
    shape = (-1, 1) if quant.per_channel else ()
    return Uniform(
        scale=torch.from_numpy(np.array(quant.scale, dtype=np.float32).reshape(shape)),
        zero_point=torch.from_numpy(np.array(quant.zero_point, dtype=np.float32).reshape(shape)),
        bits=quant.bits,
        signed=quant.signed,
    )


def _uniform(name: str, quantizer: Quantizer) -> TensorQuant:
    if not isinstance(quantizer, Uniform):
        raise ConfigError(_only_simulated(name))
    return quantizer.to_plan()


def _only_simulated(layer: str) -> str:
    return (
        f"{layer} has a quantizer that no INT8 runtime has (the baseline's paper form); "
        "calibrate with form 'deploy' to export, or take --strict-paper"
    )


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    # a copy: a plan must not change when the model it came from does
    return tensor.detach().to("cpu").float().contiguous().numpy().copy()
