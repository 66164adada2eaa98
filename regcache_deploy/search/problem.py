"""The search problem: one encoder, one baseline, fixed images, and an objective to ask.

Here it is booked what a question takes, and remembered what was answered; who answers is an
`Evaluator` of this process, or the workers'.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..encoders.regcache import RegCacheConfig
from ..evaluation import Objective, Score
from ..work.cache import PartCache, rows_key
from ..work.count import Work
from ..work.workers import Team
from .evaluator import Evaluator, Setup
from .question import Answer, Ask, Question
from .sharing import shared_answers
from .spill import Spill
from .stopping import Stop


@dataclass
class SearchProblem:
    """Scores RegCache choices on any of the search images.

    Attributes:
        setup: encoder, baseline, images, objective.
        size: number n of search images.
        registers: target block -> register.
        cache: keeps finished evaluations, and counts the work.
        spill: for hidden states beyond the memory of `setup`.
        team: workers that answer; None answers here, one question after the other.
    """

    setup: Setup
    size: int
    registers: Mapping[int, Mapping[int, Tensor]]
    cache: PartCache = field(default_factory=lambda: PartCache(None, {}, Work()))
    spill: Spill = field(default_factory=Spill)
    team: Team | None = None
    _owed: int = field(default=0, init=False, repr=False)
    _ready: dict[str, Answer] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.work, self.all_rows = self.cache.work, torch.arange(self.size)
        # books what one process would hold, also where others answer
        self.evaluator = Evaluator(self.setup, self.spill, self.work)
        # The baseline alone is calibrated in any case: search states come from it.
        walked = self.evaluator.walks * len(self.setup.calibration_tokens)
        self.work.add(walked * self.setup.encoder.spec.depth)

    @property
    def objective(self) -> Objective:
        return self.setup.objective

    @property
    def answered(self) -> int:
        """Block-forwards without those that are booked and not yet answered."""
        return self.work.block_forwards - self._owed

    def evaluate(
        self,
        config: RegCacheConfig,
        rows: Tensor | None = None,
        calibration: int | None = None,
        stop: Stop | None = None,
    ) -> Score:
        """The score of one choice; see `Ask` and `evaluate_many`."""
        return self.evaluate_many([Ask(config, rows, calibration, stop)])[0].score

    def evaluate_many(
        self, asked: Iterable[Ask], told: Callable[[int], None] = lambda n: None
    ) -> list[Answer]:
        """Scores of choices whose evaluations do not depend on each other.

        Args:
            asked: drawn one by one, and each is booked before the next one is drawn: a generator
                may look at `work` to see what its last one takes. Only a question with a rule to
                stop is booked as it is answered.
            told: after every answer, in the order in which they come.

        Returns:
            In the order of `asked`, with the block-forwards of each, hidden states included.

        Raises:
            DataError: non-finite activations.
            ConfigError: the folder for finished parts cannot be written.
        """
        booked = [self._book(each) for each in asked]
        open_ = [each for each in booked if each.answer is None]
        if len(open_) < len(booked):
            told(len(booked) - len(open_))
        for index, answer in self._answers([each.question for each in open_]):
            self._finish(open_[index], answer)
            told(1)
        return [Answer(each.done.score, each.taken) for each in booked]

    def look_ahead(self, asked: Iterable[Ask]) -> None:
        """Have every worker answer one of what will probably be asked next, the first one at once.

        Without workers, nothing. Nothing is booked: a question that is then not asked has cost time
        that nobody else wanted.
        """
        if self.team is None:
            return
        wanted = {}
        for place, each in enumerate(islice(asked, self.team.size)):
            question = self._question(each)
            key = self._key(question)
            if (name := _name(key)) not in self._ready and not self.cache.has("trial", **key):
                wanted[name] = question
            elif not place:
                return
        names = list(wanted)
        for index, answer in self._answers(list(wanted.values())):
            self._ready[names[index]] = answer

    def price(self, config: RegCacheConfig, images: int, calibration: int | None = None) -> int:
        """Block-forwards of `evaluate`, hidden states at the first block not included."""
        most = len(self.setup.calibration_tokens)
        return self.evaluator.price(config, images, min(calibration or most, most))

    def _question(self, ask: Ask) -> Question:
        config, register = ask.config, ask.register or {}
        if config.has_prefix and ask.register is None:
            register = self.registers[config.prefix_block]
        rows = self.all_rows if ask.rows is None else ask.rows
        if rows.untyped_storage().nbytes() > rows.nbytes:
            rows = rows.clone()  # a slice is pickled with all that it was cut from
        most = len(self.setup.calibration_tokens)
        count = most if ask.calibration is None else min(ask.calibration, most)
        here = {block: value.cpu() for block, value in register.items()}
        return Question(config, here if config.has_prefix else {}, rows, count, ask.stop)

    def _key(self, question: Question) -> dict[str, Any]:
        config = question.config
        return {
            "config": config.to_json(),
            "rows": rows_key(question.rows),
            "calibration": 0 if config.is_empty else question.calibration,
            "register": register_hash(question.register) if config.has_prefix else "",
            "quantizer": self.setup.baseline.identity(),
            "objective": self.objective.name,
            "stop": question.stop.key() if question.stop else None,
        }

    def _book(self, ask: Ask) -> _Booked:
        question = self._question(ask)
        key, before = self._key(question), self.work.block_forwards
        self.evaluator.book(question)
        booked = _Booked(question, key)
        found = self.cache.find("trial", **key)
        if found is not None:
            booked.answer = Answer(Score.of(found["p"], found["c"], found["m"]), 0)
        elif question.stop is None:
            price = self.evaluator.price(question.config, len(question.rows), question.calibration)
            self.work.add(price)
            booked.price, self._owed = price, self._owed + price
        booked.taken = self.work.block_forwards - before
        return booked

    def _answers(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """Place of a question and its answer, in any order."""
        left = list[int]()
        for index, question in enumerate(questions):
            known = self._ready.pop(_name(self._key(question)), None) if self._ready else None
            if known is not None:
                yield index, known
            elif self.team is None:
                yield index, self.evaluator.answer(question)
            else:
                left.append(index)
        if self.team is not None and left:
            asked = [questions[index] for index in left]
            for place, answer in shared_answers(asked, self.evaluator, self.team):
                yield left[place], answer

    def _finish(self, booked: _Booked, answer: Answer) -> None:
        if booked.price is None:
            self.work.add(answer.work)
            booked.taken += answer.work
        else:
            self._owed -= booked.price
        score = answer.score
        tensors = {"p": score.per_image, "c": score.cosine, "m": score.margin}
        self.cache.keep("trial", tensors, answer.work, **booked.key)
        booked.answer = answer


@dataclass
class _Booked:
    """A question on its way.

    Attributes:
        key: of its part.
        taken: block-forwards so far.
        price: those of the answer among them; None where it is not known beforehand.
        answer: None while there is none.
    """

    question: Question
    key: dict[str, Any]
    taken: int = 0
    price: int | None = None
    answer: Answer | None = None

    @property
    def done(self) -> Answer:
        assert self.answer is not None
        return self.answer


def _name(key: Mapping[str, Any]) -> str:
    return repr(sorted(key.items()))


def register_hash(register: Mapping[int, Tensor]) -> str:
    """Hash of a register's vectors."""
    digest = hashlib.sha256()
    for block, vector in sorted(register.items()):
        digest.update(str(block).encode())
        digest.update(vector.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
