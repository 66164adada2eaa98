"""The images of a run, and the float model's view of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..data.copies import with_copies
from ..data.images import Images
from ..data.sets import load_sets
from ..data.settings import ImageSettings
from ..encoders.canonical import Encoder
from ..encoders.load import LoadedModel, TextHead
from ..errors import DataError
from ..quantization.simulate import Calibration, Quantization
from ..work.cache import PartCache
from ..work.count import Work
from ..work.progress import Reporter
from . import FeatureError, FeatureFidelity, Objective, ZeroShotTop1
from .corners import simulate
from .instances import InstanceTop1, SymmetricInstances, search_objective
from .metrics import INSTANCES

AUTO = "auto"


@dataclass(frozen=True)
class TokensOf:
    """Tokens of images: what a worker needs of a set.

    Attributes:
        images: the set.
    """

    images: Images

    def __call__(self, encoder: Encoder, rows: Tensor) -> Tensor:
        """Tokens `[m, N, D]` of the images `rows [m]` at the input of block 0."""
        images = self.images
        return encoder.embed(images.normalized(images.pixels[rows]))


@dataclass(frozen=True)
class ImageSets:
    """Search images, evaluation images, and what the float model makes of the first.

    Attributes:
        search: reference images; calibration takes the first ones.
        evaluation: held out; with `copied` n images, then their n altered copies.
        reference: float features of the search images, `[n, E]`.
        calibration_tokens: `[c, N, D]` at the input of block 0, of the first search images.
        objective: over the search images: top-1 with labels and a text encoder, else copy
            detection. Random weights take feature fidelity, for their accuracy is chance.
        head: zero-shot head `[C, E]` of the evaluation classes, or None.
        copied: held-out images are judged by copy detection.
        cache: finished parts of a search on these images with this model, and its work.
    """

    search: Images
    evaluation: Images
    reference: Tensor
    calibration_tokens: Tensor
    objective: Objective
    head: Tensor | None
    copied: bool = False
    cache: PartCache = field(default_factory=lambda: PartCache(None, {}, Work()))

    def for_another_search(self, depth: int) -> ImageSets:
        """The same images and parts, with work that starts after the float features.

        A search spends up to a budget of counted work; what another one spent is not its own.
        """
        passes = 2 if self.objective.name == INSTANCES else 1
        features = passes * len(self.search) * depth
        return replace(self, cache=self.cache.counting(Work(features)))

    def images(self, rows: Tensor) -> Tensor:
        """Search images `rows [m]`, normalized: `[m, 3, H, W]`."""
        return self.search.normalized(self.search.pixels[rows])

    def tokens(self, encoder: Encoder, rows: Tensor) -> Tensor:
        """Tokens `[m, N, D]` of search images `rows [m]` at the input of block 0.

        Computed when asked for: for many images they take far more memory than the pixels.
        """
        return TokensOf(self.search)(encoder, rows)

    @property
    def judged(self) -> int:
        """Held-out images, copies not counted."""
        return len(self.evaluation) // 2 if self.copied else len(self.evaluation)

    def judge(self, reference: Tensor) -> Objective:
        """The metric of the evaluation images, given their FP32 embeddings `[n, E]`."""
        labels = self.evaluation.labels
        if self.copied:
            return SymmetricInstances(reference)
        if self.head is None or labels is None:
            return FeatureFidelity(reference)
        return ZeroShotTop1(self.head, labels, reference)


@torch.no_grad()
def load_image_sets(
    settings: ImageSettings,
    model: LoadedModel,
    reporter: Reporter,
    parts: Path | None = None,
    objective: str = AUTO,
) -> ImageSets:
    """Load both sets and run the float model over the search images.

    Args:
        parts: folder for finished parts of the search; None keeps nothing.
        objective: of the search, as `SearchSettings` names it. Copy detection takes another pass
            of the float model, so it is prepared only where it is the objective.

    Raises:
        DataError: too few or unreadable images, or non-finite features.
    """
    search, evaluation = load_sets(settings, model.preprocess, reporter)
    identity: dict[str, object] = {}
    if parts:
        with reporter.stage("hashes of weights and images"):
            identity = _identity(settings, model, search)
    if parts and model.encoder.device.type != "cpu":  # the same up to rounding
        identity |= {"device": model.encoder.device.type}
    cache = PartCache(parts, identity, Work())
    encoder, size = model.encoder, settings.batch_size

    def float_features() -> dict[str, Tensor]:
        plain, batches = Calibration(encoder, Quantization()), -(-len(search) // size)
        with reporter.stage("FP32 features of the search images", batches) as advance:
            features = simulate(plain, search.batches(size), advance)
        cache.work.add(len(search) * encoder.spec.depth)
        return {"features": features}

    reference = cache.part("features", float_features)["features"]
    if not torch.isfinite(reference).all():
        raise DataError("the float model gives NaN or infinite features on these images")
    text = _top1_head(model, search)
    found: Objective = FeatureFidelity(reference)
    if objective == "mse":
        found = FeatureError(reference)
    elif objective == INSTANCES or (objective == AUTO and text is None and not model.is_random):
        found = _instances(model, search, reference, settings, cache, reporter)
    elif objective in (AUTO, "top1") and text is not None and search.labels is not None:
        classes = text(search.class_names, reporter)
        found = ZeroShotTop1(classes, search.labels, reference)
    head = None
    if evaluation.labels is not None and model.text_head is not None:
        head = model.text_head(evaluation.class_names, reporter)
    copied = head is None and not model.is_random
    if copied:
        evaluation = with_copies(evaluation, settings.seed)
    first = torch.arange(min(settings.calibration_images, len(search)))
    calibration = encoder.embed(search.normalized(search.pixels[first]))
    return ImageSets(search, evaluation, reference, calibration, found, head, copied, cache)


def _instances(
    model: LoadedModel,
    search: Images,
    reference: Tensor,
    settings: ImageSettings,
    cache: PartCache,
    reporter: Reporter,
) -> InstanceTop1:
    """Copy detection among the search images."""
    if len(search) < 2:
        raise DataError("copy detection needs at least two search images; raise --search-images")
    depth = model.encoder.spec.depth

    def index() -> dict[str, Tensor]:
        with reporter.stage("FP32 features of altered search images", len(search)) as advance:
            found = search_objective(
                model.encoder, search, reference, settings.seed, settings.batch_size, advance
            )
        cache.work.add(len(search) * depth)
        return {"features": found.index}

    return InstanceTop1(cache.part(INSTANCES, index)["features"], reference)


def _top1_head(model: LoadedModel, search: Images) -> TextHead | None:
    """What the search's top-1 takes its classes from; None where it needs another objective."""
    return None if search.labels is None or model.is_random else model.text_head


def _identity(settings: ImageSettings, model: LoadedModel, search: Images) -> dict[str, object]:
    """What decides every part of a search, beside its code and its own key.

    The seed is also that of altered copies.
    """
    return {
        "weights": model.weights_sha256(),
        "structure": repr(model.encoder.spec),
        "images": search.fingerprint(),
        "normalization": [list(search.mean), list(search.std)],
        "text": text.key(search.class_names) if (text := _top1_head(model, search)) else None,
        "calibration_images": settings.calibration_images,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
    }
