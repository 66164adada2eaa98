"""The images of a run, and the float model's view of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .data.images import Images
from .data.sets import load_sets
from .encoders.load import LoadedModel
from .errors import DataError
from .evaluation import FeatureFidelity, Objective, ZeroShotTop1
from .options import ExportOptions
from .progress import Reporter


@dataclass(frozen=True)
class ImageSets:
    """Search images, evaluation images, and what the float model makes of the first.

    Attributes:
        search: reference images; calibration takes the first ones.
        evaluation: held out.
        search_tokens: `[n, N, D]` at the input of block 0.
        calibration_tokens: the first of them.
        objective: over the search images: top-1 with labels, else feature fidelity. Random
            weights always take fidelity, for their accuracy is chance.
        head: zero-shot head `[C, E]` of the evaluation classes, or None.
    """

    search: Images
    evaluation: Images
    search_tokens: Tensor
    calibration_tokens: Tensor
    objective: Objective
    head: Tensor | None

    def judge(self, reference: Tensor) -> Objective:
        """The metric of the evaluation images, given their FP32 embeddings `[n, E]`."""
        labels = self.evaluation.labels
        if self.head is None or labels is None:
            return FeatureFidelity(reference)
        return ZeroShotTop1(self.head, labels, reference)


@torch.no_grad()
def load_image_sets(options: ExportOptions, model: LoadedModel, reporter: Reporter) -> ImageSets:
    """Load both sets and run the float model over the search images.

    Raises:
        DataError: too few or unreadable images, or non-finite features.
    """
    search, evaluation = load_sets(options, model.preprocess, reporter)
    tokens, features = [], []
    with reporter.stage("FP32 features of the search images", len(search)) as advance:
        for images in search.batches(options.batch_size):
            tokens.append(model.encoder.embed(images))
            features.append(model.encoder.pool(model.encoder.run_blocks(tokens[-1])))
            advance(len(images))
    search_tokens, reference = torch.cat(tokens), torch.cat(features)
    if not torch.isfinite(reference).all():
        raise DataError("the float model gives NaN or infinite features on these images")
    objective: Objective = FeatureFidelity(reference)
    if search.labels is not None and model.text_head is not None and not model.is_random:
        objective = ZeroShotTop1(model.text_head(search.class_names), search.labels, reference)
    head = None
    if evaluation.labels is not None and model.text_head is not None:
        head = model.text_head(evaluation.class_names)
    calibration = search_tokens[: options.calibration_images]
    return ImageSets(search, evaluation, search_tokens, calibration, objective, head)
