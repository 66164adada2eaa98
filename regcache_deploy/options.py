"""What the user asked `export` to do: plain values, checked before any heavy import."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regcache_export.fold_names import EXPORT_FOLDS, check_switchable
from regcache_export.regcache_config import MAX_PREFIX_COUNT
from regcache_export.targets import DEFAULT_TARGET, GraphOptions

from .errors import ConfigError
from .paths import require_folder, require_writable

BASELINE_NAMES = ("naive", "ptq4vit", "repqvit")
"""Names only: the classes behind them need torch."""

OBSERVER_NAMES = ("minmax", "percentile", "mse")
"""As above; `naive` alone chooses."""

MAX_THREADS = 1024

AUTO = "auto"

REDUCED_BITS = 7
"""Products of uint8 and 7-bit codes: two of them fit in 16 bits, whatever their signs."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of `regcache export`; a default of None means that the command decides.

    Attributes:
        baseline: quantizer that RegCache is added to.
        model: `demo`, a model name of open_clip, `hf-hub:ORG/NAME`, or `timm/NAME`.
        pretrained: open_clip's tag, a checkpoint path, or `random[:SEED]`.
        data: image folder for calibration and search; None takes the demo's digits.
        eval_data: image folder for the final evaluation; None keeps a part of `data` for it.
        output: result folder; None is `runs/<model>-<baseline>`.
        limit: largest number of images to evaluate on.
        bits: widths of weights and activations, written W8A8.
        observer: how `naive` sets an activation's range; the others have ways of their own.
        prefix_block, prefix_count, delete_count: fix a choice instead of searching it.
        range_delete_count: tokens absent while ranges are set; None is searched, or `delete_count`.
        calibration_images, search_images: how many images each stage takes.
        batch_size: images per forward pass.
        threads: CPU threads; None leaves the libraries' own choice.
        seed: for every random choice.
        target: form of the graph, of `regcache_export.targets`.
        bake_preprocess: `nchw` or `nhwc`: the graph takes uint8 pixels.
        batch: fixed batch size of the graph.
        probes: outputs for the outlier monitor, 0 to 3.
        no_fold: exact folds to leave out, by comma.
        balance: also balance values and out_proj before calibration.
        keep_float: linears that stay in float, by comma, or `auto`.
        budget: loss of the search objective that `keep_float=auto` tolerates.
        reduce_range: 7-bit weights, for CPUs whose u8s8 products saturate in 16 bits.
        strict_paper: every quantizer as published, with the operators that takes.
        certificate_images: images of the calibration that travel in the bundle.
        img_size: input size in pixels, `336` or `HEIGHTxWIDTH`; None is the model's own.
        templates: prompts of the zero-shot head: `openai`, `simple`, or a file.

    Raises:
        ConfigError: a value is out of range, or two contradict each other.
    """

    baseline: str = "repqvit"
    model: str = "demo"
    pretrained: str | None = None
    data: Path | None = None
    eval_data: Path | None = None
    output: Path | None = None
    limit: int | None = None
    bits: str = "W8A8"
    observer: str = "minmax"
    prefix_block: int | None = None
    prefix_count: int | None = None
    delete_count: int | None = None
    range_delete_count: int | None = None
    calibration_images: int = 64
    search_images: int = 512
    batch_size: int = 32
    threads: int | None = None
    seed: int = 0
    target: str = DEFAULT_TARGET
    bake_preprocess: str | None = None
    batch: int | None = None
    probes: int = 0
    no_fold: str = ""
    balance: bool = False
    keep_float: str = ""
    budget: float = 0.01
    reduce_range: bool = False
    strict_paper: bool = False
    certificate_images: int = 32
    img_size: str | None = None
    templates: str = "openai"

    def __post_init__(self) -> None:
        if self.baseline not in BASELINE_NAMES:
            valid = ", ".join(BASELINE_NAMES)
            raise ConfigError(f"unknown baseline '{self.baseline}'; take one of: {valid}")
        if not self.model:
            raise ConfigError("--model is empty; take `demo` or a model name of open_clip")
        if self.data is None and self.eval_data is not None:
            raise ConfigError(
                "--eval-data needs --data: images to calibrate and search on must be other "
                "images than those to evaluate on"
            )
        _bit_widths(self.bits)
        check_observer_of(self.baseline, self.observer)
        _in_range("--limit", self.limit, 2)
        _in_range("--prefix-block", self.prefix_block, 0)
        _in_range("--prefix-count", self.prefix_count, 0, MAX_PREFIX_COUNT)
        _in_range("--delete-count", self.delete_count, 0)
        _in_range("--range-delete-count", self.range_delete_count, self.delete_count or 0)
        _in_range("--calibration-images", self.calibration_images, 1)
        _in_range("--search-images", self.search_images, 1)
        _in_range("--batch-size", self.batch_size, 1)
        _in_range("--threads", self.threads, 1, MAX_THREADS)
        check_seed(self.seed)
        _in_range("--certificate-images", self.certificate_images, 1)
        if not 0 <= self.budget < 1:
            raise ConfigError(f"--budget {self.budget} is out of range: take 0 to 1")
        if self.strict_paper:
            self._check_strict()
        self.image_size  # noqa: B018
        self.graph  # noqa: B018  (names are checked where they are read)
        check_switchable(self.left_out)
        if self.keep_float != AUTO:
            layer_names(self.keep_float)

    def _check_strict(self) -> None:
        """The published form is that of the original weights, in standard operators."""
        others = {"--balance": self.balance, "--probes": self.probes, "--no-fold": self.no_fold}
        for option, value in others.items():
            if value:
                raise ConfigError(f"--strict-paper does not go with {option}; take one of them")
        if self.target != DEFAULT_TARGET:
            raise ConfigError(
                f"--strict-paper needs --target {DEFAULT_TARGET}, not '{self.target}': published "
                "quantizers are built from standard operators"
            )

    def check_paths(self) -> None:
        """Look at the folders, not into them.

        Raises:
            DataError: an image folder is not there.
            ConfigError: the result folder could not be written.
        """
        for folder in (self.data, self.eval_data):
            if folder is not None:
                require_folder(folder)
        require_writable(self.output_dir)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width that `--img-size` asks for."""
        if self.img_size is None:
            return None
        match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", str(self.img_size))
        if match is None:
            raise ConfigError(
                f"--img-size {self.img_size}: write pixels, for example 336 or HEIGHTxWIDTH"
            )
        return int(match[1]), int(match[2] or match[1])

    @property
    def requested_bits(self) -> tuple[int, int]:
        """Widths of weights and activations, as `--bits` says."""
        return _bit_widths(self.bits)

    @property
    def weight_bits(self) -> int:
        bits = _bit_widths(self.bits)[0]
        return min(bits, REDUCED_BITS) if self.reduce_range else bits

    @property
    def left_out(self) -> tuple[str, ...]:
        """Folds that are switched off."""
        return split_names(self.no_fold)

    @property
    def graph(self) -> GraphOptions:
        """How the graph is written."""
        return GraphOptions(
            target=self.target,
            pixels=self.bake_preprocess,  # type: ignore[arg-type]
            without=tuple(name for name in self.left_out if name in EXPORT_FOLDS),
            batch=self.batch,
            probes=self.probes,
        )

    @property
    def activation_bits(self) -> int:
        return _bit_widths(self.bits)[1]

    @property
    def run_name(self) -> str:
        """`<model>-<baseline>`, safe as a file name (`hf-hub:org/name` has a slash)."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.model}-{self.baseline}").lstrip("-.")

    @property
    def output_dir(self) -> Path:
        return self.output if self.output is not None else Path("runs") / self.run_name

    @property
    def bundle_path(self) -> Path:
        """Where the bundle goes: `<output>/<model>-<baseline>.regcache`."""
        return self.output_dir / f"{self.run_name}.regcache"

    def to_json(self) -> dict[str, Any]:
        """The resolved configuration, for the plan's provenance."""
        values = asdict(self) | {"output": self.output_dir}
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


