"""Does Q/DQ on the residual stream pay in TensorRT? Layer tables of four placements, no GPU.

    python benchmarks/tensorrt_residual.py --model ViT-B-16

Random weights, INT8 linears and attention, tau 4 and k~ 5. Each graph is the exported one with
Q/DQ put in front of its residual additions:

    none    as exported
    skip    on the tokens that skip the branch
    branch  on the output of out_proj and fc2
    both    on both

Counted in the built engine: products by kind, other layers, and the tensors that layers hand to
one another by type. Nothing is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

import numpy as np
import onnx
from gpu_models import SPECS, TENSORRT, middle_choice, random_plan
from tensorrt_layers import products

from regcache_engines.errors import RegCacheError
from regcache_engines.tensorrt.builder import EngineBuilder
from regcache_engines.tensorrt.layers import Layer, count_kinds
from regcache_export.graph import build_model, serialize
from regcache_export.graph.editing import GraphEditor, new_node

PLACEMENTS = {"none": (), "skip": (0,), "branch": (1,), "both": (0, 1)}
SCALE = np.float16(1 / 16)


def main() -> int:
    """Build and print. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engine", choices=("tensorrt", "tensorrt_rtx"), default="tensorrt_rtx")
    parser.add_argument("--model", choices=SPECS, default="ViT-B-16")
    args = parser.parse_args()
    try:
        builder = EngineBuilder(args.engine)
        print(f"{args.engine} {builder.probe.version}, {args.model}\n")
        print("| Q/DQ | products | other layers | tensors between layers |\n|---|---|---|---|")
        for name, inputs in PLACEMENTS.items():
            layers = build(builder, args.model, inputs)
            counts = count_kinds(layers)
            found = products(counts)
            others = sum(counts.values()) - sum(found.values())
            kinds = Counter(kind for x in layers if not x.is_control for kind in x.outputs)
            print(f"| {name} | {listed(found)} | {others} | {listed(kinds)} |", flush=True)
    except RegCacheError as error:
        print(f"tensorrt_residual: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def build(builder: EngineBuilder, model: str, inputs: tuple[int, ...]) -> list[Layer]:
    """Layers of the engine with Q/DQ on these inputs (0 tokens, 1 branch) of every addition."""
    spec = SPECS[model]
    graph = build_model(random_plan(spec, "int8", middle_choice(spec)), options=TENSORRT)
    quantize_additions(graph, inputs)
    return builder.layers(serialize(graph))


def quantize_additions(model: onnx.ModelProto, inputs: tuple[int, ...]) -> None:
    """Put Q/DQ in front of the residual additions, in place."""
    editor = GraphEditor(model.graph)

    def rule(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        if not node.name.endswith("/residual/Add"):
            return [node]
        nodes = []
        for position in inputs:
            name = f"{node.name}/{position}"
            parameters = [
                editor.constant(f"{name}_scale", np.asarray(SCALE)),
                editor.constant(f"{name}_zero_point", np.asarray(0, np.int8)),
            ]
            codes = new_node(f"{name}/QuantizeLinear", [node.input[position], *parameters])
            values = new_node(f"{name}/DequantizeLinear", [codes.output[0], *parameters])
            node.input[position] = values.output[0]
            nodes += [codes, values]
        return [*nodes, node]

    editor.rewrite(rule)


def listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
