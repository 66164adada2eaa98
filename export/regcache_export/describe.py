"""The essentials of a plan in a few words, for the ONNX metadata and the bundle's manifest."""

from __future__ import annotations

import json
from importlib import metadata as distributions
from typing import Any

from .merge import block_tokens
from .plan import Plan
from .spec import LINEARS
from .targets import GraphOptions, find_target

METADATA_SCHEMA = 1


def tool_version() -> str:
    """Version of the installed distribution, or `0+source` when run from a source tree."""
    try:
        return distributions.version("regcache-deploy")
    except distributions.PackageNotFoundError:
        return "0+source"


def bits_label(plan: Plan) -> str:
    """`W8A8` if every quantized linear has the same widths, `mixed` if not, `float` if none is."""
    widths = {(layer.weight.bits, layer.input.bits) for layer in plan.linears.values()}
    pairs = [pair for name, pair in plan.published.items() if _is_linear(name)]
    widths |= {(weight.bits, x.bits) for x, weight in pairs}
    if not widths:
        return "float"
    if len(widths) > 1:
        return "mixed"
    weight, activation = widths.pop()
    return f"W{weight}A{activation}"


def tokens_out(plan: Plan) -> int:
    """Tokens per image after the last block, special tokens included."""
    return block_tokens(plan.encoder, plan.regcache, plan.merge)[-1].mlp


def summary(plan: Plan) -> dict[str, Any]:
    """Model, baseline, bits, RegCache numbers and the merge, where there is one.

    `provenance` gives `model` and `baseline`.
    """
    return {
        "model": str(plan.provenance.get("model", "unknown")),
        "baseline": str(plan.provenance.get("baseline", "none" if not plan.linears else "unknown")),
        "bits": bits_label(plan),
        "quantized_linears": len(plan.linears) + sum(map(_is_linear, plan.published)),
        "strict_paper": bool(plan.published),
        "linears": 4 * plan.encoder.depth,
        "regcache": plan.regcache.to_json() if plan.regcache else None,
    } | ({"merge": plan.merge.to_json()} if plan.merge else {})


def metadata(
    plan: Plan, plan_sha256: str | None = None, options: GraphOptions | None = None
) -> dict[str, str]:
    """ONNX `metadata_props`: what the file still says when it is alone, by sorted key."""
    options = options or GraphOptions()
    essentials = summary(plan) | {
        "target": options.target,
        "pixels": options.pixels or "normalized float32",
        "schema": METADATA_SCHEMA,
        "tool_version": tool_version(),
        "preprocess": plan.preprocess,
    }
    if find_target(options.target).form == "as_written":
        # ONNX Runtime's engine cuts batches into pieces of about as many tokens as its cache holds;
        # a graph for TensorRT runs there for comparison only, and not bit for bit in pieces
        essentials["tokens"] = plan.encoder.num_tokens
    if plan_sha256:
        essentials["plan_sha256"] = plan_sha256
    return {f"regcache.{key}": metadata_text(essentials[key]) for key in sorted(essentials)}


def _is_linear(name: str) -> bool:
    return name.split(".", 2)[-1] in LINEARS


def metadata_text(value: Any) -> str:
    """A value as the metadata have it."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
