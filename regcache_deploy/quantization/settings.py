"""Which quantizer, at which bit widths, and what stays in floating point."""

from __future__ import annotations

import re
from dataclasses import dataclass

from regcache_export.fold_names import SWITCHABLE, check_switchable

from ..errors import ConfigError
from ..work.settings import setting, split_names

BASELINE_NAMES = ("naive", "ptq4vit", "repqvit")
"""Names only: the classes behind them need torch."""

OBSERVER_NAMES = ("minmax", "percentile", "mse")
"""As above; `naive` alone chooses."""

AUTO = "auto"

REDUCED_BITS = 7
"""Products of uint8 and 7-bit codes: two of them fit in 16 bits, whatever their signs."""


@dataclass(frozen=True)
class QuantizerSettings:
    """The quantizer that RegCache is added to.

    Raises:
        ConfigError: an unknown word, or two settings that contradict each other.
    """

    baseline: str = setting("repqvit", f"quantizer: {', '.join(BASELINE_NAMES)}", "NAME")
    bits: str = setting("W8A8", "bits of weights and activations; below 8, codes in INT8", "W8A8")
    observer: str = setting(
        "minmax", f"how naive sets its ranges: {', '.join(OBSERVER_NAMES)}", "NAME"
    )
    keep_float: str = setting(
        "", "linears to leave in float, by comma (blocks.7.fc2), or `auto` under --budget", "LAYERS"
    )
    budget: float = setting(0.01, "loss of the search objective that --keep-float auto tolerates")
    reduce_range: bool = setting(
        False, "7-bit weights: exact on CPUs without VNNI, whose u8s8 products saturate"
    )
    strict_paper: bool = setting(
        False,
        "every quantizer as published, attention's too: slow, to measure what that costs",
    )
    no_fold: str = setting(
        "", f"exact folds to leave out, by comma: {', '.join(SWITCHABLE)}", "NAMES"
    )
    balance: bool = setting(False, "balance values against out_proj per channel before calibration")

    def __post_init__(self) -> None:
        if self.baseline not in BASELINE_NAMES:
            valid = ", ".join(BASELINE_NAMES)
            raise ConfigError(f"unknown baseline '{self.baseline}'; take one of: {valid}")
        self.requested_bits  # noqa: B018  (checked where it is read)
        check_observer_of(self.baseline, self.observer)
        if not 0 <= self.budget < 1:
            raise ConfigError(f"--budget {self.budget} is out of range: take 0 to 1")
        check_switchable(self.left_out)
        if self.keep_float != AUTO:
            layer_names(self.keep_float)
        others = {"--balance": self.balance, "--no-fold": self.no_fold}
        for option, value in others.items():  # the published form is that of the original weights
            if self.strict_paper and value:
                raise ConfigError(f"--strict-paper does not go with {option}; take one of them")

    @property
    def requested_bits(self) -> tuple[int, int]:
        """Widths of weights and activations, as `--bits` says."""
        match = re.fullmatch(r"[wW]([2-8])[aA]([2-8])", self.bits)
        if match is None:
            raise ConfigError(
                f"--bits {self.bits}: write W<weights>A<activations> with 2 to 8 bits each, for "
                "example W8A8"
            )
        return int(match[1]), int(match[2])

    @property
    def weight_bits(self) -> int:
        bits = self.requested_bits[0]
        return min(bits, REDUCED_BITS) if self.reduce_range else bits

    @property
    def activation_bits(self) -> int:
        return self.requested_bits[1]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Folds that are switched off."""
        return split_names(self.no_fold)


def check_observer_of(baseline: str, observer: str) -> None:
    """Raise ConfigError unless the baseline can have this observer."""
    if observer not in OBSERVER_NAMES:
        raise ConfigError(f"--observer {observer}: take one of {', '.join(OBSERVER_NAMES)}")
    if observer != "minmax" and baseline != "naive":
        raise ConfigError(
            f"--observer {observer} needs --baseline naive: {baseline} sets ranges its own way"
        )


def layer_name(option: str, word: str) -> str:
    """`blocks.7.fc2` is short for `blocks.7.mlp.fc2`.

    Raises:
        ConfigError: a word that names no linear.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(?:attn\.|mlp\.)?(qkv|out_proj|fc1|fc2)", word)
    if match is None:
        raise ConfigError(
            f"{option} {word}: write blocks.I.ROLE with ROLE in qkv, out_proj, fc1, fc2"
        )
    part = "attn" if match[2] in ("qkv", "out_proj") else "mlp"
    return f"blocks.{int(match[1])}.{part}.{match[2]}"


def layer_names(text: str) -> frozenset[str]:
    """Linears by comma, in their long form; raises ConfigError for a word that names none."""
    return frozenset(layer_name("--keep-float", word) for word in split_names(text))
