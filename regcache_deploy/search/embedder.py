"""A fixed set of images under any quantized encoder; finished embeddings are kept like trials."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regcache_export.merge import Merge

from ..data.images import Images
from ..encoders.canonical import Encoder
from ..encoders.regcache import RegCache, RegCacheConfig
from ..evaluation.corners import calibrate_corner, simulate
from ..quantization.baselines import Baseline
from ..quantization.simulate import Calibration, Quantization
from ..work.cache import PartCache
from ..work.progress import Reporter
from .graph_cost import Operators
from .problem import register_hash

KINDS = tuple(f.name for f in fields(Operators))


@dataclass
class Embedder:
    """Embeds one image set.

    Attributes:
        title: of the images, for progress.
        encoder: in floating point.
        images: what is embedded.
        tokens: `[c, N, D]` of the calibration images at the input of block 0.
        cache: keeps embeddings.
        batch_size: images per forward pass.
        reporter: shows progress.
        warnings: of the calibrations, by the name of what was embedded; also where the embedding
            was finished before.
        operators: the same for what each calibration adds to the plain graph.
    """

    title: str
    encoder: Encoder
    images: Images
    tokens: Tensor
    cache: PartCache
    batch_size: int
    reporter: Reporter

    warnings: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False)
    operators: dict[str, Operators] = field(default_factory=dict, init=False)
    _known: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @property
    def float_features(self) -> Tensor:
        """Embeddings `[n, E]` of the float model."""
        return self._features("fp32", lambda: Calibration(self.encoder, Quantization()))

    def float_features_with(self, config: RegCacheConfig, register: Mapping[int, Tensor]) -> Tensor:
        """Embeddings `[n, E]` of the float model with RegCache."""
        key = {"config": config.to_json(), "register": register_hash(register)}
        regcache = RegCache(config, dict(register))
        return self._features(
            "fp32 with RegCache",
            lambda: Calibration(self.encoder, Quantization(), regcache),
            quantizer="none",
            **key,
        )

    def features(
        self,
        name: str,
        baseline: Baseline,
        config: RegCacheConfig,
        register: Mapping[int, Tensor],
        merge: Merge | None = None,
    ) -> Tensor:
        """Embeddings `[n, E]` with the whole encoder calibrated for one choice.

        Args:
            merge: tokens are merged so, in the calibration, too.
        """
        key = {
            "quantizer": baseline.identity(),
            "config": config.to_json(),
            "register": register_hash(register if config.has_prefix else {}),
        }
        if merge is not None:
            key["merge"] = asdict(merge)
        encoder = self.encoder.merging(merge)
        calibrate = partial(
            calibrate_corner, baseline, encoder, self.tokens, config, dict(register)
        )
        return self._features(name, calibrate, **key)

    def _features(self, name: str, calibrate: Any, **key: Any) -> Tensor:
        def compute() -> dict[str, Tensor]:
            batches = -(-len(self.images) // self.batch_size)
            with self.reporter.stage(f"{self.title}: {name}", batches) as advance:
                calibration = calibrate()
                found = simulate(calibration, self.images.batches(self.batch_size), advance)
            text = "\n".join(calibration.warnings).encode()
            operators = Operators.of(calibration)
            return {
                "features": found,
                "warnings": torch.tensor(list(text), dtype=torch.uint8),
                **{kind: self._indices(getattr(operators, kind)) for kind in KINDS},
            }

        known = json.dumps(key, sort_keys=True)  # two corners may be the same choice
        if known not in self._known:
            images = self.images.fingerprint()
            self._known[known] = self.cache.part("embedding", compute, images=images, **key)
        part = self._known[known]
        self.warnings[name] = tuple(bytes(part["warnings"].tolist()).decode().splitlines())
        linears = list(self.encoder.spec.linears())
        names = {kind: tuple(linears[i] for i in part[kind].tolist()) for kind in KINDS}
        self.operators[name] = Operators(**names)
        return part["features"]

    def _indices(self, names: tuple[str, ...]) -> Tensor:
        linears = list(self.encoder.spec.linears())
        return torch.tensor([linears.index(name) for name in names], dtype=torch.int64)
