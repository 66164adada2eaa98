"""Run a bundle's graph as written, and look inside: integer codes, block inputs, kept positions.

ONNX Runtime with all optimizations off, on a temporary copy of the model whose inner tensors are
extra outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from regcache_engines.cpu_flags import may_saturate
from regcache_engines.onnxruntime_session import open_session
from regcache_engines.preprocess import in_layout

from .errors import BundleError, EngineError
from .exact_products import exact_products
from .graph.names import INPUT_NAME, OUTPUT_NAME
from .onnx_proto import NUMPY, ModelProto, ValueInfoProto
from .published_quant import CODE_TENSORS
from .spec import EncoderSpec
from .survivors import Array, Pairs


@dataclass(frozen=True)
class Tensors:
    """Names of the inner tensors of an encoder's graph.

    Attributes:
        block_inputs: one a block, before deletion.
        outputs: the output of every block.
        codes: linear, or operand of an attention product (`blocks.0.attn.qk.left`; as published,
            `blocks.0.attn/qk/left`) -> its integer codes; only what is quantized, in the graph's
            order. Quantizers as published have more tensors, with the suffixes of `CODE_TENSORS`.
        positions: block -> positions of the surviving patches, where tokens are deleted.
        pairs: block -> rows in the order of a merge and destinations of its sources, where tokens
            are merged; files of 0.2 have places of the sources alone in that order (`order`).
        leading: tokens in front of the patches.
    """

    block_inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    codes: Mapping[str, str]
    positions: Mapping[int, str]
    pairs: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    leading: int = 0

    @classmethod
    def find(cls, model: ModelProto, spec: EncoderSpec) -> Tensors:
        """Read them off the graph. Raises BundleError where a block has no output."""
        made = {value for node in model.graph.node for value in node.output}
        outputs = tuple(f"blocks.{index}.mlp/residual/Add" for index in range(spec.depth))
        for name in outputs:
            if name not in made:
                raise BundleError(f"the graph has no tensor {name}; it is not one of ours")
        embeddings = ("norm_pre/LayerNormalization", "prefix_tokens/Concat", "pos_embed/Add")
        first = next((name for name in embeddings if name in made), None)
        if first is None:
            raise BundleError("the graph has no patch embedding; it is not one of ours")
        names = [name for linear in spec.linears() for name in (linear, *_products_behind(linear))]
        codes = {
            name + suffix: name + node
            for name in names
            for suffix, node in CODE_TENSORS.items()
            if name + node in made
        }
        places = {index: f"blocks.{index}.delete/positions" for index in range(spec.depth)}
        pairs = {
            index: (name, f"blocks.{index}.merge/destinations")
            for index in range(spec.depth)
            for name in (f"blocks.{index}.merge/rows", f"blocks.{index}.merge/order")
            if name in made
        }
        return cls(
            block_inputs=(first, *outputs[:-1]),
            outputs=outputs,
            codes=codes,
            positions={index: name for index, name in places.items() if name in made},
            pairs=pairs,
            leading=spec.num_prefix_tokens,
        )

    def pairs_of(self, index: int, values: Mapping[str, Array]) -> Pairs | None:
        """Sources and destinations of a block's merge, from a trace; None where it merges none."""
        if index not in self.pairs:
            return None
        order, destinations = (values[name] for name in self.pairs[index])
        if order.ndim == 3:
            sources = (order.shape[1] - self.leading + 1) // 2
            order = (order[:, self.leading : self.leading + sources, 0] - self.leading) // 2
        return Pairs(order, destinations)

    def all(self) -> list[str]:
        names = [*self.block_inputs, self.outputs[-1], *self.codes.values()]
        names += self.positions.values()
        return [*names, *(name for both in self.pairs.values() for name in both)]


def _products_behind(linear: str) -> list[str]:
    if not linear.endswith(".qkv"):
        return []
    block = linear.removesuffix(".qkv")
    products = [f"{block}{dot}{p}{dot}" for p in ("qk", "pv") for dot in "./"]
    return [product + side for product in products for side in ("left", "right")]


@dataclass(frozen=True)
class Trace:
    """What one batch looked like inside.

    Attributes:
        values: tensor name -> array.
        features: `[B, E]`.
    """

    values: Mapping[str, Array] = field(repr=False)
    features: Array = field(repr=False)


class Tracer:
    """A session with every optimization off and its inner tensors exposed.

    Args:
        model: the model; it is copied.
        spec: the encoder that it holds.

    Raises:
        BundleError: a tensor is missing.
        EngineError: ONNX Runtime cannot load it.
    """

    def __init__(self, model: ModelProto, spec: EncoderSpec) -> None:
        self.tensors = Tensors.find(model, spec)
        exposed = ModelProto()
        exposed.CopyFrom(model)
        names = self.tensors.all()
        # a name without a type: ONNX Runtime infers it
        exposed.graph.output.extend(ValueInfoProto(name=name) for name in names)
        if may_saturate():
            exact_products(exposed)
        self._names = [OUTPUT_NAME, *names]
        self._session = open_session(exposed.SerializeToString(), optimize=False)

    def run(self, images: Array) -> Trace:
        """Trace a batch of the graph's input."""
        try:
            features, *values = self._session.run(self._names, {INPUT_NAME: images})
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise EngineError(f"ONNX Runtime failed on the traced graph: {error}") from error
        return Trace(dict(zip(self._names[1:], values, strict=True)), features)


def graph_input(pixels: Array, preprocess: Mapping[str, Any], model: ModelProto) -> Array:
    """uint8 images `[B, H, W, 3]` in the form that the graph takes.

    Raises:
        BundleError: the preprocessing lacks mean or std.
    """
    value = model.graph.input[0].type.tensor_type
    if value.elem_type == NUMPY["uint8"]:
        last = value.shape.dim[3].dim_value
        return in_layout(pixels, "nhwc" if last == 3 else "nchw", preprocess)
    return in_layout(pixels, None, preprocess)


def fixed_batch(model: ModelProto) -> int | None:
    """The batch size of the graph, or None where any will do."""
    size = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    return int(size) or None
