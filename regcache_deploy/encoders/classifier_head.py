"""A supervised encoder's own classifier as the head, where there is no text tower.

The classifier becomes the encoder's projection (`logits = features @ W.T + b`, with its bias), so
the encoder's output is the logits, and the head is the identity: the cosine of the logits with axis
c is logit c over a length that all classes share. So the order of the classes is the classifier's
own, and every path that knows a zero-shot head (search, plan, graph, engines, C++) needs nothing
new. Scores are softmax over those cosines: an order, no calibrated probabilities.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.class_names import class_indices, imagenet_names
from ..errors import ModelError
from ..work.progress import Reporter


@dataclass(frozen=True)
class ClassifierHead:
    """Axes of the logits for class names; implements `TextHead`.

    Attributes:
        names: class of every logit, in their order.
    """

    names: tuple[str, ...]

    def __call__(self, names: Sequence[str], reporter: Reporter | None = None) -> Tensor:
        """Unit vectors `[C, E]`.

        Raises:
            DataError: a name that is none of the classifier's, or stands for several.
        """
        axes = torch.eye(len(self.names))
        if tuple(names) == self.names:
            return axes
        return axes[class_indices(names, self.names)]

    def key(self, names: Sequence[str]) -> str:
        """Hash of the classifier's names and of those asked for; its weights are the encoder's."""
        words = json.dumps(["classifier", self.names, list(names)])
        return hashlib.sha256(words.encode()).hexdigest()


def imagenet_classifier(name: str, outputs: int) -> ClassifierHead:
    """The head of a classifier with so many outputs.

    Raises:
        ModelError: they are not ImageNet's 1000 classes.
    """
    names = imagenet_names()
    if outputs != len(names):
        raise ModelError(
            f"{name} has {f'a classifier of {outputs} classes' if outputs else 'no classifier'}; "
            f"--classifier knows ImageNet's {len(names)}: leave it out, or take weights that were "
            "trained on them (a tag that ends in in1k)"
        )
    return ClassifierHead(names)
