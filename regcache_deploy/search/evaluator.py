"""Whoever answers the questions of a search: calibrates a choice and scores images with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..encoders.canonical import Encoder, Numerics
from ..encoders.regcache import RegCache, RegCacheConfig
from ..errors import DataError
from ..evaluation import Objective, Score
from ..quantization.baselines import Baseline
from ..quantization.simulate import Calibration
from ..work.count import Work
from ..work.devices import free_memory, halving
from ..work.gathered import Gathered
from ..work.memory import free_disk
from ..work.workers import Place
from .cost import calibration_walks
from .question import Answer, Question
from .spill import Spill
from .states import Budget, HiddenStates

Tokens = Callable[[Encoder, Tensor], Tensor]
"""Encoder, search image indices `[m]` -> tokens `[m, N, D]` at the input of block 0."""


@dataclass(frozen=True)
class Setup:
    """All that an evaluator is built from; travels to workers.

    Attributes:
        encoder: in floating point.
        baseline: the quantizer to be rescued.
        calibration_tokens: `[c, N, D]` at the input of block 0.
        tokens: of the search images.
        objective: over the search images.
        batch_size: images per forward pass.
        memory: bytes of hidden states to keep.
    """

    encoder: Encoder
    baseline: Baseline
    calibration_tokens: Tensor
    tokens: Tokens
    objective: Objective
    batch_size: int
    memory: int

    def to(self, device: torch.device) -> Setup:
        """The same on a device."""
        encoder, tokens = self.encoder.to(device), self.calibration_tokens.to(device)
        return replace(self, encoder=encoder, calibration_tokens=tokens)

    def open(self, place: Place) -> Callable[[Question], Answer]:
        """An evaluator of a worker's own, with its share of memory and disk."""
        folder, spill = place.scratch, Spill()
        if folder is not None and folder.is_dir():
            spill = Spill(folder, int(place.share * free_disk(folder)))
        own = free_memory(place.device)  # a worker's GPU is its own, the CPU's memory is not
        memory = int(place.share * self.memory) if own is None else min(self.memory, own // 2)
        return Evaluator(replace(self.to(place.device), memory=memory), spill, Work())


@dataclass
class Evaluator:
    """Scores RegCache choices on any of the search images.

    Blocks before a choice's first block see neither prefix nor deletion, so their quantizers and
    hidden states are the plain baseline's; they are computed once for all choices.

    Attributes:
        setup: what it was built from.
        spill: for hidden states that memory has no room for.
        work: gets what the booked states take.
    """

    setup: Setup
    spill: Spill
    work: Work
    _plain: Calibration | None = field(default=None, init=False, repr=False)
    _plain_numerics: Numerics | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        setup = self.setup
        self.budget = Budget(setup.memory)
        self.walks = calibration_walks(setup.baseline)
        tokens, encoder = setup.calibration_tokens, setup.encoder

        def plain_blocks(tokens: Tensor, start: int, stop: int) -> Tensor:
            run, numerics = self.plain.encoder.run_blocks, self._numerics_of_plain()
            return torch.cat(halving(lambda part: run(part, start, stop, numerics), tokens))

        def float_blocks(tokens: Tensor, start: int, stop: int) -> Tensor:
            return torch.cat(halving(lambda part: encoder.run_blocks(part, start, stop), tokens))

        state_bytes = tokens[0].numel() * tokens.element_size()
        common = (state_bytes, self.budget, self.work, setup.batch_size, self.spill)
        self._calibration_states = HiddenStates(
            lambda rows: tokens[rows],
            plain_blocks if setup.baseline.sequential else float_blocks,
            *common,
        )
        self._search_states = HiddenStates(
            lambda rows: setup.tokens(encoder, rows), plain_blocks, *common
        )

    @property
    def plain(self) -> Calibration:
        """The baseline alone, calibrated on the whole encoder."""
        if self._plain is None:
            setup = self.setup
            self._plain = setup.baseline.calibrate(setup.encoder, setup.calibration_tokens)
        return self._plain

    def __call__(self, question: Question) -> Answer:
        """Book and answer: what a worker does."""
        self.book(question)
        return self.answer(question)

    def price(self, config: RegCacheConfig, images: int, calibration: int) -> int:
        """Block-forwards of an answer, hidden states at the first block not included."""
        blocks = self.setup.encoder.spec.depth - config.first_block
        return blocks * (images + (0 if config.is_empty else self.walks * calibration))

    def book(self, question: Question) -> None:
        """Book the hidden states that the question needs, and room for them."""
        start = question.config.first_block
        self._search_states.book(start, question.rows)
        if not question.config.is_empty:
            self._calibration_states.book(start, torch.arange(question.calibration))

    @torch.no_grad()
    def answer(self, question: Question) -> Answer:
        """Calibrate the blocks that the choice changes and score the images.

        The question has been booked.

        Raises:
            DataError: non-finite activations.
        """
        setup, config, rows = self.setup, question.config, question.rows
        start, stop = config.first_block, question.stop
        calibration = self.plain
        if not config.is_empty:
            states = self._calibration_states.at(start, torch.arange(question.calibration))
            device = setup.encoder.device
            register = {block: value.to(device) for block, value in question.register.items()}
            regcache = RegCache(config, register)
            calibration = setup.baseline.calibrate(setup.encoder, states, start, regcache)
        numerics, outcomes = calibration.numerics(), Gathered()

        def embed(tokens: Tensor) -> Tensor:
            out = calibration.encoder.run_blocks(
                tokens, start, numerics=numerics, regcache=calibration.regcache
            )
            return setup.encoder.pool(out).cpu()

        size = setup.batch_size
        for piece in stop.pieces(rows, size) if stop else rows.split(size):
            features = torch.cat(halving(embed, self._search_states.at(start, piece)))
            if not torch.isfinite(features).all():
                raise DataError(
                    f"the quantized encoder gives NaN or infinite features with {config}; "
                    "check the weights and the images"
                )
            score = setup.objective.score(features, piece)
            outcomes.add(torch.stack([score.per_image, score.cosine, score.margin], dim=1))
            if stop and stop(outcomes.rows[:, 0], len(rows)):
                break
        score = Score.of(*outcomes.rows.T.contiguous())
        return Answer(score, self.price(config, len(score.per_image), question.calibration))

    def _numerics_of_plain(self) -> Numerics:
        if self._plain_numerics is None:
            self._plain_numerics = self.plain.numerics()
        return self._plain_numerics
