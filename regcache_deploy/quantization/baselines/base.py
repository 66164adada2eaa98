"""What every baseline shares: walk the blocks, record, calibrate, go on."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_export.spec import EncoderSpec

from ...encoders.canonical import Encoder
from ...encoders.regcache import RegCache
from ...encoders.rotary import Survivors
from ...errors import ConfigError, DataError
from ..encoder_folds import CALIBRATION_FOLDS, fold_encoder
from ..output_error import Reading
from ..quantizers import Bits, Quantizer, Uniform
from ..simulate import Calibration, Quantization
from ..treated_input import TreatedInput
from ..treatment import Treatment
from ..treatment_search import Chooser

if TYPE_CHECKING:
    from typing_extensions import Self

Form = Literal["paper", "deploy"]
"""`paper`: every quantizer as published, also those no INT8 runtime has. `deploy`: the same
baseline with quantizers that the exported graph has (per-tensor activations, per-output-channel
symmetric weights, attention products in float)."""

Progress = Callable[[int, int], None]
"""Called with the number of calibrated blocks and the number of blocks to calibrate."""


def check_finite(name: str, x: Tensor) -> None:
    """Raise DataError where the input `x` of the layer `name` is NaN or infinite."""
    # NaN goes through to the extremes; a mask of the whole tensor takes many times as long.
    low, high = torch.aminmax(x)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise DataError(f"the input of {name} holds NaN or infinite values on these images")


def check_scale(name: str, quantizer: Quantizer) -> None:
    """Raise DataError where the range at the input of the layer `name` overflows float32."""
    if isinstance(quantizer, Uniform) and not torch.isfinite(quantizer.scale).all():
        raise DataError(
            f"the range at the input of {name} does not fit float32; look at the weights before it"
        )


@dataclass
class BlockRecord:
    """What one block computed in floating point on the calibration images.

    Attributes:
        inputs: layer name -> input of the linear, `[B, N, C_in]`.
        operands: matmul name -> its two operands.
        chooser: decides how the inputs of linears are treated.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    operands: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    chooser: Chooser = field(default_factory=Chooser)

    def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        check_finite(name, x)
        self.inputs[name] = x
        return F.linear(x, weight, bias)

    def matmul(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        self.operands[name] = (a, b)
        return a @ b


@dataclass(frozen=True)
class BlockResult:
    """Outcome of one block: quantizers, and weights or register changed by exact folds."""

    quantization: Quantization
    weights: dict[str, Tensor] = field(default_factory=dict)
    register: Tensor | None = None
    warnings: tuple[str, ...] = ()


class Baseline(ABC):
    """A post-training quantizer: encoder and calibration tokens in, quantizers out.

    Calibration starts from hidden states instead of images, so that a search that varies only the
    later blocks pays only for them.
    """

    name: ClassVar[str]
    sequential: ClassVar[bool] = False
    """Calibrate each block on the output of the already quantized ones before it."""
    differences: ClassVar[tuple[str, ...]] = ()
    """One line for each place where the deployed form differs from the paper form by design."""

    def __init__(self, bits: Bits | None = None, form: Form = "deploy") -> None:
        self.bits = bits or Bits()
        self.form: Form = form
        self.folds: tuple[str, ...] = CALIBRATION_FOLDS if form == "deploy" else ()
        """Exact folds before calibration; the published form is that of the original weights."""
        self.keep_float: frozenset[str] = frozenset()
        """Linears that stay in floating point."""
        self.treatment = Treatment()
        """What may be done to the inputs of linears before they are quantized."""
        self.kept_inputs: dict[str, TreatedInput] | None = None
        """Treated inputs of an earlier calibration, by linear, in place of a search."""

    def fast(self) -> Baseline:
        """A cheaper setting of this baseline for use inside a search; itself if there is none."""
        return self

    def like(self, other: Baseline) -> Self:
        """This baseline with the folds, float layers and treatment of another one."""
        self.folds, self.keep_float = other.folds, other.keep_float
        self.treatment, self.kept_inputs = other.treatment, other.kept_inputs
        return self

    def identity(self) -> dict[str, Any]:
        """JSON values of every setting, for the keys of what is kept of its calibrations."""
        return {"name": self.name, **json.loads(json.dumps(vars(self), default=_as_json))}

    @torch.no_grad()
    def calibrate(
        self,
        encoder: Encoder,
        tokens: Tensor,
        start: int = 0,
        regcache: RegCache | None = None,
        progress: Progress | None = None,
        survivors: Survivors | None = None,
    ) -> Calibration:
        """Calibrate blocks `start`..L-1.

        The ranges belong to the folded encoder that is returned, not to the one that is given.

        Args:
            encoder: in floating point.
            tokens: `[B, N, D]` at the input of block `start`: from the float model, or, for a
                sequential baseline, from the quantized one.
            start: first block to calibrate.
            regcache: active during calibration, with every token absent that its ranges are set
                without; it must not change blocks before `start`.
            progress: told after every block.
            survivors: what `tokens` are, where the encoder deletes or merges before `start`; it is
                not changed.

        Raises:
            ConfigError: a treatment of inputs in the paper form, which has none, or merging leaves
                fewer tokens than `regcache` deletes.
            DataError: no images, or non-finite activations.
        """
        if not len(tokens):
            raise DataError("calibration needs at least one image")
        if self.form == "paper" and not self.treatment.is_empty:
            raise ConfigError("the published form of a baseline smooths nothing; take 'deploy'")
        ranges = regcache.for_ranges() if regcache else None
        encoder.check_merge(ranges)
        encoder = fold_encoder(encoder, self.folds, tokens, start, ranges)
        quantization, warnings = Quantization(), list[str]()
        register = dict(regcache.register) if regcache else {}
        context = self.prepare(encoder, tokens, start, ranges)
        folded, survivors = encoder, replace(survivors or Survivors())
        for index in range(start, encoder.spec.depth):
            record = self.record()
            record.chooser = self.chooser(encoder.spec)
            tokens = encoder.block(index, tokens, record, ranges, survivors)
            result = self.calibrate_block(index, encoder, record, register.get(index), context)
            del record
            for name, layer in result.quantization.linears.items():
                check_scale(name, layer.input)
            quantization = quantization.merge(result.quantization.without(self.keep_float))
            folded = folded.replace(result.weights)
            if result.register is not None:
                register[index] = result.register
            warnings += result.warnings
            if progress:
                progress(index - start + 1, encoder.spec.depth - start)
        changed = RegCache(regcache.config, register) if regcache else None
        return Calibration(folded, quantization, changed, tuple(warnings))

    def chooser(self, spec: EncoderSpec) -> Chooser:
        """What decides how the inputs of this encoder's linears are treated."""
        treatment = self.treatment
        if spec.attn_norm:  # factors on values do not pass through it
            treatment = treatment.without("out_proj")
        return Chooser(treatment, Reading.of(spec), self.keep_float, self.kept_inputs)

    def prepare(
        self, encoder: Encoder, tokens: Tensor, start: int, regcache: RegCache | None
    ) -> Any:
        """Anything that needs a pass over the whole network; handed to `calibrate_block`."""
        return None

    def record(self) -> BlockRecord:
        """The numerics that a block is run with; what they compute flows on to the next block.

        A sequential baseline calibrates every layer in here, at its first call, and answers with
        the quantized result, so that each later layer sees it.
        """
        return BlockRecord()

    @abstractmethod
    def calibrate_block(
        self,
        index: int,
        encoder: Encoder,
        record: BlockRecord,
        register: Tensor | None,
        context: Any,
    ) -> BlockResult:
        """Quantizers (and folds) of one block.

        Args:
            index: block.
            encoder: before any fold.
            record: what the block computed on the calibration images.
            register: mean LN1 output `[D]` cached for this block, if the prefix is active in it;
                a fold that changes LN1 must return it changed.
            context: what `prepare` returned.
        """


def _as_json(setting: object) -> Any:
    if isinstance(setting, Baseline):
        return setting.identity()
    if isinstance(setting, Treatment | TreatedInput):
        return setting.to_json()
    if isinstance(setting, frozenset):
        return sorted(setting)
    if isinstance(setting, Bits):
        return str(setting)
    raise TypeError(f"{type(setting).__name__} is no setting of a baseline")
