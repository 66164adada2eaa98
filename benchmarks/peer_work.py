"""The encoder, the images and our own files that `peers.py` compares on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from demo_card import register_at
from torch import Tensor

from regcache_deploy.bench.subjects import float_plan
from regcache_deploy.compat import import_open_clip
from regcache_deploy.data.demo_images import load_demo_images
from regcache_deploy.data.folder import load_folder
from regcache_deploy.data.images import Images
from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.load import DEMO, LoadedModel, load_model
from regcache_deploy.encoders.model import random_seed
from regcache_deploy.encoders.regcache import RegCacheConfig
from regcache_deploy.evaluation.corners import calibrate_corner
from regcache_deploy.evaluation.image_sets import load_image_sets
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.quantizers import Bits
from regcache_deploy.quantization.simulate import Calibration, Quantization
from regcache_deploy.quantization.tensorrt import for_tensorrt
from regcache_deploy.run.options import ExportOptions
from regcache_deploy.search.find import find_choice
from regcache_deploy.work.format import deletion_text
from regcache_deploy.work.progress import Reporter
from regcache_export.graph import build_model, serialize
from regcache_export.plan import Plan
from regcache_export.targets import GraphOptions

FIXED = RegCacheConfig(6, 4, 6, 5)
"""Prefix block, tau, delete block, k~ where nothing is searched: random weights have no sinks."""

NONE = RegCacheConfig(0, 0, 0, 0)


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
        seconds: file or tool -> seconds that it took to make.
        versions: of distributions in another environment.
    """

    model_name: str
    pretrained: str | None
    folder: Path
    baseline: str
    calibration_images: int
    images: int
    threads: int
    data: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
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
            calibration_images=self.calibration_images,
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
    def _images(self) -> tuple[Images, Images]:
        """Calibration and held-out images."""
        count, cfg = self.calibration_images, self.model.preprocess
        if self.data is None:
            return (
                load_demo_images("search", count, preprocess_cfg=cfg),
                load_demo_images("heldout", self.images, preprocess_cfg=cfg),
            )
        found = load_folder(self.data, cfg, count + self.images, 0, reporter=Reporter(quiet=True))
        return found.subset(slice(0, count)), found.subset(slice(count, None))

    @property
    def held_out(self) -> Images:
        return self._images[1]

    @cached_property
    def calibration(self) -> np.ndarray:
        """Normalized float32 `[n, 3, H, W]`."""
        images = self._images[0]
        array: np.ndarray = images.normalized(images.pixels).numpy()
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
        """Our own file: `portable`, `tuned`, `tensorrt` or `float`; `plain` or `regcache`."""
        plan = self.plan(graph, for_target=form)
        began = time.monotonic()
        path = self.folder / f"{form}_{graph}.onnx"
        target = {"tuned": "onnxruntime", "tensorrt": "tensorrt"}.get(form, "onnx")
        model = build_model(
            float_plan(plan) if form == "float" else plan, options=GraphOptions(target=target)
        )
        path.write_bytes(serialize(model))
        made = self.seconds["choice"] if graph == "regcache" else 0.0
        made += self.seconds[f"plan_{graph}_{self._kind(form)}"]
        self.seconds[path.stem] = made + time.monotonic() - began
        return path

    @cached_property
    def regcache_choice(self) -> tuple[RegCacheConfig, dict[int, Tensor]]:
        """RegCache's numbers and register: searched on the demo, fixed for random weights."""
        began = time.monotonic()
        with torch.no_grad():
            if self.model.is_random:
                images = torch.from_numpy(self.calibration)
                config = FIXED
                register = register_at(self.model.encoder, images, FIXED.prefix_block)
            else:
                reporter = Reporter(quiet=True)
                sets = load_image_sets(self.options, self.model, reporter)
                quantizer = make_baseline(self.baseline, Bits(8, 8))
                found = find_choice(self.options, quantizer, self.model.encoder, sets, reporter)
                config, register = found.result.best, found.register
        self.seconds["choice"] = time.monotonic() - began
        return config, register

    def plan(self, graph: str, for_target: str = "portable") -> Plan:
        """Our quantizer's plan, `plain` or with `regcache`; made once for each kind of target."""
        key = f"plan_{graph}_{self._kind(for_target)}"
        if key not in self._plans:
            config, register = NONE, dict[int, Tensor]()
            if graph == "regcache":
                config, register = self.regcache_choice
            began = time.monotonic()
            with torch.no_grad():
                self._plans[key] = self._make_plan(
                    config, register, self._kind(for_target) == "tensorrt"
                )
            self.seconds[key] = time.monotonic() - began
        return self._plans[key]

    def _kind(self, form: str) -> str:
        return "tensorrt" if form == "tensorrt" else "cpu"

    def _make_plan(
        self, config: RegCacheConfig, register: dict[int, Tensor], tensorrt: bool
    ) -> Plan:
        encoder = self.model.encoder
        tokens = encoder.embed(torch.from_numpy(self.calibration))
        quantizer = make_baseline(self.baseline, Bits(8, 8))
        calibration = calibrate_corner(quantizer, encoder, tokens, config, register)
        if tensorrt:
            calibration = for_tensorrt(calibration, tokens)
        return make_plan(
            calibration,
            regcache_config=None if config.is_empty else config,
            preprocess=self.model.preprocess,
            provenance={"model": self.model_name, "baseline": self.baseline},
        )

    @property
    def choice(self) -> str:
        """The RegCache in words."""
        config = self.regcache_choice[0]
        how = "fixed, not searched" if self.model.is_random else "searched on 512 images"
        if config.is_empty:
            return f"no prefix and no deletion ({how})"
        return (
            f"prefix {config.prefix_count} from block {config.prefix_block}, "
            f"{deletion_text(config.to_json())} in block {config.delete_block} ({how})"
        )
