"""Probes: quantized tensors whose integer codes the graph also gives out, for the outlier monitor.

The runtime counts the codes at either end of the range. Nothing is added to the graph but outputs:
the QuantizeLinear nodes are there anyway, and the integer products still read them.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper

from ..errors import BundleError
from ..integer_codes import code_range
from ..plan import Plan

MAX_PROBES = 3


def add_probes(model: onnx.ModelProto, plan: Plan, count: int) -> list[dict[str, Any]]:
    """Add up to `count` outputs to a finished model, in place.

    Returns:
        One entry per probe for the manifest: `name` of the layer whose input is watched, `output`
        of the graph, `low` and `high` codes as they are stored.

    Raises:
        BundleError: the plan quantizes nothing, or the target's graph has no such codes.
    """
    if not count:
        return []
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    made = {value for node in model.graph.node for value in node.output}
    entries = []
    for name in probe_places(plan)[:count]:
        output, stored = f"{name}/QuantizeLinear", types.get(f"{name}.input_zero_point")
        if output not in made or stored not in (TensorProto.INT8, TensorProto.UINT8):
            raise BundleError(
                f"this target's graph has no 8-bit codes at the input of {name}; "
                "export without probes"
            )
        quant = plan.linears[name].input
        low, high = code_range(quant)
        if quant.signed and stored == TensorProto.UINT8:
            low, high = low + 128, high + 128
        model.graph.output.append(helper.make_tensor_value_info(output, stored, None))
        entries.append({"name": f"{name} (input)", "output": output, "low": low, "high": high})
    if not entries:
        raise BundleError("the plan quantizes no layer that a probe could watch; drop --probes")
    return entries


def probe_places(plan: Plan) -> list[str]:
    """Layers whose inputs tell most about outliers, the best first.

    fc2 of the block before the prefix is where the sinks grow; the qkv behind it reads them; the
    last fc2 sees what is left.
    """
    depth = plan.encoder.depth
    block = plan.regcache.prefix_block if plan.regcache else depth // 2
    names = [
        f"blocks.{max(block - 1, 0)}.mlp.fc2",
        f"blocks.{min(block, depth - 1)}.attn.qkv",
        f"blocks.{depth - 1}.mlp.fc2",
    ]
    return [name for name in dict.fromkeys(names) if name in plan.linears]
