"""A fixed set of images under any quantized encoder; finished embeddings are kept like trials."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
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
from ..work.workers import Place, Team
from .graph_cost import Operators
from .problem import register_hash

KINDS = tuple(f.name for f in fields(Operators))


@dataclass(frozen=True)
class Embedding:
    """What a set is embedded with: plain values, for any process.

    Attributes:
        baseline: None stays in floating point.
        config: None and an empty one have neither prefix nor deletion.
        register: block -> vector `[D]` of the choice's target block.
        merge: tokens are merged so, in the calibration, too.
    """

    baseline: Baseline | None = None
    config: RegCacheConfig | None = None
    register: Mapping[int, Tensor] = field(default_factory=dict)
    merge: Merge | None = None

    def key(self) -> dict[str, Any]:
        """What decides the embeddings, as JSON values."""
        if self.config is None:
            return {}
        if self.baseline is None:
            register = register_hash(self.register)
            return {"config": self.config.to_json(), "register": register, "quantizer": "none"}
        key = {
            "quantizer": self.baseline.identity(),
            "config": self.config.to_json(),
            "register": register_hash(self.register if self.config.has_prefix else {}),
        }
        return key if self.merge is None else key | {"merge": asdict(self.merge)}

    def calibrate(self, encoder: Encoder, tokens: Tensor) -> Calibration:
        """The encoder so, calibrated on `tokens [c, N, D]`."""
        register = {block: vector.to(encoder.device) for block, vector in self.register.items()}
        if self.baseline is None or self.config is None:
            regcache = None if self.config is None else RegCache(self.config, register)
            return Calibration(encoder, Quantization(), regcache)
        merging = encoder.merging(self.merge)
        return calibrate_corner(self.baseline, merging, tokens, self.config, register)


@dataclass(frozen=True)
class EmbedSetup:
    """What an embedding is computed from; travels to workers.

    Attributes:
        encoder: in floating point.
        images: what is embedded.
        tokens: `[c, N, D]` of the calibration images at the input of block 0.
        batch_size: images per forward pass.
    """

    encoder: Encoder
    images: Images
    tokens: Tensor
    batch_size: int

    def to(self, device: torch.device) -> EmbedSetup:
        """The same on a device; the pixels stay where they are."""
        return replace(self, encoder=self.encoder.to(device), tokens=self.tokens.to(device))

    def open(self, place: Place) -> Callable[[Embedding], dict[str, Tensor]]:
        """A worker's own."""
        return self.to(place.device).embed

    @torch.no_grad()
    def embed(
        self, wanted: Embedding, advance: Callable[[int], None] = lambda n: None
    ) -> dict[str, Tensor]:
        """`features [n, E]`, `warnings` as UTF-8, and the linears of every kind of operators."""
        calibration = wanted.calibrate(self.encoder, self.tokens)
        found = simulate(calibration, self.images.batches(self.batch_size), advance)
        operators, linears = Operators.of(calibration), list(self.encoder.spec.linears())
        text = "\n".join(calibration.warnings).encode()
        return {
            "features": found,
            "warnings": torch.tensor(list(text), dtype=torch.uint8),
            **{
                kind: torch.tensor(
                    [linears.index(name) for name in getattr(operators, kind)], dtype=torch.int64
                )
                for kind in KINDS
            },
        }


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
        team: workers for `prepare`; None embeds one after the other, when it is asked for.
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
    team: Team | None = None

    warnings: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False)
    operators: dict[str, Operators] = field(default_factory=dict, init=False)
    _known: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.setup = EmbedSetup(self.encoder, self.images, self.tokens, self.batch_size)

    @property
    def float_features(self) -> Tensor:
        """Embeddings `[n, E]` of the float model."""
        return self._features("fp32", Embedding())

    def float_features_with(self, config: RegCacheConfig, register: Mapping[int, Tensor]) -> Tensor:
        """Embeddings `[n, E]` of the float model with RegCache."""
        return self._features("fp32 with RegCache", Embedding(None, config, register))

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
        return self._features(name, Embedding(baseline, config, register, merge))

    def prepare(self, wanted: Iterable[Embedding]) -> None:
        """Have the workers embed what will be asked for; without workers, nothing."""
        if self.team is None:
            return
        images, missing = self.images.fingerprint(), dict[str, Embedding]()
        for each in wanted:
            known = _name(each)
            if known in self._known or known in missing:
                continue
            found = self.cache.find("embedding", images=images, **each.key())
            if found is not None:
                self._known[known] = found
            else:
                register = {block: vector.cpu() for block, vector in each.register.items()}
                missing[known] = replace(each, register=register)
        if not missing:
            return
        names = list(missing)
        with self.reporter.stage(f"{self.title}: {len(names)} embeddings", len(names)) as advance:
            for place, part in self.team.answers(self.setup, list(missing.values())):
                key = missing[names[place]].key()
                self.cache.keep("embedding", part, 0, images=images, **key)
                self._known[names[place]] = part
                advance(1)

    def _features(self, name: str, wanted: Embedding) -> Tensor:
        def compute() -> dict[str, Tensor]:
            batches = -(-len(self.images) // self.batch_size)
            with self.reporter.stage(f"{self.title}: {name}", batches) as advance:
                return self.setup.embed(wanted, advance)

        known = _name(wanted)  # two corners may be the same choice
        if known not in self._known:
            images = self.images.fingerprint()
            self._known[known] = self.cache.part(
                "embedding", compute, images=images, **wanted.key()
            )
        part = self._known[known]
        self.warnings[name] = tuple(bytes(part["warnings"].tolist()).decode().splitlines())
        linears = list(self.encoder.spec.linears())
        names = {kind: tuple(linears[i] for i in part[kind].tolist()) for kind in KINDS}
        self.operators[name] = Operators(**names)
        return part["features"]


def _name(wanted: Embedding) -> str:
    return json.dumps(wanted.key(), sort_keys=True)
