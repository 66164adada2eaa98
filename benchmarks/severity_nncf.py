"""NNCF on an encoder, in an interpreter of its own; run as a script, this file is that side.

PYTHON severity_nncf.py FP32.onnx CALIBRATION.npy IMAGES.npy FEATURES.npy on|off
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from regcache_deploy.data.images import Images
    from regcache_deploy.encoders.canonical import Encoder


class NncfFailed(Exception):
    """Why there are no features."""


def nncf_features(
    encoder: Encoder,
    preprocess: Mapping[str, Any],
    search: Images,
    calibration_count: int,
    judge: Images,
    smooth: bool,
    python: str | None,
) -> Tensor:
    """Features `[n, E]` of `judge` by NNCF's W8A8 file in OpenVINO.

    Raises:
        NncfFailed: no interpreter, or it ended with an error.
    """
    import torch

    from regcache_deploy.quantization.plan import make_plan
    from regcache_deploy.quantization.simulate import Calibration, Quantization
    from regcache_export.graph import build_model, serialize
    from regcache_export.targets import GraphOptions

    if python is None:
        raise NncfFailed("pass --nncf-python")
    with tempfile.TemporaryDirectory(prefix="regcache-severity-") as scratch:
        folder = Path(scratch)
        plan = make_plan(Calibration(encoder, Quantization()), preprocess=preprocess)
        graph = build_model(plan, options=GraphOptions(without=("cls-only",)))
        model, first, images, out = (
            folder / name for name in ("fp32.onnx", "calibration.npy", "images.npy", "features.npy")
        )
        model.write_bytes(serialize(graph))
        np.save(first, search.normalized(search.pixels[:calibration_count]).numpy())
        np.save(images, judge.normalized(judge.pixels).numpy())
        command = [python, __file__, *map(str, (model, first, images, out))]
        done = subprocess.run(
            [*command, "on" if smooth else "off"], capture_output=True, text=True, check=False
        )
        if done.returncode or not out.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise NncfFailed(lines[-1] if lines else f"ended with {done.returncode}")
        return torch.from_numpy(np.load(out))


def main(model: str, calibration: str, images: str, out: str, smooth: str) -> None:
    import nncf
    import openvino

    keywords: dict[str, Any] = {}
    if smooth == "off":
        alphas = nncf.AdvancedSmoothQuantParameters(matmul=-1)
        keywords["advanced_parameters"] = nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=alphas
        )
    first = np.load(calibration)
    quantized = nncf.quantize(
        openvino.Core().read_model(model),
        nncf.Dataset([image[None] for image in first]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(first),
        **keywords,
    )
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(quantized, "CPU", hint).create_infer_request()
    found = [request.infer([image[None]])[0].copy() for image in np.load(images, mmap_mode="r")]
    np.save(out, np.concatenate(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
