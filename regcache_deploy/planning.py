"""From a calibration in PyTorch to a plan in numpy: the last step of room 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from regcache_export.plan import LinearQuant, Plan, TensorQuant

from .encoders.regcache import RegCacheConfig
from .errors import ConfigError
from .quantization.quantizers import Quantizer, Uniform
from .quantization.simulate import Calibration


def make_plan(
    calibration: Calibration,
    *,
    regcache_config: RegCacheConfig | None = None,
    preprocess: Mapping[str, Any] | None = None,
    text_features: Tensor | None = None,
    labels: Sequence[str] = (),
    logit_scale: float = 100.0,
    provenance: Mapping[str, Any] | None = None,
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

    Raises:
        BundleError: a weight or a register is missing.
        ConfigError: another choice than the calibration's, or a quantizer that only simulation has.
    """
    calibrated = calibration.regcache
    config = regcache_config if regcache_config and not regcache_config.is_empty else None
    known = calibrated.config if calibrated and not calibrated.config.is_empty else None
    if config != known:
        raise ConfigError(f"the plan asks for {config}, but the ranges were calibrated for {known}")
    if calibration.quantization.matmuls:
        raise ConfigError(_only_simulated(next(iter(calibration.quantization.matmuls))))
    spec = calibration.encoder.spec
    register = calibrated.register if calibrated else {}
    prefix_blocks = config.prefix_blocks(spec.depth) if config else []
    plan = Plan(
        encoder=spec,
        weights={name: _array(calibration.encoder.weights[name]) for name in spec.weight_shapes()},
        linears={
            name: LinearQuant(_uniform(name, layer.input), _uniform(name, layer.weight))
            for name, layer in calibration.quantization.linears.items()
        },
        regcache=config,
        register={block: _array(register[block]) for block in prefix_blocks if block in register},
        preprocess=dict(preprocess or {}),
        text_features=None if text_features is None else _array(text_features),
        labels=tuple(labels),
        logit_scale=float(logit_scale),
        provenance=dict(provenance or {}),
    )
    plan.check()
    return plan


def _uniform(name: str, quantizer: Quantizer) -> TensorQuant:
    if not isinstance(quantizer, Uniform):
        raise ConfigError(_only_simulated(name))
    return quantizer.to_plan()


def _only_simulated(layer: str) -> str:
    return (
        f"{layer} has a quantizer that no INT8 runtime has (the baseline's paper form); "
        "calibrate with form 'deploy' to export"
    )


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    # a copy: a plan must not change when the model it came from does
    return tensor.detach().to("cpu").float().contiguous().numpy().copy()
