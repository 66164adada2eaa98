"""The kernels that TensorRT-RTX picks, without a GPU: every shape and form in full depth.

    python benchmarks/tensorrt_layers.py                    # or: make test-tensorrt
    python benchmarks/tensorrt_layers.py --models ViT-B-16 --engine tensorrt   # wants a GPU

Random weights; tau 4 and k~ 5 from the middle block on. A build is strict: a product that is not
of the kind that the static check promises ends the run with exit code 7. Prints a table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from gpu_models import FORMS, SPECS, TENSORRT, middle_choice, random_plan

from regcache_engines.errors import RegCacheError
from regcache_engines.tensorrt.builder import EngineBuilder
from regcache_export.checks import check_tensorrt
from regcache_export.graph import build_model, serialize

KINDS = ("int8_gemm", "int8_mha", "half_gemm", "half_mha", "half_bmm")


def main() -> int:
    """Build and print. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engine", choices=("tensorrt", "tensorrt_rtx"), default="tensorrt_rtx")
    parser.add_argument("--models", nargs="+", choices=SPECS, default=list(SPECS))
    args = parser.parse_args()
    try:
        builder = EngineBuilder(args.engine)
        print(f"{args.engine} {builder.probe.version}, GPU: {builder.probe.gpu or 'none'}\n")
        print(f"| model | form | RegCache | {' | '.join(KINDS)} | other products | MB | build s |")
        print("|---" * (len(KINDS) + 6) + "|")
        for model in args.models:
            for form in FORMS:
                for regcache in (False, True):
                    print(row(builder, model, form, regcache), flush=True)
    except RegCacheError as error:
        print(f"tensorrt_layers: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def row(builder: EngineBuilder, model: str, form: str, regcache: bool) -> str:
    """Build one engine, strictly, and describe it."""
    spec = SPECS[model]
    plan = random_plan(spec, form, middle_choice(spec) if regcache else None)
    graph = build_model(plan, options=TENSORRT)
    promise = check_tensorrt(graph).promise
    with tempfile.TemporaryDirectory(prefix="regcache-layers-") as folder:
        built = builder.build(serialize(graph), Path(folder), promise=promise).sidecar
    found = products(built.layers)
    rest = ", ".join(f"{n} {kind}" for kind, n in found.items() if kind not in KINDS)
    counts = " | ".join(str(found.get(kind, 0)) for kind in KINDS)
    return (
        f"| {model} | {form} | {'yes' if regcache else 'no'} | {counts} | {rest or '-'} | "
        f"{built.engine_bytes / 1e6:.1f} | {built.build_seconds:.1f} |"
    )


def products(layers: Mapping[str, int]) -> dict[str, int]:
    """Of all layers those that multiply matrices."""
    return {kind: n for kind, n in layers.items() if kind.endswith(("gemm", "mha", "bmm"))}


if __name__ == "__main__":
    sys.exit(main())
