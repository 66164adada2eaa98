"""What is normal for a bundle's probes: how often its codes saturate on the calibration images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .bundle import MODEL, Bundle
from .engine import Array
from .errors import EngineError
from .onnxruntime_session import open_session


def probe_rates(
    bundle: Bundle, batches: Iterable[Array], threads: int | None = None
) -> dict[str, tuple[float, float]]:
    """Share of each probe's codes at the lowest and at the highest one, by graph output.

    The ends are told apart, because one may be full by nature: behind GELU, whose values end at
    -0.17, many codes are the lowest one, and they would hide an outlier at the other end.

    Args:
        bundle: exported with probes.
        batches: images as the bundle's graph takes them.
        threads: inside an operator; None takes one per physical core.

    Raises:
        EngineError: the bundle has no probes, or ONNX Runtime failed.
    """
    probes: list[dict[str, Any]] = bundle.manifest["graph"].get("probes", [])
    if not probes:
        raise EngineError(f"{bundle.path} has no probes; export it with --probes 3")
    outputs = [probe["output"] for probe in probes]
    saturated, seen = np.zeros((len(probes), 2)), np.zeros(len(probes))
    session = open_session(bundle.read(MODEL), threads=threads)
    name = session.get_inputs()[0].name
    try:
        for images in batches:
            for i, codes in enumerate(session.run(outputs, {name: images})):
                for end, code in enumerate(("low", "high")):
                    saturated[i, end] += np.count_nonzero(codes == probes[i][code])
                seen[i] += codes.size
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise EngineError(f"ONNX Runtime failed on {bundle.model_path}: {error}") from error
    if not seen.all():
        raise EngineError("no image to measure the probes with")
    rates = (saturated / seen[:, None]).tolist()
    return {output: (low, high) for output, (low, high) in zip(outputs, rates, strict=True)}
