"""What INT8 could gain at most on a GPU without TensorRT: PyTorch's own kernels, on our shapes.

    python benchmarks/gpu_ceiling.py                # writes results/gpu-<GPU>-torch-<version>.csv
    python benchmarks/gpu_ceiling.py --models ViT-B-16 --batches 1 32

Four parts of an encoder, timed in turns: its linears in float16, the same as INT8 GEMMs
(`torch._int_mm`, codes in and int32 out, no scale and no rounding around them), its attention
products in float16 (`scaled_dot_product_attention`), and the whole encoder in float16. The ratio
of the first two bounds what quantizing the linears can bring. Random numbers; each part is one
CUDA graph, replayed. Without a GPU: one line, exit code 7, no file.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gpu import default_output, write_csv
from gpu_models import SPECS, random_plan

from regcache_engines.errors import EngineError
from regcache_engines.tensorrt.probe import Gpu, find_gpu
from regcache_export.spec import EncoderSpec

if TYPE_CHECKING:
    import torch

Part = Callable[[], Any]


def main() -> int:
    """Run the benchmark. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", choices=SPECS, default=list(SPECS)[:3])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=10, help="per part and round")
    parser.add_argument("--output", type=Path, metavar="FILE.csv")
    args = parser.parse_args()
    try:
        gpu = require_cuda()
    except EngineError as error:
        print(f"gpu_ceiling: nothing measured: {error}", file=sys.stderr)
        return error.exit_code
    import torch

    rows = []
    with torch.no_grad():
        for model in args.models:
            for batch in args.batches:
                made = parts(SPECS[model], batch, torch.device("cuda"))
                captured = {name: capture(part) for name, part in made.items()}
                times = interleaved(captured, args.rounds, args.calls, torch.cuda.synchronize)
                rows += [row(gpu, model, batch, name, times[name]) for name in times]
                del made, captured
    write_csv(rows, args.output or default_output(gpu, f"torch-{torch.__version__}"))
    return 0


def require_cuda() -> Gpu:
    """The GPU, usable by torch. Raises EngineError."""
    gpu, reason = find_gpu()
    if gpu is None:
        raise EngineError(f"this needs an NVIDIA GPU: {reason}")
    import torch

    if not torch.cuda.is_available():
        raise EngineError(f"torch {torch.__version__} finds no GPU; install its CUDA build")
    return gpu


def linear_shapes(spec: EncoderSpec, batch: int) -> list[tuple[int, int, int]]:
    """Rows, inputs and outputs of every linear.

    `torch._int_mm` asks for at least 17 rows, and for multiples of 8 in both sizes.
    """
    rows = max(17, batch * spec.num_tokens)
    shapes = spec.weight_shapes()
    sizes = [shapes[f"{name}.weight"] for name in spec.linears()]
    return [(rows, -(-inputs // 8) * 8, -(-outputs // 8) * 8) for outputs, inputs in sizes]


def parts(spec: EncoderSpec, batch: int, device: torch.device) -> dict[str, Part]:
    """What is timed, by name."""
    import torch
    import torch.nn.functional as F

    from regcache_deploy.quantization.plan import calibration_of

    half = torch.float16

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=half)

    def codes(*shape: int) -> torch.Tensor:
        return torch.randint(-127, 128, shape, device=device, dtype=torch.int8)

    shapes = linear_shapes(spec, batch)
    inputs = {(m, k): (numbers(m, k), codes(m, k)) for m, k, _ in shapes}
    # _int_mm is fastest with a column-major second operand
    weights = [(numbers(n, k).t(), codes(n, k).t()) for _, k, n in shapes]
    q, k, v = (numbers(batch, spec.heads, spec.num_tokens, spec.head_dim) for _ in range(3))
    calibration = calibration_of(random_plan(spec, "fp16"))
    encoder = calibration.encoder.replace(
        {name: w.to(device, half) for name, w in calibration.encoder.weights.items()}
    )
    images = numbers(batch, 3, *spec.image_size)

    def linears_half() -> None:
        for (m, k, _), (weight, _) in zip(shapes, weights, strict=True):
            torch.mm(inputs[m, k][0], weight)

    def linears_int8() -> None:
        for (m, k, _), (_, weight) in zip(shapes, weights, strict=True):
            torch._int_mm(inputs[m, k][1], weight)

    def attention_half() -> None:
        for _ in range(spec.depth):
            F.scaled_dot_product_attention(q, k, v)

    return {
        "linears_fp16": linears_half,
        "linears_int8": linears_int8,
        "attention_fp16": attention_half,
        "encoder_fp16": lambda: encoder(images),
    }


def capture(part: Part) -> Part:
    """The same as a CUDA graph, warmed up."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            part()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        part()
    return graph.replay


def interleaved(
    timed: dict[str, Part], rounds: int, calls: int, wait: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of every call, the order changing from round to round."""
    order, shuffle = list(timed), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            for _ in range(calls):
                wait()
                began = time.perf_counter()
                timed[name]()
                wait()
                times[name].append(time.perf_counter() - began)
    return times


def row(gpu: Gpu, model: str, batch: int, part: str, times: list[float]) -> dict[str, Any]:
    import torch

    return {
        "engine": f"torch {torch.__version__}",
        "gpu": gpu.name,
        "sm": gpu.sm,
        "model": model,
        "part": part,
        "batch": batch,
        "images_per_s": round(batch / statistics.median(times), 1),
        "p50_ms": round(1e3 * statistics.median(times), 4),
        "p99_ms": round(1e3 * float(np.quantile(times, 0.99)), 4),
        "calls": len(times),
    }


if __name__ == "__main__":
    sys.exit(main())
