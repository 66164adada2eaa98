"""A certified bundle with images, and the commands that an installation for bundles alone runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from regcache_deploy.bundling.certify import certify_bundle
from regcache_export.bundle import write_bundle
from regcache_export.targets import GraphOptions
from tests.bundling.certificate_helpers import calibration, pixels, plan_of
from tests.tiny_text import with_text

COMMANDS = tuple(
    tuple(line.split())
    for line in (
        "verify t.regcache",
        "bench t.regcache --compare int8 --rounds 2 --batch 1,2 --engine onnxruntime",
        "eval t.regcache --images data/cat/0.png data/dog/1.png",
        "eval t.regcache --data data",
        "eval t.regcache --data data --task knn --train-data train",
        "eval t.regcache --data data --task instances",
        "inspect t.regcache",
        "embed t.regcache --data data --output embeddings --metadata jsonl",
        "doctor",
    )
)
"""To be run in the folder that `deployed_folder` fills."""

TEXT_COMMANDS = tuple(
    tuple(line.split())
    for line in (
        "head t.regcache --classes cat,dog,beach,four --output head.safetensors",
        "eval t.regcache --data data --head head.safetensors",
        "eval t.regcache --images data/cat/0.png --head head.safetensors",
    )
)
"""The same, in this order, with `tokenizers`."""


def deployed_folder(place: Path) -> Path:
    """`t.regcache`, certified, with a text tower, its plan, and images of three classes twice."""
    calibrated, options = calibration(), GraphOptions()
    plan = replace(plan_of(calibrated), labels=("cat", "dog", "été", "four"))
    plan.save(place)
    made = write_bundle(plan, place / "t.regcache", options=options)
    with_text(made, plan.encoder.output_dim)
    certify_bundle(made, plan, options, calibrated, pixels())
    draw = np.random.default_rng(0)
    for name in ("cat", "dog", "four"):
        (place / "data" / name).mkdir(parents=True)
        for index in range(4):
            image = draw.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(image).save(place / "data" / name / f"{index}.png")
    shutil.copytree(place / "data", place / "train")
    return place
