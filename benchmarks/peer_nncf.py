"""NNCF at its best: SmoothQuant off, or on with one of three strengths, chosen on search images.

NNCF leaves the strength to its user (0.95 is its default for products). It is chosen as our own way
is: on the search images, by the objective of our search, the nearer features among equals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peer_work import Work

from regcache_deploy.evaluation import Score

SMOOTHING: dict[str, float] = {
    "without SmoothQuant": -1.0,
    "SmoothQuant alpha 0.5": 0.5,
    "SmoothQuant alpha 0.75": 0.75,
    "SmoothQuant alpha 0.95": 0.95,
}
"""Name -> alpha of matrix products; a negative one turns it off."""


def best_nncf(work: Work) -> Path:
    """The file, and the choice in `work.notes["nncf"]`."""
    if "nncf" in work.files:
        return work.files["nncf"]
    import openvino

    scores: dict[str, Score] = {}
    paths: dict[str, Path] = {}
    for name, alpha in SMOOTHING.items():
        paths[name] = work.folder / f"nncf_{alpha:g}.xml"
        model = _quantize(work, alpha)
        openvino.save_model(model, str(paths[name]), compress_to_fp16=False)
        scores[name] = work.sets.objective.score(_features(work, model))
    best = max(scores, key=lambda name: scores[name].key)
    values = ", ".join(f"{name} {score.value:.4f}" for name, score in scores.items())
    images = len(work.sets.search)
    work.notes["nncf"] = f"{best}, by {work.sets.objective.name} on {images} images ({values})"
    work.files["nncf"] = paths[best]
    return paths[best]


def _quantize(work: Work, alpha: float) -> Any:
    import nncf
    import openvino

    alphas = nncf.AdvancedSmoothQuantParameters(matmul=alpha)
    return nncf.quantize(
        openvino.Core().read_model(str(work.float_model)),
        nncf.Dataset([image[None] for image in work.calibration]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(work.calibration),
        advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=alphas),
    )


def _features(work: Work, model: Any) -> torch.Tensor:
    """Features `[n, E]` of the search images."""
    import openvino

    properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": work.threads}
    request = openvino.Core().compile_model(model, "CPU", properties).create_infer_request()
    images = work.sets.search
    found = [
        torch.from_numpy(request.infer([images.normalized(pixels).numpy()])[0].copy())
        for pixels in images.pixels.split(1)
    ]
    return torch.cat(found)
