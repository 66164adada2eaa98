"""The search problem: one encoder, one baseline, fixed images, and an objective to ask."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..encoders.canonical import FLOAT, Encoder, Numerics
from ..encoders.regcache import RegCache, RegCacheConfig
from ..evaluation import Objective, Score
from ..quantization.baselines import Baseline
from ..quantization.simulate import Calibration


def run_in_batches(
    encoder: Encoder,
    tokens: Tensor,
    start: int,
    stop: int | None = None,
    numerics: Numerics = FLOAT,
    regcache: RegCache | None = None,
    batch_size: int = 64,
) -> Tensor:
    """`Encoder.run_blocks` over `[n, N, D]` in pieces."""
    return torch.cat(
        [
            encoder.run_blocks(piece, start, stop, numerics, regcache)
            for piece in tokens.split(batch_size)
        ]
    )


@dataclass
class SearchProblem:
    """Scores RegCache choices; hidden states that choices share are computed once.

    Attributes:
        encoder: in floating point.
        baseline: the quantizer to be rescued.
        calibration_tokens: `[c, N, D]` at the input of block 0.
        search_tokens: `[n, N, D]` at the input of block 0.
        objective: over the search images.
        registers: target block -> register.
    """

    encoder: Encoder
    baseline: Baseline
    calibration_tokens: Tensor
    search_tokens: Tensor
    objective: Objective
    registers: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    batch_size: int = 64
    _plain: Calibration | None = None
    _float_states: dict[int, Tensor] = field(default_factory=dict)
    _quantized_states: dict[int, Tensor] = field(default_factory=dict)
    _search_states: dict[int, Tensor] = field(default_factory=dict)

    @property
    def plain(self) -> Calibration:
        """The baseline alone, calibrated on the whole encoder."""
        if self._plain is None:
            self._plain = self.baseline.calibrate(self.encoder, self.calibration_tokens)
        return self._plain

    def regcache(self, config: RegCacheConfig) -> RegCache:
        """The choice with its register."""
        register = self.registers[config.prefix_block] if config.has_prefix else {}
        return RegCache(config, register)

    @torch.no_grad()
    def evaluate(self, config: RegCacheConfig) -> Score:
        """Calibrate the blocks that `config` changes and score the search images.

        Blocks before `config.first_block` see neither prefix nor deletion, so their quantizers
        and hidden states are the plain baseline's.
        """
        start = config.first_block if not config.is_empty else 0
        if config.is_empty:
            calibration = self.plain
        else:
            calibration = self.baseline.calibrate(
                self.encoder, self._calibration_state(start), start, self.regcache(config)
            )
        tokens = run_in_batches(
            calibration.encoder,
            self._search_state(start),
            start,
            numerics=calibration.numerics(),
            regcache=calibration.regcache,
            batch_size=self.batch_size,
        )
        return self.objective.score(self.encoder.pool(tokens))

    def _calibration_state(self, block: int) -> Tensor:
        sequential = self.baseline.sequential
        states = self._quantized_states if sequential else self._float_states
        if block not in states:
            model = self.plain.encoder if sequential else self.encoder
            numerics = self.plain.numerics() if sequential else FLOAT
            states[block] = run_in_batches(
                model, self.calibration_tokens, 0, block, numerics, batch_size=self.batch_size
            )
        return states[block]

    def _search_state(self, block: int) -> Tensor:
        if block == 0:
            return self.search_tokens
        if block not in self._search_states:
            self._search_states[block] = run_in_batches(
                self.plain.encoder,
                self.search_tokens,
                0,
                block,
                self.plain.numerics(),
                batch_size=self.batch_size,
            )
        return self._search_states[block]
