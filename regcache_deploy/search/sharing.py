"""Questions among workers: whole ones, and some in parts, each worker with images of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..evaluation import Score
from ..work.workers import Team
from .evaluator import Evaluator
from .question import Answer, Question

FAR_LONGER = 8
"""Times that all workers' calibrations for a question must go into its images."""


@dataclass(frozen=True)
class Share:
    """What one worker is asked.

    Attributes:
        place: of the question among all.
        question: all of it, or a part of its images.
        mine: bool `[m]`, which of the question's images; None for all.
        home: the worker that has their hidden states; None for any.
    """

    place: int
    question: Question
    mine: Tensor | None = None
    home: int | None = None


def shared_answers(
    questions: Sequence[Question], evaluator: Evaluator, team: Team
) -> Iterator[tuple[int, Answer]]:
    """Place of a question and its answer by workers, as they come.

    Args:
        questions: in the order in which they shall be begun.
        evaluator: knows what an answer takes in one process.
        team: its station is the evaluator's setup.
    """
    shares = list(_shares(questions, team.size, evaluator.walks, evaluator.setup.batch_size))
    left = Counter(share.place for share in shares)
    outcomes: dict[int, Tensor] = {}
    jobs, homes = [each.question for each in shares], [each.home for each in shares]
    for index, answer in team.answers(evaluator.setup, jobs, homes):
        share = shares[index]
        if share.mine is None:
            yield share.place, answer
            continue
        score, question = answer.score, questions[share.place]
        part = torch.stack([score.per_image, score.cosine, score.margin])
        outcomes.setdefault(share.place, part.new_empty(3, len(share.mine)))[:, share.mine] = part
        left[share.place] -= 1
        if not left[share.place]:
            price = evaluator.price(question.config, len(question.rows), question.calibration)
            yield share.place, Answer(Score.of(*outcomes.pop(share.place)), price)


def _shares(
    questions: Sequence[Question], size: int, walks: int, batch_size: int
) -> Iterator[Share]:
    """Who is asked what.

    All workers take a question together where its images take far longer than the calibrations,
    which each makes for itself; and the last questions of a round, which would leave some idle.
    Batches are those of one process: a row of a product may depend on how many are multiplied.
    """
    whole = len(questions) // size * size
    for place, question in enumerate(questions):
        images = len(question.rows)
        anew = 0 if question.config.is_empty else walks * question.calibration
        if place < whole:
            together = size * anew <= images / FAR_LONGER
        else:
            together = (len(questions) - whole) * (images / size + anew) < images + anew
        if question.stop is not None or images <= batch_size or not together:
            yield Share(place, question)
            continue
        batch = torch.arange(images) // batch_size
        for home in range(min(size, int(batch[-1]) + 1)):
            # the same worker each time all are asked: it keeps their hidden states
            mine = batch % size == home
            yield Share(place, replace(question, rows=question.rows[mine]), mine, home)
