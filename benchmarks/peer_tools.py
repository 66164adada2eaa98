"""The tools that `peers.py` compares: how each makes its file, and how it is run.

Every tool is set up as its own documentation advises; `settings` repeats what was chosen. A tool
that cannot run raises `PeerError` with the reason.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cpu_forms import openvino_run, ort_run
from cpu_models import quantize_static, write_nncf
from peer_work import Work

from regcache_deploy.bench.engines import open_engine
from regcache_deploy.bench.timing import Run
from regcache_engines.tensorrt.probe import find_gpu
from regcache_export.graph import build_model, serialize
from regcache_export.targets import GraphOptions

HERE = Path(__file__).resolve().parent
MODELOPT_SECONDS = 400


class PeerError(Exception):
    """Why a tool cannot run here."""


@dataclass(frozen=True)
class Peer:
    """One row of the table.

    Attributes:
        name: short, unique.
        title: for people.
        distribution: whose version is recorded.
        settings: what was chosen, in words.
        make: writes the file; None for a tool that has none.
        open: file, images of one batch -> one call of it, giving features `[b, E]`.
        bits: of weights and activations.
    """

    name: str
    title: str
    distribution: str
    settings: str
    make: Callable[[Work], Path | None]
    open: Callable[[Work, Path | None, np.ndarray], Run]
    bits: str = "W8A8"

    def tool(self, work: Work) -> str:
        """Distribution and version."""
        if self.distribution in work.versions:
            return f"{self.distribution} {work.versions[self.distribution]}"
        try:
            return f"{self.distribution} {metadata.version(self.distribution)}"
        except metadata.PackageNotFoundError:
            return self.distribution


def _nothing(work: Work) -> None:
    return None


def _eager(work: Work, path: Path | None, images: np.ndarray) -> Run:
    tensor = torch.from_numpy(images)

    def run() -> np.ndarray:
        with torch.inference_mode():
            array: np.ndarray = work.module(tensor).numpy()
            return array

    return run


_compiled: dict[int, Any] = {}


def _compile(work: Work, path: Path | None, images: np.ndarray) -> Run:
    tensor = torch.from_numpy(images)
    module = _compiled.setdefault(id(work), torch.compile(work.module, dynamic=False))

    def run() -> np.ndarray:
        with torch.inference_mode():
            array: np.ndarray = module(tensor).numpy()
            return array

    try:
        run()
    except Exception as error:  # inductor and the C++ compiler raise kinds of their own
        raise PeerError(f"torch.compile failed: {_first_line(error)}") from error
    return run


def _onnxruntime(work: Work, path: Path | None, images: np.ndarray) -> Run:
    assert path is not None
    run = ort_run(path, work.threads, images)
    return lambda: run()[0]


def _openvino(work: Work, path: Path | None, images: np.ndarray) -> Run:
    assert path is not None
    run = openvino_run(path, work.threads, images)
    return lambda: run()[0]


def _tensorrt(work: Work, path: Path | None, images: np.ndarray) -> Run:
    assert path is not None
    engine = open_engine("tensorrt", path, None, [len(images)], work.folder / "engines")
    return lambda: engine.infer(images)


def _static_default(work: Work) -> Path:
    """`quantize_static` with its defaults, behind the pre-processing that its guide advises."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
    )
    from onnxruntime.quantization import quantize_static as quantize

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter([{"image": image[None]} for image in work.calibration])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rest, None)

    prepared, path = work.folder / "prepared.onnx", work.folder / "static_default.onnx"
    quant_pre_process(str(work.float_model), str(prepared))
    quantize(
        str(prepared),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return path


def _static_linears(work: Work) -> Path:
    path = work.folder / "static_linears.onnx"
    quantize_static(work.float_model, path, work.calibration)
    return path


def _dynamic(work: Work) -> Path:
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    prepared, path = work.folder / "prepared_dynamic.onnx", work.folder / "dynamic.onnx"
    quant_pre_process(str(work.float_model), str(prepared))
    quantize_dynamic(str(prepared), str(path), per_channel=True, weight_type=QuantType.QInt8)
    return path


def _nncf(work: Work) -> Path:
    try:
        import nncf  # noqa: F401
        import openvino  # noqa: F401
    except ImportError as error:
        raise PeerError(f"{error.name} is not installed: pip install '.[peers]'") from error
    path = work.folder / "nncf.xml"
    write_nncf(work.float_model, path, work.calibration)
    return path


def _float_openvino(work: Work) -> Path:
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        raise PeerError("openvino is not installed: pip install '.[peers]'") from error
    return work.float_model


def modelopt(mode: str, python: str, gpu: bool) -> Callable[[Work], Path]:
    """ModelOpt's ONNX quantization, in the interpreter that has it: its packages clash with ours.

    Args:
        mode: `int8` or `fp8`.
        python: of an environment with `nvidia-modelopt[onnx]`.
        gpu: the file is for TensorRT.
    """

    def make(work: Work) -> Path:
        if gpu:
            _require_gpu()
        calibration = work.folder / "calibration.npy"
        np.save(calibration, work.calibration)
        path = work.folder / f"modelopt_{mode}.onnx"
        script = str(HERE / "peer_modelopt.py")
        try:
            done = subprocess.run(
                [python, script, str(work.float_model), str(calibration), str(path), mode],
                capture_output=True,
                text=True,
                check=False,
                timeout=MODELOPT_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise PeerError(f"took longer than {MODELOPT_SECONDS} s") from error
        if done.returncode or not path.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise PeerError(lines[-1] if lines else f"ended with {done.returncode}")
        words = [w for w in done.stdout.splitlines() if w.startswith("version ")]
        work.versions["nvidia-modelopt"] = words[-1].split()[1] if words else "unknown"
        return path

    return make


def _tensorrt_fp16(work: Work) -> Path:
    _require_gpu()
    from regcache_deploy.bench.subjects import float_plan

    path = work.folder / "tensorrt_fp16.onnx"
    options = GraphOptions(target="tensorrt")
    path.write_bytes(serialize(build_model(float_plan(work.plain_plan), options=options)))
    return path


def _require_gpu() -> None:
    gpu, why = find_gpu()
    if gpu is None:
        raise PeerError(f"needs an NVIDIA GPU: {why}")


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _ours(form: str, graph: str) -> Callable[[Work], Path]:
    return lambda work: work.ours(form, graph)


def _openvino_ours(work: Work) -> Path:
    _float_openvino(work)
    return work.ours("portable", "regcache")


FP32 = "W32A32"
STATIC = "QDQ, uint8 activations and int8 weights per channel, MinMax calibration"


def peers(modelopt_python: str = sys.executable) -> list[Peer]:
    """All tools; the first one is the reference of accuracy."""
    ort, ov, ours = "onnxruntime", "openvino", "regcache-deploy"
    return [
        Peer("torch_eager", "PyTorch eager", "torch", "open_clip's own module", _nothing, _eager,
             FP32),
        Peer("torch_compile", "torch.compile", "torch", "inductor, one static graph a batch size",
             _nothing, _compile, FP32),
        Peer("onnxruntime_fp32", "ONNX Runtime FP32", ort,
             "the encoder as it is, written by our exporter", lambda w: w.float_model,
             _onnxruntime, FP32),
        Peer("openvino_fp32", "OpenVINO FP32", ov, "the same file, INFERENCE_PRECISION_HINT=f32",
             _float_openvino, _openvino, FP32),
        Peer("static_default", "quantize_static, all operators", ort,
             f"quant_pre_process; {STATIC}; every operator that it quantizes by default",
             _static_default, _onnxruntime),
        Peer("static_linears", "quantize_static, linears only", ort,
             f"{STATIC}; MatMul with constant weights only", _static_linears, _onnxruntime),
        Peer("dynamic", "quantize_dynamic", ort, "quant_pre_process; int8 weights per channel",
             _dynamic, _onnxruntime),
        Peer("nncf", "NNCF INT8 in OpenVINO", "nncf", "model_type=TRANSFORMER, default preset",
             _nncf, _openvino),
        Peer("modelopt_int8", "ModelOpt ONNX INT8 in ONNX Runtime", "nvidia-modelopt",
             "quantize_mode=int8, calibration_method=entropy, high_precision_dtype=fp32",
             modelopt("int8", modelopt_python, False), _onnxruntime),
        Peer("ours_float", "ours, float file", ours, "our exact folds, no quantizer",
             _ours("float", "plain"), _onnxruntime, FP32),
        Peer("portable_plain", "ours, portable, without RegCache", ours, "--target onnx",
             _ours("portable", "plain"), _onnxruntime),
        Peer("portable_regcache", "ours, portable, RegCache", ours, "--target onnx",
             _ours("portable", "regcache"), _onnxruntime),
        Peer("tuned_plain", "ours, tuned, without RegCache", ours, "--target onnxruntime",
             _ours("tuned", "plain"), _onnxruntime),
        Peer("tuned_regcache", "ours, tuned, RegCache", ours, "--target onnxruntime",
             _ours("tuned", "regcache"), _onnxruntime),
        Peer("openvino_regcache", "ours, portable, RegCache, in OpenVINO", ours, "--target onnx",
             _openvino_ours, _openvino),
        Peer("tensorrt_fp16", "TensorRT FP16", "tensorrt-cu13", "our FP16 graph, strongly typed",
             _tensorrt_fp16, _tensorrt, "W16A16"),
        Peer("modelopt_int8_tensorrt", "ModelOpt INT8 in TensorRT", "nvidia-modelopt",
             "as above", modelopt("int8", modelopt_python, True), _tensorrt),
        Peer("modelopt_fp8_tensorrt", "ModelOpt FP8 in TensorRT", "nvidia-modelopt",
             "quantize_mode=fp8", modelopt("fp8", modelopt_python, True), _tensorrt, "FP8"),
    ]  # fmt: skip
