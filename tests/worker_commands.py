"""What `eval`, `calibrate` and `embed` find, without times: by one process or by workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from regcache_deploy.bundling.certify import certify_bundle
from regcache_deploy.cli.main import main
from regcache_deploy.quantization.plan import calibration_of
from regcache_export.bundle import write_bundle
from regcache_export.targets import GraphOptions
from tests.tiny_plans import tiny_plan

COMMANDS = ("eval", "calibrate", "embed")


def write_run(folder: Path) -> None:
    """A certified bundle with its plan beside it, and fourteen images of two classes."""
    plan, options = tiny_plan(), GraphOptions()
    plan.save(folder)
    path = write_bundle(plan, folder / "t.regcache", options=options)
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (6, 32, 24, 3), dtype=torch.uint8, generator=generator)
    certify_bundle(path, plan, options, calibration_of(plan), pixels)
    draw = np.random.default_rng(0)
    for index in range(14):
        place = folder / "data" / ("cat", "dog")[index % 2] / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(place)


def found_by(command: str, run: Path, output: Path, capsys: Any, *more: str) -> Any:
    """The JSON of a command and the files that it wrote, as far as they hold no times."""
    words = ["--data", str(run / "data"), "--batch-size", "3", "--threads", "1", "--json", "-q"]
    if command == "eval":
        runners = "fp32,baseline,simulated,onnxruntime"
        words = ["eval", str(run / "t.regcache"), "--on", runners, "--no-keep", *words]
    elif command == "calibrate":
        words = ["calibrate", str(run), "--observer", "mse", "--output", str(output), *words]
    else:
        words = ["embed", str(run / "t.regcache"), "--output", str(output), *words]
        words += ["--part-images", "4", "--metadata", "jsonl", "--decoders", "1"]
    assert main([*words, *more]) == 0
    document = json.loads(capsys.readouterr().out)
    if isinstance(document, dict):
        for name in ("seconds", "images_per_second", "peak_memory_bytes", "plan", "bundle"):
            document.pop(name, None)
        document.pop("output", None)
    timed = ("stats", "calibrated.regcache")
    files = [p for p in output.rglob("*") if p.is_file() and not set(timed) & set(p.parts)]
    return document, {str(p.relative_to(output)): p.read_bytes() for p in files}
