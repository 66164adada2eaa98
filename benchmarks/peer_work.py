"""The encoder, the images and our own files that `peers.py` compares on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from demo_card import register_at
from torch import Tensor

from regcache_deploy.bench.subjects import float_plan
from regcache_deploy.compat import import_open_clip
from regcache_deploy.data.images import Images
from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.load import DEMO, LoadedModel, load_model
from regcache_deploy.encoders.names import random_seed
from regcache_deploy.encoders.regcache import RegCacheConfig
from regcache_deploy.evaluation.corners import calibrate_corner
from regcache_deploy.evaluation.image_sets import ImageSets, load_image_sets
from regcache_deploy.quantization.baselines import Baseline, make_baseline
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.quantizers import Bits
from regcache_deploy.quantization.simulate import Calibration, Quantization
from regcache_deploy.quantization.tensorrt import for_tensorrt
from regcache_deploy.run.options import ExportOptions
from regcache_deploy.search.embedder import Embedder
from regcache_deploy.search.find import find_choice
from regcache_deploy.search.way_race import race_ways
from regcache_deploy.search.ways import ways_of
from regcache_deploy.work.format import deletion_text
from regcache_deploy.work.progress import Reporter
from regcache_export.graph import build_model, serialize
from regcache_export.plan import Plan
from regcache_export.targets import GraphOptions

FIXED = RegCacheConfig(6, 4, 6, 5)
"""Prefix block, tau, delete block, k~ where nothing is searched: random weights have no sinks."""

NONE = RegCacheConfig(0, 0, 0, 0)


@dataclass(frozen=True)
class Choice:
    """What one of our own files is made with.

    Attributes:
        register: of `config.prefix_block`; empty without a prefix.
        layer: the sensitive one; empty where it was not asked for.
    """

    baseline: Baseline
    config: RegCacheConfig
    register: dict[int, Tensor]
    layer: str


class EncoderModule(torch.nn.Module):
    """The canonical encoder, for models whose weights were edited after loading."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images)


