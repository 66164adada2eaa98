"""What treated inputs cost in ONNX Runtime on this CPU, at the shapes of a ViT-B/16.

    python benchmarks/treatment_cost.py --output benchmarks/results/treatment_cost-NAME.csv

CPU time of one thread, all graphs of a target in one process, one after another within a round. A
ratio is the median over rounds of the ratio within a round, to the graph without treatments;
`none_again` is that graph a second time. `one` treats block 5 alone, `all` the fc2 of every block.
`scales` has the factors in a QuantizeLinear with a scale per channel instead of a Mul. Random
weights: cost only. Both targets take about three minutes.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from cpu_models import MODEL, _plans
from cpu_runs import session

from regcache_deploy.bench.environment import describe_machine
from regcache_deploy.bench.timing import interleave
from regcache_export.graph import build_model, serialize
from regcache_export.graph.editing import GraphEditor
from regcache_export.inspect import integer_gemms
from regcache_export.plan import Plan
from regcache_export.targets import GraphOptions

ONE = (5,)
NONE = "none"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=["onnx", "onnxruntime"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=80, help="at most, for each target")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    images, plans = _plans(MODEL)
    plan, rows = plans["plain"], list[list[Any]]()
    macs = linear_macs(plan)
    for target in args.targets:
        rows += measure(target, variants(plan), images[:1], macs, args.rounds, args.seconds)
    write(rows, args.output)
    return 0


def variants(plan: Plan) -> dict[str, Plan]:
    """Plans by name; `scales_*` become graphs of another form later."""
    every = range(plan.encoder.depth)
    factors = np.exp2(np.arange(plan.encoder.mlp_width) % 9 - 4).astype(np.float32)
    found = {NONE: plan, "none_again": plan}
    for name, blocks in (("one", ONE), ("all", every)):
        found[f"factors_{name}"] = treated(plan, blocks, input_multiplier=factors)
        for count in (1, 4):
            channels = np.arange(count) * 701
            found[f"channels{count}_{name}"] = treated(plan, blocks, float_channels=channels)
    found["scales_one"] = found["factors_one"]
    return found


def treated(plan: Plan, blocks: Any, **how: Any) -> Plan:
    names = [f"blocks.{block}.mlp.fc2" for block in blocks]
    changed = {name: replace(plan.linears[name], **how) for name in names}
    return replace(plan, linears={**plan.linears, **changed})


def linear_macs(plan: Plan) -> int:
    """Multiplications of all linears for one token."""
    return sum(plan.weights[f"{name}.weight"].size for name in plan.linears)


def into_scales(model: onnx.ModelProto) -> None:
    """Each Mul of factors becomes a part of the scales of the QuantizeLinear behind it."""
    editor = GraphEditor(model.graph)
    muls = {n.output[0]: n for n in editor.nodes if n.name.endswith("/multiplier/Mul")}
    for node in editor.nodes:
        if node.op_type != "QuantizeLinear" or node.input[0] not in muls:
            continue
        mul = muls[node.input[0]]
        factors, name = editor.value(mul.input[1]), node.name
        scale, zero_point = (editor.value(node.input[i]) for i in (1, 2))
        node.input[0] = mul.input[0]
        node.input[1] = editor.constant(f"{name}/scales", scale / factors)
        zeros = np.full(factors.shape, zero_point, zero_point.dtype)
        node.input[2] = editor.constant(f"{name}/zero_points", zeros)
        node.attribute.append(onnx.helper.make_attribute("axis", 2))
    editor.rewrite(lambda node: [] if node.output[0] in muls else [node])


def measure(
    target: str,
    plans: dict[str, Plan],
    images: np.ndarray,
    macs: int,
    rounds: int,
    seconds: float,
) -> list[list[Any]]:
    rows: list[list[Any]] = []
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, plan in plans.items():
            model = build_model(plan, options=GraphOptions(target=target))
            if name.startswith("scales"):
                into_scales(model)
            path = Path(folder) / f"{name}.onnx"
            path.write_bytes(serialize(model))
            extra = sum(
                layer.float_channels.size * len(plan.weights[f"{linear}.weight"])
                for linear, layer in plan.linears.items()
                if layer.float_channels is not None
            )
            rows.append(["integer products", target, name, integer_gemms(path), "", ""])
            rows.append(["share of MACs", target, name, f"{extra / macs:.6f}", "", ""])
            loaded = session(path, 1)
            runs[name] = lambda loaded=loaded: loaded.run(None, {"image": images})
        samples = interleave(
            runs, rounds, clock=time.process_time, turn_ms=1e9, max_calls=1, seconds=seconds
        )
    for name in plans:
        calls = samples.calls(name)
        middle = samples.percentile(name, 50)
        rows.append(
            ["cpu ms (1 thread)", target, name, f"{middle:.2f}", f"{min(calls):.2f}", len(calls)]
        )
        if name != NONE:
            found = samples.ratio(name, NONE)
            values = [f"{v:.4f}" for v in (found.value, found.low, found.high)]
            rows.append(["ratio of cpu ms", target, name, *values])
    return rows


def write(rows: list[list[Any]], output: Path | None) -> None:
    import onnxruntime

    machine = describe_machine()
    facts = {
        "cpu": f"{machine['cpu']} ({' '.join(machine['cpu_flags']) or 'no VNNI'})",
        "load": machine["load"],
        "onnxruntime": onnxruntime.__version__,
        "model": f"{MODEL}, random weights: cost only, batch 1",
    }
    out = output.open("w", newline="") if output else sys.stdout
    writer = csv.writer(out, lineterminator="\n")
    for key, value in facts.items():
        writer.writerow(["environment", "", key, value])
    writer.writerow(["kind", "target", "variant", "value", "low_or_min", "high_or_n"])
    writer.writerows(rows)
    if output:
        out.close()


if __name__ == "__main__":
    sys.exit(main())
