"""Parameters of a checkpoint by name, and an account of which of them were used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import ModelError
from .reading import Weights


class Parameters:
    """Tensors of a checkpoint; every one is taken, or left out by name, or an error.

    Args:
        tensors: by their names in the file.
        where: the file, for messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.where = where
        self._tensors = dict(tensors)
        self._used: set[str] = set()

    def prefix(self, anchors: Sequence[str]) -> str:
        """What stands in front of a name in this file, by the first of `anchors` that is there.

        Wrappings differ: `vision_model.`, `dinov2.`, none.

        Raises:
            ModelError: none of them is there, or one is there twice.
        """
        for anchor in anchors:
            found = [name for name in self._tensors if f".{name}".endswith(f".{anchor}")]
            if len(found) > 1:
                raise ModelError(f"{self.where} holds {anchor} twice: {', '.join(found[:2])}")
            if found:
                return found[0][: -len(anchor)]
        raise ModelError(f"{self.where} holds no parameter {anchors[0]}")

    def has(self, anchor: str) -> bool:
        """Whether a name ends with `anchor`, a whole name or one behind a dot."""
        return any(f".{name}".endswith(f".{anchor}") for name in self._tensors)

    def take(self, *names: str) -> Tensor:
        """The first of `names` that is there, float32.

        Raises:
            ModelError: none is.
        """
        for name in names:
            if name in self._tensors:
                self._used.add(name)
                return self._tensors[name].detach().to(torch.float32)
        raise ModelError(f"{self.where} has no parameter {names[0]}")

    def affine(self, to: str, *modules: str, bias: bool = True) -> Weights:
        """Weight and bias of the first of `modules`, under the name `to`.

        Args:
            to: canonical name.
            modules: names under which the module may stand in the file.
            bias: False where the original has none; zeros take its place.

        Raises:
            ModelError: the weight or the bias is not there.
        """
        weight = self.take(*[f"{module}.weight" for module in modules])
        out = {f"{to}.weight": weight}
        if bias:
            out[f"{to}.bias"] = self.take(*[f"{module}.bias" for module in modules])
        else:
            out[f"{to}.bias"] = weight.new_zeros(len(weight))
        return out

    def leave_out(self, pattern: str) -> list[str]:
        """Names that match the regular expression from their beginning, now accounted for."""
        found = [name for name in self._tensors if re.match(pattern, name)]
        self._used.update(found)
        return found

    def finish(self) -> None:
        """Raise ModelError where a parameter was neither taken nor left out."""
        rest = sorted(self._tensors.keys() - self._used)
        if rest:
            more = f" and {len(rest) - 4} more" if len(rest) > 4 else ""
            raise ModelError(
                f"{self.where} holds parameters that this structure has no place for: "
                f"{', '.join(rest[:4])}{more}"
            )
