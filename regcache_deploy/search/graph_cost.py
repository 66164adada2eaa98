"""What a graph costs on a CPU, by arithmetic: enough to order ways that are equally good."""

from __future__ import annotations

from dataclasses import dataclass

from regcache_export.spec import EncoderSpec

from ..encoders.regcache import RegCacheConfig
from ..quantization.simulate import Calibration

INT8_SPEED = 3.2
"""Integer over float products of a linear, in multiplications a second: ViT-B/16's shapes in ONNX
Runtime on one thread of a VNNI CPU (docs/cpu.md)."""

ELEMENT = 12.0
"""Multiplications that one more pass over a hidden activation takes the time of; from
`benchmarks/results/treatment_cost-*.csv`."""

FEW_CHANNELS = 40.0
"""The same for Gather, product of a few channels and Add, for each element of the result."""


@dataclass(frozen=True)
class Operators:
    """What a calibration adds to the plain INT8 graph.

    Attributes:
        multipliers: fc2 inputs with factors that stay in the graph.
        few_channels: linears with a few channels in float.
        floats: linears wholly in float.
    """

    multipliers: tuple[str, ...] = ()
    few_channels: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()

    @classmethod
    def of(cls, calibration: Calibration) -> Operators:
        linears = calibration.quantization.linears
        treated = {name: layer.treated for name, layer in linears.items()}
        return cls(
            tuple(n for n, how in treated.items() if how.multiplier is not None),
            tuple(n for n, how in treated.items() if how.float_channels is not None),
            tuple(n for n in calibration.encoder.spec.linears() if n not in linears),
        )


def graph_cost(spec: EncoderSpec, config: RegCacheConfig, operators: Operators) -> float:
    """CPU time of the blocks, in float multiplications."""
    shapes = spec.weight_shapes()
    total, tokens = 0.0, spec.num_tokens
    prefixed = set(config.prefix_blocks(spec.depth))
    for index in range(spec.depth):
        if config.deletes and index == config.delete_block:
            tokens -= config.delete_count
        keys = tokens + (config.prefix_count if index in prefixed else 0)
        total += 2 * tokens * keys * spec.width
        for name in (n for n in spec.linears() if n.startswith(f"blocks.{index}.")):
            outputs, inputs = shapes[f"{name}.weight"]
            speed = 1.0 if name in operators.floats else INT8_SPEED
            total += tokens * outputs * inputs / speed
            total += ELEMENT * tokens * inputs * (name in operators.multipliers)
            total += FEW_CHANNELS * tokens * outputs * (name in operators.few_channels)
    return total
