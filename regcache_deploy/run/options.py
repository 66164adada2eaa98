"""What the user asked `search` and `export` to do: the rooms' settings, put together."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regcache_export.fold_names import EXPORT_FOLDS
from regcache_export.targets import DEFAULT_TARGET, GraphOptions, find_target

from ..bundling.settings import GraphSettings
from ..data.settings import DEMO_DATA, ImageSettings
from ..encoders.settings import DEMO, ModelSettings
from ..errors import ConfigError
from ..quantization.settings import AUTO, QuantizerSettings
from ..search.settings import PAPER, REGCACHE, WAY_NAMES, FindSettings, MergeSettings
from ..work.paths import require_writable
from ..work.settings import one_of, setting


@dataclass(frozen=True)
class ExportOptions(
    ModelSettings, QuantizerSettings, ImageSettings, FindSettings, MergeSettings, GraphSettings
):
    """Settings of every room; a function that reads those of one room takes this object, too.

    Raises:
        ConfigError: a value is out of range, or two contradict each other.
    """

    recipe: str | None = setting(
        None,
        "how to reach the INT8 file: auto (race all ways), paper (RegCache as published), or one "
        f"way: {', '.join(WAY_NAMES)} (default: auto; regcache where its numbers, --keep-float or "
        "--strict-paper are given)",
        "NAME",
    )
    output: Path | None = setting(None, "result folder (default runs/MODEL-BASELINE)", "DIR")

    def __post_init__(self) -> None:
        ModelSettings.__post_init__(self)
        QuantizerSettings.__post_init__(self)
        ImageSettings.__post_init__(self)
        FindSettings.__post_init__(self)
        MergeSettings.__post_init__(self)
        GraphSettings.__post_init__(self)
        if self.recipe is not None:
            one_of("--recipe", self.recipe, (AUTO, PAPER, *WAY_NAMES))
            self._check_recipe(self.recipe)
        self.graph  # noqa: B018  (names are checked where they are read)
        if self.strict_paper and self.probes:
            raise ConfigError("--strict-paper does not go with --probes; take one of them")
        if self.strict_paper and self.target != DEFAULT_TARGET:
            raise ConfigError(
                f"--strict-paper needs --target {DEFAULT_TARGET}, not '{self.target}': published "
                "quantizers are built from standard operators"
            )

        if self.merge is not None and self.strict_paper:
            raise ConfigError("--merge does not go with --strict-paper; take one of them")
        form = find_target(self.target).form
        if self.merge == AUTO and form == "tensorrt" and self.latency is None:
            raise ConfigError(
                f"--merge auto measures in ONNX Runtime, which says nothing of {self.target}; take "
                "a schedule, or give --latency with figures from the GPU"
            )

    def _check_recipe(self, recipe: str) -> None:
        """A way without RegCache has no use for its numbers."""
        if recipe in (AUTO, PAPER) or recipe.startswith(REGCACHE):
            return
        for name in ("prefix_block", "prefix_count", "delete_count", "range_delete_count"):
            if getattr(self, name):  # 0 says what such a way does
                raise ConfigError(
                    f"--recipe {recipe} has no RegCache, and --{name.replace('_', '-')} is a "
                    "number of it; take one of them"
                )

    def check_paths(self) -> None:
        """Look at the folders, not into them.

        Raises:
            DataError: an image folder is not there.
            ConfigError: no images for an encoder that the demo's say nothing about, or the result
                folder could not be written.
        """
        if self.data is None and self.model.partition("-")[0] != DEMO:
            raise ConfigError(
                f"--model {self.model} needs --data DIR: images of what it was trained for, one "
                "folder per class or a flat folder. The demo's two-digit numbers tell nothing "
                f"about it; --data {DEMO_DATA} takes them all the same"
            )
        self.check_folders()
        require_writable(self.output_dir)

    def check_read(self) -> None:
        """Refuse what a user gave and nothing would read; a finished run may have it in its plan.

        Raises:
            ConfigError: such an option.
        """
        for name, read, needs in (
            ("budget", self.keep_float == AUTO, "--keep-float auto"),
            ("max_drop", self.merge == AUTO, "--merge auto"),
            ("merge_metric", self.merge is not None, "--merge"),
            ("budget_fraction", self.strategy == "default", "--strategy default"),
        ):
            if not read and getattr(self, name) != getattr(ExportOptions, name):
                raise ConfigError(f"--{name.replace('_', '-')} needs {needs}; leave it out")
        one_count = not self.two_counts or self.recipe == PAPER
        absent = self.range_delete_count
        if one_count and absent is not None and absent != self.delete_count:
            why = "--recipe paper" if self.two_counts else "--no-two-counts"
            raise ConfigError(
                f"--range-delete-count {absent} does not go with {why}, where --delete-count is "
                "that of the ranges, too"
            )

    @property
    def chosen_recipe(self) -> str:
        """The recipe; where none is named, what the user fixed leaves one way."""
        numbers = (self.prefix_count, self.delete_count, self.range_delete_count)
        fixed = any(number is not None for number in numbers)
        if self.recipe is not None:
            return self.recipe
        return REGCACHE if fixed or self.keep_float or self.strict_paper else AUTO

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
