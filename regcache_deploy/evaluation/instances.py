"""Copy detection: does an image find its own altered copy among those of all images?

It needs neither labels nor a text side, and it sees what fidelity does not: features may keep
their direction on the whole and still lose what tells one image from the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_engines.engine import unit_length

from ..data.copies import altered
from ..data.images import Images
from ..work.devices import halving
from ..work.gathered import Gathered
from . import metrics
from .objective import Score


@dataclass(frozen=True)
class InstanceTop1:
    """Copy detection against a fixed index: the form that a search can ask for.

    The index holds the float model's features of an altered copy of every search image. Image i is
    right where its own features, of the encoder under test, are nearest (by cosine) to copy i.

    A search asks for the features of some images at a time, in batches, and joins the scores. So
    the outcome of an image must not depend on which others are asked with it, and the index has to
    be there beforehand; and it must not hold a feature of the encoder under test for image i alone,
    for an encoder that moves all features the same way would then seem to recognize everything.
    Queries by the quantized encoder on an index that was built in float is also what a deployment
    often is. It costs one float pass over the copies and nothing after that.

    It favours what stays near the float features over what moves index and queries alike. On a
    natural ViT-S/14 with planted sinks (100 images) the mean margin gained more from RegCache
    against the float index than it did with both sides from the encoder under test, where the
    quantizer alone was level or better. So it serves the search, which looks for RegCache's best
    numbers; where whole sets are asked `SymmetricInstances` decides: in the race of the ways, and
    on held-out images.

    Attributes:
        index: float features of the copies `[n, E]`, not normalized.
        reference: float features of the images `[n, E]`; for the fidelity beside it.
    """

    index: Tensor = field(repr=False)
    reference: Tensor = field(repr=False)
    name: str = metrics.INSTANCES
    smooth: bool = False

    def symmetric(self) -> SymmetricInstances:
        """The form that judges, for the same images with the same copies behind them."""
        return SymmetricInstances(torch.cat([self.reference, self.index]))

    def score(self, features: Tensor, rows: Tensor | None = None) -> Score:
        """Features `[m, E]` of the images `rows [m]`; of all without `rows`."""
        rows = torch.arange(len(self.index)) if rows is None else rows
        queries = unit_length(features.double().numpy())
        margin = torch.from_numpy(metrics.unit_margins(queries, self._unit_index, rows.numpy()))
        return Score.of((margin > 0).double(), _cosine(features, self.reference[rows]), margin)

    @cached_property
    def _unit_index(self) -> metrics.Array:
        """Of unit length; every batch of a search asks for all of it."""
        return unit_length(self.index.numpy())


@dataclass(frozen=True)
class SymmetricInstances:
    """Copy detection where images and copies go through the same encoder: the form that judges.

    It scores features `[2n, E]` of a set made by `with_copies`: n images, then their copies. Image
    i is right where it finds copy i among all copies. Only whole sets can be asked.

    Attributes:
        reference: float features `[2n, E]` of the same set.
    """

    reference: Tensor = field(repr=False)
    name: str = metrics.INSTANCES
    smooth: bool = False

    def score(self, features: Tensor, rows: Tensor | None = None) -> Score:
        """The score over n images; its cosines are the mean of image and copy.

        Raises:
            ValueError: a part of the set.
        """
        if rows is not None or features.shape != self.reference.shape:
            raise ValueError("symmetric copy detection scores a whole set of images and copies")
        images, copies = features.chunk(2)
        margin = margins(images, copies, torch.arange(len(images)))
        cosine = _cosine(features, self.reference).view(2, -1).mean(dim=0)
        return Score.of((margin > 0).double(), cosine, margin)


def margins(queries: Tensor, index: Tensor, own: Tensor) -> Tensor:
    """`metrics.margins` of tensors."""
    return torch.from_numpy(metrics.margins(queries.numpy(), index.numpy(), own.numpy()))


@torch.no_grad()
def search_objective(
    embed: Callable[[Tensor], Tensor],
    images: Images,
    reference: Tensor,
    seed: int = 0,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda n: None,
) -> InstanceTop1:
    """The objective of search images.

    Args:
        embed: the float encoder: normalized images `[b, 3, H, W]` -> features `[b, E]`.
        images: the n search images, at least 2.
        reference: their float features `[n, E]`.
        seed: of the alterations.
        batch_size: images per forward pass.
        advance: called with the images of each batch.
    """
    found = Gathered()
    for first in range(0, len(images), batch_size):
        copies = altered(images.pixels[first : first + batch_size], seed, first)
        for part in halving(lambda part: embed(part).cpu(), images.normalized(copies)):
            found.add(part)
        advance(len(copies))
    return InstanceTop1(found.rows, reference)


def _cosine(features: Tensor, reference: Tensor) -> Tensor:
    return F.cosine_similarity(features.double(), reference.double(), dim=-1)
