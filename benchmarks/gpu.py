"""Throughput and latency of engines on an NVIDIA GPU, with and without RegCache.

    python benchmarks/gpu.py --engine tensorrt      # writes results/gpu-<GPU>-<engine>.csv
    python benchmarks/gpu.py --sweep       # k~ from 0 to 16: do token counts on tile borders pay?

Random weights: speed, size and build time only; the cosine says that the engine computes the
graph, nothing about accuracy. All variants are built first, warmed up, and then timed in turns, in
an order that changes from round to round: CUDA graphs are replayed, and each call has its checks of
the images and its copies to and from the GPU, at large batches as long as the encoder itself; so
`gpu_ms` is one replay among many back to back, the kernels alone. What did not become what the
static check promised is counted in its row. Every row names engine, version and GPU. Without a GPU:
one line, exit code 7, no file. `gpu_ceiling.py` says what PyTorch's kernels could gain at most,
where TensorRT does not run.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import re
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpu_models import FORMS, SPECS, TENSORRT, middle_choice, random_bundle
from gpu_probe import cosine

from regcache_engines.errors import RegCacheError
from regcache_engines.files import atomic_write_bytes
from regcache_engines.load import load_engine
from regcache_engines.tensorrt.build_options import BuildOptions
from regcache_engines.tensorrt.builder import EngineBuilder
from regcache_engines.tensorrt.engine import TensorRTEngine
from regcache_engines.tensorrt.probe import Gpu
from regcache_engines.tensorrt.sidecar import Profile, Sidecar
from regcache_export.checks import check_file
from regcache_export.regcache_config import RegCacheConfig

SWEEP = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16)
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Variant:
    """One engine to time."""

    model: str
    form: str
    regcache: RegCacheConfig | None

    @property
    def label(self) -> str:
        if self.regcache is None:
            return f"{self.model}-{self.form}"
        return f"{self.model}-{self.form}-{self.regcache.prefix_count}-{self.regcache.delete_count}"


@dataclass
class Built:
    """An engine, its description, and its agreement with the CPU."""

    engine: TensorRTEngine
    sidecar: Sidecar
    cosine: float


def main() -> int:
    """Run the benchmark. Returns the exit code."""
    args = arguments()
    try:
        builder = EngineBuilder(args.engine)
        builder.probe.require_run()
        rows = measure(builder, variants(args), args)
    except RegCacheError as error:
        print(f"gpu: nothing measured: {error}", file=sys.stderr)
        return error.exit_code
    assert builder.probe.gpu is not None
    name = f"{builder.engine}-{builder.probe.version}" + ("-sweep" if args.sweep else "")
    write_csv(rows, args.output or default_output(builder.probe.gpu, name))
    return 0


def default_output(gpu: Gpu, name: str) -> Path:
    """`results/gpu-<GPU>-<name>.csv`, after the machine."""
    return RESULTS / f"gpu-{re.sub(r'[^a-z0-9]+', '-', gpu.name.lower()).strip('-')}-{name}.csv"


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """Print rows and write them to a file, whole or not at all."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    print(buffer.getvalue(), end="")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, buffer.getvalue().encode())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engine", choices=("tensorrt", "tensorrt_rtx"), default="tensorrt")
    parser.add_argument("--models", nargs="+", choices=SPECS, default=list(SPECS)[:3])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--device", choices=("auto", "cuda", "pycuda", "torch"), default="auto")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=10, help="per variant and round")
    parser.add_argument("--sweep", action="store_true", help="INT8 over k~, tau 0 and 4")
    parser.add_argument("--engines", type=Path, help="keep engines in this folder")
    parser.add_argument("--output", type=Path, metavar="FILE.csv")
    return parser.parse_args()


def variants(args: argparse.Namespace) -> list[Variant]:
    """What to build: tau 4, k~ 5 from the middle block on; or a sweep over k~."""
    out = []
    for model in args.models:
        spec = SPECS[model]
        if args.sweep:
            out += [
                Variant(model, "int8", middle_choice(spec, tau, count))
                for tau in (0, 4)
                for count in SWEEP
            ]
            continue
        for form in FORMS:
            out.append(Variant(model, form, None))
            out.append(Variant(model, form, middle_choice(spec)))
    return out


