"""How `cpu_forms.py` runs each file: our engine, a plain session, OpenVINO, and the floor."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from cpu_models import GRAPHS, OURS, WIDE

from regcache_deploy.bench.timing import Run
from regcache_engines.load import load_engine

PIECE = 2
"""Images in one piece, as the engine cuts a ViT-B/16 at 224."""


def session(path: Path, threads: int, profile: str = "") -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # or its spinning threads slow down whoever has the next turn (spinning.py)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def engine_run(path: Path, threads: int, images: np.ndarray, stack: ExitStack) -> Run:
    """As a user runs a bundle."""
    engine = stack.enter_context(load_engine(path, threads=threads))
    return lambda: engine.infer(images)


def session_run(path: Path, threads: int, images: np.ndarray, size: int | None = None) -> Run:
    """ONNX Runtime without our engine: the whole batch at once, or `size` images after others."""
    loaded, parts = session(path, threads), _pieces(images, size)
    return lambda: [loaded.run(None, {"image": part}) for part in parts]


def floor_run(folder: Path, threads: int, batch: int) -> Run:
    """The linears alone: one image with all threads, or pieces of two, one thread each."""
    if batch == 1:
        return _floor(folder / "floor_b1.onnx", threads)
    workers = [_floor(folder / f"floor_b{PIECE}.onnx", 1) for _ in range(threads)]
    each = batch // PIECE // threads
    if threads == 1:
        return lambda: [workers[0]() for _ in range(each)]
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda run: [run() for _ in range(each)], workers))


def _floor(path: Path, threads: int) -> Run:
    loaded = session(path, threads)
    binding = loaded.io_binding()
    generator = np.random.default_rng(0)
    for value in loaded.get_inputs():
        data = generator.integers(0, 256, value.shape).astype(np.uint8)
        binding.bind_cpu_input(value.name, data)
    for value in loaded.get_outputs():
        binding.bind_output(value.name)
    return lambda: loaded.run_with_iobinding(binding)


def openvino_run(
    path: Path, threads: int, images: np.ndarray, size: int | None = None, streams: int = 1
) -> Run:
    """OpenVINO: the whole batch at once, or pieces, with `streams` of them at the same time."""
    import openvino

    properties = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": streams,
    }
    parts = _pieces(images, size)
    core = openvino.Core()
    model = core.read_model(str(path))
    # a known shape, as ONNX Runtime learns it at its first run
    model.reshape(list(parts[0].shape))
    compiled = core.compile_model(model, "CPU", properties)
    requests = [compiled.create_infer_request() for _ in range(streams)]

    def run() -> None:
        for start in range(0, len(parts), streams):
            for request, part in zip(requests, parts[start : start + streams], strict=True):
                request.start_async([part])
            for request in requests:
                request.wait()

    return run


def _pieces(images: np.ndarray, size: int | None) -> list[np.ndarray]:
    size = size or len(images)
    return [np.ascontiguousarray(images[i : i + size]) for i in range(0, len(images), size)]


def make_runs(
    folder: Path, threads: int, batch: int, peers: bool, names: list[str], stack: ExitStack
) -> dict[str, Run]:
    """The variants at one batch size; `names` chooses some of them, empty takes all."""
    images = np.resize(np.load(folder / "images.npy"), (batch, 3, 224, 224)).astype(np.float32)
    tuned, static, nncf = (
        folder / name for name in ("tuned_regcache.onnx", "quantize_static.onnx", "nncf.xml")
    )

    def ours(name: str) -> Any:
        return lambda: engine_run(folder / f"{name}.onnx", threads, images, stack)

    makers = {f"{name}_{graph}": ours(f"{name}_{graph}") for name in OURS for graph in GRAPHS}
    makers |= {f"{name}_plain_again": ours(f"{name}_plain") for name in OURS}
    makers[f"{WIDE}_regcache"] = ours(f"{WIDE}_regcache")
    makers["fp32"] = lambda: session_run(folder / "fp32.onnx", threads, images)
    makers["quantize_static"] = lambda: session_run(static, threads, images)
    makers["floor"] = lambda: floor_run(folder, threads, batch)
    if batch > 1:
        makers["tuned_regcache_whole"] = lambda: session_run(tuned, threads, images)
        makers["quantize_static_pieces"] = lambda: session_run(static, threads, images, PIECE)
    if peers:
        makers["nncf_openvino"] = lambda: openvino_run(nncf, threads, images)
        if batch > 1:
            makers["nncf_openvino_pieces"] = lambda: openvino_run(
                nncf, threads, images, PIECE, streams=threads
            )
        for graph in GRAPHS:
            makers[f"portable_{graph}_openvino"] = lambda graph=graph: openvino_run(
                folder / f"portable_{graph}.onnx", threads, images
            )
    unknown = sorted(set(names) - set(makers))
    if unknown:
        raise SystemExit(f"no variant {', '.join(unknown)}; take some of: {', '.join(makers)}")
    return {name: make() for name, make in makers.items() if not names or name in names}


def operator_times(path: Path, threads: int, images: np.ndarray) -> dict[str, float]:
    """Share of ONNX Runtime's profiled time by operator type."""
    with tempfile.TemporaryDirectory() as scratch:
        loaded = session(path, threads, str(Path(scratch) / "profile"))
        for _ in range(5):
            loaded.run(None, {"image": images})
        events = json.loads(Path(loaded.end_profiling()).read_text())
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    total = sum(spent.values())
    return {name: time / total for name, time in spent.most_common(12)}
