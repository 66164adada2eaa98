"""Whole things, made once, whose copies are damaged: an encoder file, images, a finished run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from regcache_deploy.compat import import_open_clip
from regcache_engines.onnxruntime_session import import_onnxruntime

CLASSES = ("bus", "cat", "dog", "sun")
EACH = 16


@dataclass(frozen=True)
class Kit:
    """Paths of whole things; nobody writes to them.

    Attributes:
        encoder: three blocks, 32 x 24 pixels, random weights; an encoder file.
        images: four classes of 16 images.
        run: plan.json, plan.safetensors, and tiny.regcache with head and certificate.
    """

    encoder: Path
    images: Path
    run: Path


def make_kit(folder: Path) -> Kit:
    """Write them into a folder of their own, and import what commands import; ten seconds."""
    import_open_clip()  # an alarm in the middle of an import would leave half a module
    import_module("timm")
    import_module("torch._dynamo")
    import_onnxruntime()
    from regcache_deploy.bundling.certify import certify_bundle
    from regcache_deploy.encoders.encoder_file import EncoderFile, write_encoder
    from regcache_export.bundle import write_bundle
    from regcache_export.targets import GraphOptions
    from tests.bundling.certificate_helpers import calibration, pixels, plan_of
    from tests.tiny_plans import PREPROCESS, tame_encoder

    kit = Kit(folder / "encoder.safetensors", folder / "images", folder / "run")
    content = EncoderFile(tame_encoder(), dict(PREPROCESS), "Random weights.")
    write_encoder(kit.encoder, content)
    draw = np.random.default_rng(0)
    for name in CLASSES:
        (kit.images / name).mkdir(parents=True)
        for index in range(EACH):
            image = draw.integers(0, 256, (40, 36, 3), dtype=np.uint8)
            Image.fromarray(image).save(kit.images / name / f"{index:02}.png")
    kit.run.mkdir()
    calibrated = calibration()
    plan = replace(plan_of(calibrated), labels=CLASSES)
    bundle = write_bundle(plan, kit.run / "tiny.regcache")
    certify_bundle(bundle, plan, GraphOptions(), calibrated, pixels())
    plan.save(kit.run)
    return kit
