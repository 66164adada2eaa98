"""How each tool that `peers.py` compares makes its file, and how it is run.

A tool that cannot run raises `PeerError` with the reason. `peer_list.py` names them all.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cpu_models import quantize_static
from cpu_runs import session
from peer_nncf import best_nncf
from peer_work import Work

from regcache_deploy.bench.timing import Run
from regcache_deploy.evaluation.engines import open_engine
from regcache_engines.load import load_engine
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
        note: what is known only once the file was made and opened, for `settings`.
    """

    name: str
    title: str
    distribution: str
    settings: str
    make: Callable[[Work], Path | None]
    open: Callable[[Work, Path | None, np.ndarray], Run]
    bits: str = "W8A8"
    note: Callable[[Work], str] = lambda work: ""

    def tool(self, work: Work) -> str:
        """Distribution and version."""
        if self.distribution in work.versions:
            return f"{self.distribution} {work.versions[self.distribution]}"
        try:
            return f"{self.distribution} {metadata.version(self.distribution)}"
        except metadata.PackageNotFoundError:
            return self.distribution


def no_file(work: Work) -> None:
    return None


def run_eager(work: Work, path: Path | None, images: np.ndarray) -> Run:
    tensor = torch.from_numpy(images)

    def run() -> np.ndarray:
        with torch.inference_mode():
            array: np.ndarray = work.module(tensor).numpy()
            return array

    return run


_compiled: dict[int, Any] = {}


def run_compiled(work: Work, path: Path | None, images: np.ndarray) -> Run:
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


def run_onnxruntime(work: Work, path: Path | None, images: np.ndarray) -> Run:
    assert path is not None
    loaded = session(path, work.threads)
    return lambda: loaded.run(None, {"image": images})[0]


def run_ours(work: Work, path: Path | None, images: np.ndarray) -> Run:
    """ONNX Runtime as our users run it: by the engine, its checks included."""
    assert path is not None
    engine = load_engine(path, threads=work.threads)
    return lambda: engine.infer(images)


Opener = Callable[[Work, Path | None, np.ndarray], Run]


def run_openvino(hint: str | None = None) -> Opener:
    """OpenVINO on the CPU.

    Args:
        hint: `INFERENCE_PRECISION_HINT` of what the file does not quantize; None leaves OpenVINO's
            default, which is bfloat16 where the CPU computes in it.
    """

    def start(work: Work, path: Path | None, images: np.ndarray) -> Run:
        assert path is not None
        import openvino

        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": work.threads}
        if hint is not None:
            properties["INFERENCE_PRECISION_HINT"] = hint
        core = openvino.Core()
        model = core.read_model(str(path))
        model.reshape(list(images.shape))  # a known shape, as ONNX Runtime learns it by running
        compiled = core.compile_model(model, "CPU", properties)
        if hint is None:
            used = compiled.get_property("INFERENCE_PRECISION_HINT")
            work.notes["openvino"] = f"the default is {used.get_type_name()} on this CPU"
        request = compiled.create_infer_request()
        return lambda: request.infer([images])[0]

    return start


def run_tensorrt(work: Work, path: Path | None, images: np.ndarray) -> Run:
    assert path is not None
    engine = open_engine("tensorrt", path, None, [len(images)], work.folder / "engines")
    return lambda: engine.infer(images)


def static_all(work: Work) -> Path:
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


def static_linears(work: Work) -> Path:
    path = work.folder / "static_linears.onnx"
    quantize_static(work.float_model, path, work.calibration)
    return path


def quantize_dynamically(weight_type: str, per_channel: bool) -> Callable[[Work], Path]:
    """`quantize_dynamic` behind the pre-processing that its guide advises."""

    def make(work: Work) -> Path:
        from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

        prepared = work.folder / "prepared_dynamic.onnx"
        path = work.folder / f"dynamic_{weight_type}.onnx"
        quant_pre_process(str(work.float_model), str(prepared))
        kind = getattr(QuantType, weight_type)
        quantize_dynamic(str(prepared), str(path), per_channel=per_channel, weight_type=kind)
        return path

    return make


def quantize_nncf(work: Work) -> Path:
    try:
        import nncf  # noqa: F401
        import openvino  # noqa: F401
    except ImportError as error:
        raise PeerError(f"{error.name} is not installed: pip install '.[peers]'") from error
    return best_nncf(work)


def openvino_float(work: Work) -> Path:
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
        gpu: the file is for TensorRT: what is not quantized is in half precision, ModelOpt's
            default, where a CPU has float.
    """

    def make(work: Work) -> Path:
        if gpu:
            _require_gpu()
        calibration = work.folder / "calibration.npy"
        np.save(calibration, work.calibration)
        rest = "fp16" if gpu else "fp32"
        path = work.folder / f"modelopt_{mode}_{rest}.onnx"
        script = str(HERE / "peer_modelopt.py")
        try:
            done = subprocess.run(
                [python, script, str(work.float_model), str(calibration), str(path), mode, rest],
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


def tensorrt_half(work: Work) -> Path:
    _require_gpu()
    from regcache_deploy.bench.subjects import float_plan

    path = work.folder / "tensorrt_fp16.onnx"
    options = GraphOptions(target="tensorrt")
    path.write_bytes(serialize(build_model(float_plan(work.plan("plain")), options=options)))
    return path


def _require_gpu() -> None:
    gpu, why = find_gpu()
    if gpu is None:
        raise PeerError(f"needs an NVIDIA GPU: {why}")


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def ours_file(form: str, graph: str) -> Callable[[Work], Path]:
    return lambda work: work.ours(form, graph)


def tensorrt_file(graph: str) -> Callable[[Work], Path]:
    def make(work: Work) -> Path:
        _require_gpu()
        return work.ours("tensorrt", graph)

    return make


def openvino_file(graph: str) -> Callable[[Work], Path]:
    def make(work: Work) -> Path:
        openvino_float(work)
        return work.ours("portable", graph)

    return make
