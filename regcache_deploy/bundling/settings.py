"""How the graph is written."""

from __future__ import annotations

from dataclasses import dataclass

from regcache_export.targets import DEFAULT_TARGET, TARGETS

from ..work.settings import in_range, setting


@dataclass(frozen=True)
class GraphSettings:
    """Form of the graph and what travels with it; `ExportOptions.graph` checks the words."""

    target: str = setting(DEFAULT_TARGET, f"form of the graph: {', '.join(TARGETS)}", "NAME")
    bake_preprocess: str | None = setting(
        None,
        "the graph takes uint8 pixels [B, 3, H, W] or [B, H, W, 3], mean and std folded in",
        "nchw|nhwc",
    )
    batch: int | None = setting(None, "fixed batch size of the graph (default: any)", "N")
    probes: int = setting(0, "outputs for the outlier monitor, 0 to 3", "N")
    text: bool = setting(True, "write the text tower and its tokenizer, too")
    certificate_images: int = setting(
        32, "calibration images that travel in the bundle, for `regcache verify`", "N"
    )

    def __post_init__(self) -> None:
        in_range("--certificate-images", self.certificate_images, 1)
