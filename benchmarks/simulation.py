"""One block of the quantized simulation: in float32, with float32 codes, with INT8 instructions.

    python benchmarks/simulation.py --output benchmarks/results/simulation-CPU.csv

A random ViT-B/16 with planted sinks (synthetic), naive W8A8, its middle block, in turns.
`codes_f32` is what a CPU without exact INT8 products takes.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
from pathlib import Path
from typing import Any
from unittest import mock

import planted_vit
import torch
from torch import Tensor

from regcache_deploy.bench.timing import interleave
from regcache_deploy.encoders.canonical import FLOAT, Encoder, Numerics
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.integer_gemm import has_exact_int8

MODULE = "regcache_deploy.quantization.integer_gemm"
VARIANTS = ("float32", "codes_f32", "codes_int8")


def simulations(encoder: Encoder, tokens: Tensor) -> dict[str, Numerics]:
    """The three ways to compute; the weights of the simulations are coded here, once."""
    calibration = make_baseline("naive").calibrate(encoder, tokens)
    found: dict[str, Numerics] = {"float32": FLOAT}
    for name in VARIANTS[1:]:
        numerics = found[name] = calibration.numerics()
        with mock.patch(f"{MODULE}.has_exact_int8", lambda name=name: name == "codes_int8"):
            encoder.run_blocks(tokens[:1], numerics=numerics)
    return found


@torch.no_grad()
def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each variant."""
    model = planted_vit.load(planted_vit.Structure(), 0)
    encoder, size = model.encoder, planted_vit.Structure().image_size
    images = torch.randn(args.batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    block = encoder.spec.depth // 2
    tokens = encoder.embed(images)
    numerics = simulations(encoder, tokens)
    tokens = encoder.run_blocks(tokens, 0, block)
    outcomes = {n: encoder.block(block, tokens, each) for n, each in numerics.items()}
    differ = int((outcomes["codes_int8"] != outcomes["codes_f32"]).sum())
    runs = {n: lambda each=each: encoder.block(block, tokens, each) for n, each in numerics.items()}
    samples = interleave(runs, args.rounds, warmup=2)
    rows = []
    for name in VARIANTS:
        ratio = samples.ratio("float32", name)
        rows.append(
            {
                "model": model.name,
                "caution": model.caution,
                "variant": name,
                "threads": args.threads,
                "batch": args.batch,
                "ms_per_image_and_block": round(samples.percentile(name, 50) / args.batch, 2),
                "times_float32": round(ratio.value, 2),
                "low": round(ratio.low, 2),
                "high": round(ratio.high, 2),
                "rounds": ratio.rounds,
                "outputs_that_differ_between_codes": differ,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores; no GPU",
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    if not has_exact_int8():
        parser.error("this CPU has no exact INT8 product: the simulation takes float32 here")
    torch.set_num_threads(args.threads)
    rows = measure(args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(
            f"{row['variant']:<12} {row['ms_per_image_and_block']:>7} ms an image, "
            f"{row['times_float32']} [{row['low']}, {row['high']}] times as fast as float32"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
