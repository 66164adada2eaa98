"""How to search: every reading of the method that its sources allow, with one default each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .errors import ConfigError

CHOICES = {
    "strategy": ("default", "confirmed", "pruned", "exhaustive"),
    "ranking": ("block_input", "fc2_input"),
    "register": ("in_context", "solo"),
    "candidates": ("average", "best"),
    "delete_at": ("block_input", "mlp_input"),
    "objective": ("auto", "top1", "mse", "cosine"),
}
"""Values of the settings that are words; the first of each is the default."""

MIN_MEMORY = 0.05


@dataclass(frozen=True)
class SearchSettings:
    """Readings and effort of a search (arXiv 2510.04547; v2 and v4 differ).

    Attributes:
        strategy: `default` races candidates; `exhaustive` runs the plain full grid; `pruned` finds
            the optimum of the full grid, too, but leaves a choice as soon as it is certain to lose;
            `confirmed` leaves it as soon as a paired test says that it is not better.
        ranking: register candidates by l-inf of the target block's input, or of the input of fc2
            in the sensitive block, read back at the target block.
        register: `in_context` captures the candidates in their own images; `solo` sends their mean
            hidden state through the later blocks alone.
        candidates: `average` of the top 100 (v4), or the `best` single one of the top 20 (v2).
        delete_at: sinks leave at the input of block k, or between its attention and its MLP.
        objective: `auto` is top-1 where there are labels and a text head, else cosine.
        memory: budget for hidden states, GiB.
        two_counts: the ranges may be set without sinks that the graph keeps, which saturate then;
            False is the published method, in which every absent token is deleted.
        error: probability with which racing may drop the best choice, and with which a gain is
            claimed where there is none.

    Raises:
        ConfigError: a word that is not one of `CHOICES`, or a number out of range.
    """

    strategy: str = "default"
    ranking: str = "block_input"
    register: str = "in_context"
    candidates: str = "average"
    delete_at: str = "block_input"
    objective: str = "auto"
    two_counts: bool = True
    memory: float = 4.0
    error: float = 0.05

    def __post_init__(self) -> None:
        for name, valid in CHOICES.items():
            value = getattr(self, name)
            if value not in valid:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} {value}: take one of {', '.join(valid)}")
        if not self.memory >= MIN_MEMORY:
            raise ConfigError(f"--memory {self.memory}: take at least {MIN_MEMORY} (GiB)")
        if not 0.001 <= self.error <= 0.5:
            raise ConfigError(f"--error {self.error}: take a probability from 0.001 to 0.5")

    @property
    def memory_bytes(self) -> int:
        return int(self.memory * 2**30)

    def identity(self) -> dict[str, Any]:
        """What decides the outcome: everything but the memory budget."""
        return {name: value for name, value in asdict(self).items() if name != "memory"}
