"""The search problem: one encoder, one baseline, fixed images, and an objective to ask."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..encoders.canonical import Encoder, Numerics
from ..encoders.regcache import RegCache, RegCacheConfig
from ..errors import DataError
from ..evaluation import Objective, Score
from ..quantization.baselines import Baseline
from ..quantization.simulate import Calibration
from ..work.cache import PartCache, rows_key
from ..work.count import Work
from ..work.devices import halving
from .cost import calibration_walks
from .spill import Spill
from .states import Budget, Embed, HiddenStates
from .stopping import Stop


@dataclass
class SearchProblem:
    """Scores RegCache choices on any of the search images.

    Blocks before a choice's first block see neither prefix nor deletion, so their quantizers and
    hidden states are the plain baseline's; they are computed once for all choices.

    Attributes:
        encoder: in floating point.
        baseline: the quantizer to be rescued.
        calibration_tokens: `[c, N, D]` at the input of block 0.
        tokens: search image indices -> tokens at the input of block 0.
        size: number n of search images.
        objective: over the search images.
        registers: target block -> register.
        cache: keeps finished evaluations, and counts the work.
        memory: bytes of hidden states to keep.
        spill: for those beyond it.
        batch_size: images per forward pass.
    """

    encoder: Encoder
    baseline: Baseline
    calibration_tokens: Tensor
    tokens: Embed
    size: int
    objective: Objective
    registers: Mapping[int, Mapping[int, Tensor]]
    cache: PartCache = field(default_factory=lambda: PartCache(None, {}, Work()))
    memory: int = 4 * 2**30
    batch_size: int = 64
    spill: Spill = field(default_factory=Spill)

    def __post_init__(self) -> None:
        self.work = self.cache.work
        self.budget = Budget(self.memory)
        self._plain: Calibration | None = None
        self._plain_numerics: Numerics | None = None
        state_bytes = self.calibration_tokens[0].numel() * self.calibration_tokens.element_size()

        def plain_blocks(tokens: Tensor, start: int, stop: int) -> Tensor:
            numerics = self._numerics_of_plain()
            encoder = self.plain.encoder
            return torch.cat(
                halving(lambda part: encoder.run_blocks(part, start, stop, numerics), tokens)
            )

        def float_blocks(tokens: Tensor, start: int, stop: int) -> Tensor:
            run = self.encoder.run_blocks
            return torch.cat(halving(lambda part: run(part, start, stop), tokens))

        common = (state_bytes, self.budget, self.work, self.batch_size, self.spill)
        sequential = self.baseline.sequential
        self._calibration_states = HiddenStates(
            lambda rows: self.calibration_tokens[rows],
            plain_blocks if sequential else float_blocks,
            *common,
        )
        self._search_states = HiddenStates(self.tokens, plain_blocks, *common)
        self._walks = calibration_walks(self.baseline)
        # The baseline alone is calibrated in any case: search states come from it.
        self.work.add(self._walks * len(self.calibration_tokens) * self.encoder.spec.depth)

    @property
    def plain(self) -> Calibration:
        """The baseline alone, calibrated on the whole encoder."""
        if self._plain is None:
            self._plain = self.baseline.calibrate(self.encoder, self.calibration_tokens)
        return self._plain

    @property
    def all_rows(self) -> Tensor:
        return torch.arange(self.size)

    def regcache(self, config: RegCacheConfig) -> RegCache:
        """The choice with its register."""
        register = self.registers[config.prefix_block] if config.has_prefix else {}
        return RegCache(config, register)

    @torch.no_grad()
    def evaluate(
        self,
        config: RegCacheConfig,
        rows: Tensor | None = None,
        calibration: int | None = None,
        stop: Stop | None = None,
    ) -> Score:
        """Calibrate the blocks that `config` changes and score search images.

        Args:
            config: the choice.
            rows: indices `[m]` of the search images; None takes all.
            calibration: how many calibration images; None takes all.
            stop: asked along the way whether to leave the rest of `rows`. The score is that of the
                leading rows then.

        Raises:
            DataError: non-finite activations.
            ConfigError: the folder for finished parts cannot be written.
        """
        rows = self.all_rows if rows is None else rows
        count = len(self.calibration_tokens) if calibration is None else calibration
        some = torch.arange(min(count, len(self.calibration_tokens)))
        start = config.first_block
        self._search_states.book(start, rows)
        if not config.is_empty:
            self._calibration_states.book(start, some)

        def compute() -> dict[str, Tensor]:
            score = self._evaluate(config, start, rows, some, stop)
            return {"p": score.per_image, "c": score.cosine, "m": score.margin}

        found = self.cache.part(
            "trial",
            compute,
            config=config.to_json(),
            rows=rows_key(rows),
            calibration=0 if config.is_empty else len(some),
            register=register_hash(self.registers[config.prefix_block])
            if config.has_prefix
            else "",
            quantizer=self.baseline.identity(),
            objective=self.objective.name,
            stop=stop.key() if stop else None,
        )
        return Score.of(found["p"], found["c"], found["m"])

    def price(self, config: RegCacheConfig, images: int, calibration: int | None = None) -> int:
        """Block-forwards of `evaluate`, hidden states at the first block not included."""
        blocks = self.encoder.spec.depth - config.first_block
        most = len(self.calibration_tokens)
        count = 0 if config.is_empty else min(calibration or most, most)
        return blocks * (images + self._walks * count)

    def _evaluate(
        self,
        config: RegCacheConfig,
        start: int,
        rows: Tensor,
        some: Tensor,
        stop: Stop | None,
    ) -> Score:
        blocks = self.encoder.spec.depth - start
        calibration = self.plain
        if not config.is_empty:
            self.work.add(self._walks * len(some) * blocks)
            calibration = self.baseline.calibrate(
                self.encoder, self._calibration_states.at(start, some), start, self.regcache(config)
            )
        numerics, scores = calibration.numerics(), list[Score]()

        def embed(tokens: Tensor) -> Tensor:
            out = calibration.encoder.run_blocks(
                tokens, start, numerics=numerics, regcache=calibration.regcache
            )
            return self.encoder.pool(out).cpu()

        pieces = stop.pieces(rows, self.batch_size) if stop else rows.split(self.batch_size)
        for piece in pieces:
            self.work.add(len(piece) * blocks)
            features = torch.cat(halving(embed, self._search_states.at(start, piece)))
            if not torch.isfinite(features).all():
                raise DataError(
                    f"the quantized encoder gives NaN or infinite features with {config}; "
                    "check the weights and the images"
                )
            scores.append(self.objective.score(features, piece))
            if stop and stop(torch.cat([score.per_image for score in scores]), len(rows)):
                break
        return joined(scores)

    def _numerics_of_plain(self) -> Numerics:
        if self._plain_numerics is None:
            self._plain_numerics = self.plain.numerics()
        return self._plain_numerics


def joined(scores: list[Score]) -> Score:
    """The score over the images of all of them, in this order."""
    return Score.of(
        torch.cat([score.per_image for score in scores]),
        torch.cat([score.cosine for score in scores]),
        torch.cat([score.margin for score in scores]),
    )


def register_hash(register: Mapping[int, Tensor]) -> str:
    """Hash of a register's vectors."""
    digest = hashlib.sha256()
    for block, vector in sorted(register.items()):
        digest.update(str(block).encode())
        digest.update(vector.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