@dataclass
class Work:
    """One encoder with images, and the files that our own tools make of it.

    Attributes:
        folder: where every file goes.
        baseline: our quantizer.
        calibration_images: how many images every tool calibrates on: the same ones.
        images: how many held-out images accuracy is measured on.
        data: folder of images; None draws the demo's canvases, at the encoder's own input size.
        search_images: that choices are made on; the first ones calibrate. With random weights,
            whose accuracy is chance, the calibration images are all there are.
        seconds: file or tool -> seconds that it took to make.
        versions: of distributions in another environment.
        notes: tool -> what it chose.
        files: tool -> file of its choice, where several rows run it.
    """

    model_name: str
    pretrained: str | None
    folder: Path
    baseline: str
    calibration_images: int
    images: int
    threads: int
    data: Path | None = None
    search_images: int = 512
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    _plans: dict[str, Plan] = field(default_factory=dict)

    @cached_property
    def model(self) -> LoadedModel:
        return load_model(self.model_name, self.pretrained)

    @cached_property
    def options(self) -> ExportOptions:
        return ExportOptions(
            baseline=self.baseline,
            model=self.model_name,
            pretrained=self.pretrained,
            data=self.data,
            calibration_images=self.calibration_images,
            search_images=self.calibration_images if self.model.is_random else self.search_images,
            limit=self.images,
            threads=self.threads,
        )

    @cached_property
    def module(self) -> torch.nn.Module:
        """The image tower as open_clip builds it, or our encoder where it builds none."""
        if self.model_name == DEMO:
            from regcache_deploy.demo.model import load_demo

            visual: torch.nn.Module = load_demo().visual
            return visual
        open_clip = import_open_clip()
        if self.model_name not in open_clip.list_models():
            return EncoderModule(self.model.encoder)
        seed = random_seed(self.pretrained)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed or 0)
            tag = None if seed is not None else self.pretrained
            model = open_clip.create_model(self.model_name, pretrained=tag, precision="fp32")
        tower: torch.nn.Module = model.visual.eval().requires_grad_(False)
        return tower

    @cached_property
    def sets(self) -> ImageSets:
        """Search and held-out images, and the objective over the first."""
        return load_image_sets(self.options, self.model, Reporter(quiet=True))

    @property
    def held_out(self) -> Images:
        return self.sets.evaluation

    @cached_property
    def calibration(self) -> np.ndarray:
        """Normalized float32 `[n, 3, H, W]`."""
        images = self.sets.search
        array: np.ndarray = images.normalized(images.pixels[: self.calibration_images]).numpy()
        return array

    @cached_property
    def head(self) -> Tensor | None:
        """Zero-shot head of the held-out images' classes, where the encoder has a text side."""
        images = self.held_out
        if images.labels is None or self.model.text_head is None or self.model.is_random:
            return None
        return self.model.text_head(images.class_names, Reporter(quiet=True))

    def batch(self, size: int) -> np.ndarray:
        """A batch to time: held-out images, repeated where there are fewer."""
        pixels = self.held_out.pixels[torch.arange(size) % len(self.held_out)]
        array: np.ndarray = self.held_out.normalized(pixels).numpy()
        return array

    @cached_property
    def float_model(self) -> Path:
        """The encoder as it is, written by our exporter, with no fold that drops tokens."""
        began = time.monotonic()
        plan = make_plan(
            Calibration(self.model.encoder, Quantization()), preprocess=self.model.preprocess
        )
        path = self.folder / "fp32.onnx"
        path.write_bytes(serialize(build_model(plan, options=GraphOptions(without=("cls-only",)))))
        self.seconds["fp32"] = time.monotonic() - began
        return path

    def ours(self, form: str, graph: str) -> Path:
        """Our own file: `portable`, `tuned`, `tensorrt`, `float`; `plain`, `regcache`, `auto`."""
        plan = self.plan(graph, for_target=form)
        began = time.monotonic()
        path = self.folder / f"{form}_{graph}.onnx"
        target = {"tuned": "onnxruntime", "tensorrt": "tensorrt"}.get(form, "onnx")
        model = build_model(
            float_plan(plan) if form == "float" else plan, options=GraphOptions(target=target)
        )
        path.write_bytes(serialize(model))
        made = self.seconds.get(f"choice_{graph}", 0.0)  # nothing is chosen for a plain one
        made += self.seconds[f"plan_{graph}_{self._kind(form)}"]
        self.seconds[path.stem] = made + time.monotonic() - began
        return path

    @cached_property
    def published(self) -> Choice:
        """RegCache as published: one delete count; searched, or fixed for random weights."""
        began = time.monotonic()
        quantizer = make_baseline(self.baseline, Bits(8, 8))
        with torch.no_grad():
            if self.model.is_random:
                config, layer = FIXED, f"blocks.{FIXED.delete_block}.mlp.fc2"
                images = torch.from_numpy(self.calibration)
                register = register_at(self.model.encoder, images, FIXED.prefix_block)
            else:
                config, register, layer = self._search(quantizer, two_counts=False)
        self.seconds["choice_regcache"] = time.monotonic() - began
        return Choice(quantizer, config, register, layer)

    @cached_property
    def raced(self) -> Choice:
        """`--recipe auto`: the best of all ways on the search images; names it in `notes`."""
        began = time.monotonic()
        quantizer, encoder, sets = (
            make_baseline(self.baseline, Bits(8, 8)),
            self.model.encoder,
            self.sets,
        )
        with torch.no_grad():
            if self.model.is_random:
                published = self.published
                config, register, layer = published.config, published.register, published.layer
            else:
                config, register, layer = self._search(quantizer, two_counts=True)
            tokens, quiet = sets.calibration_tokens, Reporter(quiet=True)
            searched = Embedder("search", encoder, sets.search, tokens, sets.cache, 32, quiet)
            ways = ways_of(quantizer, config, layer, encoder.spec)
            race = race_ways(ways, searched, register, sets.objective, sets.cache.work, 0)
        way = next(each.way for each in race.raced if each.chosen)
        self.notes["auto"] = f"{way.title}, by {sets.objective.name} on {len(sets.search)} images"
        self.seconds["choice_auto"] = time.monotonic() - began
        return Choice(way.baseline, way.config, register, layer)

    def _search(
        self, quantizer: Baseline, two_counts: bool
    ) -> tuple[RegCacheConfig, dict[int, Tensor], str]:
        options = replace(self.options, two_counts=two_counts)
        sets = self.sets.for_another_search(self.model.encoder.spec.depth)
        quiet = Reporter(quiet=True)
        found = find_choice(options, quantizer, self.model.encoder, sets, quiet)
        return found.result.best, found.register, found.sensitivity.layer

    def plan(self, graph: str, for_target: str = "portable") -> Plan:
        """Our plan, `plain`, `regcache` or `auto`; made once for each kind of target."""
        key = f"plan_{graph}_{self._kind(for_target)}"
        if key not in self._plans:
            choice = self._choice(graph)
            began = time.monotonic()
            with torch.no_grad():
                self._plans[key] = self._make_plan(choice, self._kind(for_target) == "tensorrt")
            self.seconds[key] = time.monotonic() - began
        return self._plans[key]

    def _choice(self, graph: str) -> Choice:
        if graph == "plain":
            return Choice(make_baseline(self.baseline, Bits(8, 8)), NONE, {}, "")
        return self.raced if graph == "auto" else self.published

    def _kind(self, form: str) -> str:
        return "tensorrt" if form == "tensorrt" else "cpu"

    def _make_plan(self, choice: Choice, tensorrt: bool) -> Plan:
        tokens, config = self.sets.calibration_tokens, choice.config
        calibration = calibrate_corner(
            choice.baseline, self.model.encoder, tokens, config, choice.register
        )
        if tensorrt:
            calibration = for_tensorrt(calibration, tokens)
        return make_plan(
            calibration,
            regcache_config=None if config.is_empty else config,
            preprocess=self.model.preprocess,
            provenance={"model": self.model_name, "baseline": self.baseline},
        )

    @property
    def published_words(self) -> str:
        """The published RegCache in words."""
        return self._words(self.published.config)

    @property
    def raced_words(self) -> str:
        """The way that won, and its RegCache in words."""
        return f"{self.notes['auto']}; {self._words(self.raced.config)}"

    def _words(self, config: RegCacheConfig) -> str:
        fixed = "fixed, not searched"
        how = fixed if self.model.is_random else f"searched on {len(self.sets.search)} images"
        if config.is_empty:
            return f"no prefix and no deletion ({how})"
        return (
            f"prefix {config.prefix_count} from block {config.prefix_block}, "
            f"{deletion_text(config.to_json())} in block {config.delete_block} ({how})"
        )
