"""What is timed: the files of a bundle, one for each precision, and images for them.

The float file is written from the plan that lies beside the bundle: the same encoder, the same
exact folds and the same operators, without quantizers, prefix and deletion. It is what a user would
deploy instead, and it computes what the encoder computed before. Dequantizing the bundle's own
graph would give a float file, too, but one with the quantized weights, so it would have the right
speed and the wrong features; it is not done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regcache_engines.bundle import MODEL, Bundle
from regcache_engines.errors import BundleError, ConfigError
from regcache_engines.files import atomic_write_bytes
from regcache_export.bundle_graph import graph_options, image_size
from regcache_export.plan import Plan
from regcache_export.plan_beside import load_plan
from regcache_export.targets import GraphOptions

from ..compat import require

Array = npt.NDArray[Any]

PRECISIONS = ("fp32", "fp16", "int8")

FLOAT_FILE = (
    "written from the plan beside the bundle: the same encoder and folds, without quantizers and "
    "without RegCache"
)


@dataclass(frozen=True)
class Subject:
    """One file to time.

    Attributes:
        name: of the bundle.
        precision: of `PRECISIONS`.
        path: ONNX file, or None.
        reason: why there is none.
        options: how its graph is written.
        manifest: of the bundle.
        preprocess: of the bundle.
    """

    name: str
    precision: str
    path: Path | None
    reason: str
    options: GraphOptions
    manifest: Mapping[str, Any] = field(repr=False)
    preprocess: Mapping[str, Any] = field(repr=False)

    @property
    def label(self) -> str:
        return f"{self.name} {self.precision}"


def subjects_of(
    bundle: Bundle,
    precisions: tuple[str, ...],
    scratch: Path,
    plan_folder: Path | None = None,
    float_file: Path | None = None,
    must: bool = False,
) -> list[Subject]:
    """The files of one bundle.

    Args:
        bundle: open.
        precisions: of `PRECISIONS`, in this order.
        scratch: folder for files that have to be written.
        plan_folder: where plan.json is; None looks beside the bundle.
        float_file: an ONNX file to take for fp32 in place of one from the plan.
        must: a file that cannot be had is an error, not a reason.

    Raises:
        ConfigError: an unknown precision.
        BundleError: `must`, and a file cannot be had.
    """
    for precision in precisions:
        if precision not in PRECISIONS:
            raise ConfigError(
                f"--compare {precision}: take any of {', '.join(PRECISIONS)}, by comma"
            )
    options = graph_options(bundle)
    name = bundle.path.resolve().name.removesuffix(".regcache")
    found = []
    for precision in precisions:
        path, reason = None, ""
        try:
            path = _file(bundle, name, precision, options, scratch, plan_folder, float_file)
        except BundleError as error:
            if must:
                raise
            reason = str(error)
        found.append(
            Subject(name, precision, path, reason, options, bundle.manifest, bundle.preprocess)
        )
    return found


def float_plan(plan: Plan) -> Plan:
    """The encoder alone: no quantizers, no prefix, no deletion, no merging."""
    bare: dict[str, Any] = {"regcache": None, "register": {}, "merge": None}
    return replace(plan, linears={}, matmuls={}, published={}, **bare)


def bundle_images(bundle: Bundle, count: int) -> tuple[Array, str]:
    """`count` uint8 images `[count, H, W, 3]`, and where they come from.

    Taken from the certificate, repeated where it has fewer; a bundle without one gets noise, which
    is as good for timing and good for nothing else.
    """
    from regcache_export.certificate_files import read_certificate

    try:
        pixels = read_certificate(bundle)[1]
        source = f"the {len(pixels)} calibration images in the bundle"
    except BundleError:
        height, width = image_size(bundle)
        pixels = np.random.default_rng(0).integers(0, 256, (8, height, width, 3), dtype=np.uint8)
        source = "random pixels (the bundle has no certificate images): speed only"
    return np.resize(pixels, (count, *pixels.shape[1:])), source


def _file(
    bundle: Bundle,
    name: str,
    precision: str,
    options: GraphOptions,
    scratch: Path,
    plan_folder: Path | None,
    float_file: Path | None,
) -> Path:
    if precision == "int8":
        if bundle.manifest.get("quantized_linears") == 0:
            raise BundleError(f"{bundle.path} has no quantized linear: it is a float bundle")
        path = scratch / f"{name}-{precision}.onnx"
        atomic_write_bytes(path, bundle.read(MODEL))  # the bundle may be replaced while it is timed
        return path
    if precision == "fp16" and options.target != "tensorrt":
        raise BundleError(
            f"half precision is written for --target tensorrt only, and {bundle.path} is for "
            f"{options.target}"
        )
    if precision == "fp32" and float_file is not None:
        if not float_file.is_file():
            raise BundleError(f"there is no {float_file}; give an ONNX file with --fp32")
        return float_file
    require("onnx", "export")
    from regcache_export.graph import build_model, serialize

    body = replace(options, body="float16" if precision == "fp16" else "float32")
    model = build_model(float_plan(load_plan(bundle, plan_folder)), options=body)
    path = scratch / f"{name}-{precision}.onnx"
    atomic_write_bytes(path, serialize(model))
    return path
