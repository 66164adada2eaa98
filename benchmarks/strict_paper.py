"""What exactness costs: the graph as deployed against the graph as published.

    python benchmarks/strict_paper.py --time 15 --csv benchmarks/results/strict_paper.csv

Random weights: structure and speed only. `exact` is the least cosine of the graph's features with
the simulation of its own form. Times are medians of single images on the threads given, all forms
interleaved.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F

from regcache_deploy.encoders.load import load_model
from regcache_deploy.encoders.regcache import RegCache, RegCacheConfig
from regcache_deploy.quantization.baselines import BASELINES, make_baseline
from regcache_deploy.quantization.plan import make_plan
from regcache_engines.load import load_engine
from regcache_export.graph import build_model, serialize
from regcache_export.inspect import integer_gemms

FIELDS = (
    "model,baseline,form,nodes,matmuls,integer_gemms,float_ops_of_quantizers,mib,exact,ms"
).split(",")
QUANTIZER_OPERATORS = ("Div", "Round", "Clip", "Log", "Gather", "Where", "Less", "Min", "Max")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-S-16", help="architecture of open_clip")
    parser.add_argument("--time", type=int, default=0, metavar="N", help="rounds to time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path, help="write the table here, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        rows = _measure(args, Path(name))
    targets = [sys.stdout] + ([args.csv.open("w", newline="")] if args.csv else [])
    for target in targets:
        writer = csv.DictWriter(target, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _measure(args: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    encoder = load_model(args.model, "random").encoder
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, *encoder.spec.image_size, generator=generator)
    tokens = encoder.embed(images)
    middle = encoder.spec.depth // 2
    config = RegCacheConfig(middle, 4, middle, 5)
    register = {
        b: torch.zeros(encoder.spec.width) for b in config.prefix_blocks(encoder.spec.depth)
    }
    rows, engines = [], []
    for baseline in BASELINES:
        for form in ("deploy", "paper"):
            quantizer = make_baseline(baseline, form=form).fast()  # type: ignore[arg-type]
            found = quantizer.calibrate(encoder, tokens, regcache=RegCache(config, register))
            plan = make_plan(found, regcache_config=config, strict=form == "paper")
            model = build_model(plan)
            path = folder / f"{baseline}-{form}.onnx"
            path.write_bytes(serialize(model))
            counts = Counter(node.op_type for node in model.graph.node)
            engine = load_engine(path, threads=args.threads)
            expected = found.encoder(images, found.numerics(), found.regcache)
            got = torch.from_numpy(engine.infer(images.numpy()))
            engines.append(engine)
            rows.append(
                {
                    "model": f"{args.model} random",
                    "baseline": baseline,
                    "form": form,
                    "nodes": len(model.graph.node),
                    "matmuls": counts["MatMul"],
                    "integer_gemms": integer_gemms(path),
                    "float_ops_of_quantizers": sum(counts[o] for o in QUANTIZER_OPERATORS),
                    "mib": f"{path.stat().st_size / 2**20:.1f}",
                    "exact": f"{float(F.cosine_similarity(got, expected).min()):.6f}",
                    "ms": "",
                }
            )
    times: list[list[float]] = [[] for _ in engines]
    for _ in range(args.time):
        for engine, each in zip(engines, times, strict=True):
            began = time.perf_counter()
            engine.infer(images[:1].numpy())
            each.append(1000 * (time.perf_counter() - began))
    for row, each in zip(rows, times, strict=True):
        row["ms"] = f"{statistics.median(each):.1f}" if each else ""
    return rows


if __name__ == "__main__":
    main()