def measure(
    builder: EngineBuilder, chosen: list[Variant], args: argparse.Namespace
) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="regcache-gpu-") as folder:
        for model in args.models:
            own = [variant for variant in chosen if variant.model == model]
            engines: dict[Variant, Built] = {}
            try:
                for variant in own:
                    engines[variant] = prepare(builder, variant, Path(folder), args)
                for batch in args.batches:
                    times = interleaved(engines, batch, args)
                    kernels = replayed(engines, batch, args)
                    rows += [row(builder, v, engines[v], batch, times[v], kernels[v]) for v in own]
            finally:
                for built in engines.values():
                    built.engine.close()
    return rows


def prepare(
    builder: EngineBuilder, variant: Variant, folder: Path, args: argparse.Namespace
) -> Built:
    """Build, load, and compare two images with ONNX Runtime on the CPU."""
    largest = max(args.batches)
    path = folder / f"{variant.label}.regcache"
    spec = SPECS[variant.model]
    bundle = random_bundle(spec, path, TENSORRT, variant.form, variant.regcache)
    model = bundle / "model.onnx"
    result = builder.build(
        model.read_bytes(),
        args.engines or folder / "engines",
        BuildOptions(Profile(1, min(8, largest), largest)),
        promise=check_file(model).promise,
        strict=False,  # one layer that differs must not end a run that is rarely to be had
    )
    engine = TensorRTEngine(result.path, device=args.device)
    images = pixels(2, spec.image_size)
    with load_engine(bundle) as cpu:
        agreement = cosine(engine.infer(images), cpu.infer(images))
    return Built(engine, result.sidecar, agreement)


def interleaved(
    engines: dict[Variant, Built], batch: int, args: argparse.Namespace
) -> dict[Variant, list[float]]:
    """Seconds of every call."""
    order = list(engines)
    images = pixels(batch, SPECS[order[0].model].image_size)
    for built in engines.values():
        for _ in range(3):  # set-up, capture, first replay
            built.engine.infer(images)
    times: dict[Variant, list[float]] = {variant: [] for variant in order}
    shuffle = random.Random(0)
    for _ in range(args.rounds):
        shuffle.shuffle(order)
        for variant in order:
            for _ in range(args.calls):
                began = time.perf_counter()
                engines[variant].engine.infer(images)
                times[variant].append(time.perf_counter() - began)
    return times


def replayed(
    engines: dict[Variant, Built], batch: int, args: argparse.Namespace
) -> dict[Variant, list[float]]:
    """Seconds of one replay of a batch that was seen before, of `--calls` back to back.

    Empty where the device library captures no graphs.
    """
    order = list(engines)
    times: dict[Variant, list[float]] = {variant: [] for variant in order}
    shuffle = random.Random(0)
    for _ in range(args.rounds):
        shuffle.shuffle(order)
        for variant in order:
            slots = engines[variant].engine._slots
            slot = slots.get()
            try:
                graph, stream, device = slot._graphs.get(batch), slot._stream, slot.device
                if graph is None:
                    continue
                with device.current():
                    began = time.perf_counter()
                    for _ in range(args.calls):
                        device.launch(graph, stream)
                    device.synchronize(stream)
                    times[variant].append((time.perf_counter() - began) / args.calls)
            finally:
                slots.put(slot)
    return times


def row(
    builder: EngineBuilder,
    variant: Variant,
    built: Built,
    batch: int,
    times: list[float],
    kernels: list[float],
) -> dict[str, Any]:
    gpu, choice = builder.probe.gpu, variant.regcache
    assert gpu is not None
    return {
        "engine": f"{builder.engine} {builder.probe.version}",
        "gpu": gpu.name,
        "sm": gpu.sm,
        "model": variant.model,
        "form": variant.form,
        "regcache": choice is not None,
        "tau": choice.prefix_count if choice else 0,
        "delete": choice.delete_count if choice else 0,
        "batch": batch,
        "images_per_s": round(batch / statistics.median(times), 1),
        "p50_ms": round(1e3 * statistics.median(times), 4),
        "p99_ms": round(1e3 * float(np.quantile(times, 0.99)), 4),
        "calls": len(times),
        "gpu_ms": round(1e3 * statistics.median(kernels), 4) if kernels else None,
        "engine_mb": round(built.sidecar.engine_bytes / 1e6, 2),
        "build_s": built.sidecar.build_seconds,
        "int8_gemm": built.sidecar.layers.get("int8_gemm", 0),
        "int8_mha": built.sidecar.layers.get("int8_mha", 0),
        "broken_promises": len(built.sidecar.broken_promises),
        "cosine_cpu": round(built.cosine, 6),
    }


def pixels(count: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, *size), dtype=np.float32)


if __name__ == "__main__":
    sys.exit(main())