def check_observer_of(baseline: str, observer: str) -> None:
    """Raise ConfigError unless the baseline can have this observer."""
    if observer not in OBSERVER_NAMES:
        raise ConfigError(f"--observer {observer}: take one of {', '.join(OBSERVER_NAMES)}")
    if observer != "minmax" and baseline != "naive":
        raise ConfigError(
            f"--observer {observer} needs --baseline naive: {baseline} sets ranges its own way"
        )


def split_names(text: str) -> tuple[str, ...]:
    """Words between commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def layer_names(text: str) -> frozenset[str]:
    """Linears by comma: `blocks.7.fc2` is short for `blocks.7.mlp.fc2`.

    Raises:
        ConfigError: a word that names no linear.
    """
    names = set()
    for word in split_names(text):
        match = re.fullmatch(r"blocks\.(\d+)\.(?:attn\.|mlp\.)?(qkv|out_proj|fc1|fc2)", word)
        if match is None:
            raise ConfigError(
                f"--keep-float {word}: write blocks.I.ROLE with ROLE in qkv, out_proj, fc1, fc2, "
                f"several by comma, or {AUTO}"
            )
        part = "attn" if match[2] in ("qkv", "out_proj") else "mlp"
        names.add(f"blocks.{int(match[1])}.{part}.{match[2]}")
    return frozenset(names)


def _bit_widths(bits: str) -> tuple[int, int]:
    match = re.fullmatch(r"[wW]([2-8])[aA]([2-8])", bits)
    if match is None:
        raise ConfigError(
            f"--bits {bits}: write W<weights>A<activations> with 2 to 8 bits each, for example W8A8"
        )
    return int(match[1]), int(match[2])


def check_seed(seed: int) -> None:
    """Raise ConfigError where numpy's generators would refuse `seed`."""
    _in_range("--seed", seed, 0, 2**32 - 1)


def _in_range(option: str, value: int | None, low: int, high: int | None = None) -> None:
    if value is None or (value >= low and (high is None or value <= high)):
        return
    limits = f"at least {low}" if high is None else f"{low} to {high}"
    raise ConfigError(f"{option} {value} is out of range: take {limits}")
