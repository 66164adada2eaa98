"""Targets: which form of each part a runtime gets, and the measurement that decides it.

A plan says *what* is computed; a target says *in which operators*. Codes, scales and weights are
the same in every target, and so is the certificate.

To add a target:

1. Add a `Target` to `TARGETS`. Its fields name forms that exist already, or new ones.
2. A new form is one function: of a linear in `graph/linear.py` (`LINEAR_FORMS`), of attention in
   `graph/attention.py` (`ATTENTION_FORMS`). It gets the builder and the folded plan, and names
   its nodes `blocks.I.role/Operator`, so that certificate and profiles find them.
3. What the plan must satisfy first is a fold of `passes/`; list it in `Target.folds`. TensorRT,
   for one, takes no zero point: `folds=("centre-shift",)` makes every activation symmetric.
4. Write the measurement that justifies each choice into `evidence`.

Nothing else needs to know: options, command line, manifest and certificate read this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .errors import ConfigError

LinearForm = Literal["qdq", "integer_to_float"]
AttentionForm = Literal["standard", "multi_head"]
Body = Literal["float16", "float32"]
GraphForm = Literal["as_written", "tensorrt"]
PixelLayout = Literal["nchw", "nhwc"]

DEFAULT_TARGET = "onnx"


@dataclass(frozen=True)
class Target:
    """One column of the table.

    Attributes:
        name: as in `--target`.
        summary: one line for the help.
        linear: `qdq` (QuantizeLinear, DequantizeLinear, MatMul: standard operators, which runtimes
            fuse) or `integer_to_float` (com.microsoft.MatMulIntegerToFloat with the bias inside).
        attention: `standard` (MatMul, Softmax, MatMul over `[B, H, N, d]`) or `multi_head`
            (com.microsoft.MultiHeadAttention over `[B, N, D]`).
        narrow_products: queries, keys and values as three integer products (`graph/columns.py`).
        folds: export folds that this target needs, beside those that the user switches.
        skips: export folds that it does without.
        form: `tensorrt` rewrites the finished graph (`graph/tensorrt.py`) and checks its rules
            (`checks/`); only such a graph may quantize attention.
        evidence: choice -> the measurement that justifies it.
    """

    name: str
    summary: str
    linear: LinearForm
    attention: AttentionForm
    narrow_products: bool = False
    folds: tuple[str, ...] = ()
    skips: tuple[str, ...] = ()
    form: GraphForm = "as_written"
    evidence: Mapping[str, str] = field(default_factory=dict)

    @property
    def portable(self) -> bool:
        """Only standard operators."""
        return self.linear == "qdq" and self.attention == "standard"


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            name=DEFAULT_TARGET,
            summary="portable Q/DQ with standard operators (ONNX Runtime, OpenVINO, ...)",
            linear="qdq",
            attention="standard",
            evidence={
                "bias [1, 1, C]": "a bias [C] behind a Q/DQ MatMul ends in a float Gemm in ONNX "
                "Runtime 1.31, without a word; tests/export/test_graph_quantized.py counts them",
                "attention in float": "12 heads, 197 tokens, d 64, ONNX Runtime 1.31, one thread "
                "of a VNNI Xeon: 1.33 ms in INT8, 1.07 ms in float32",
                "LayerNormalization and Add apart": "ONNX Runtime's SkipLayerNormalization on CPU "
                "takes three times as long: 13.5 against 4.2 ms in a ViT-B/16",
            },
        ),
        Target(
            name="onnxruntime",
            summary="tuned for ONNX Runtime on CPU, with com.microsoft operators",
            linear="integer_to_float",
            attention="multi_head",
            narrow_products=True,
            evidence={
                "MatMulIntegerToFloat with MultiHeadAttention": "ViT-B/16, batch 8, two threads of "
                "a VNNI Xeon, ONNX Runtime 1.31: 451 ms; portable form 522, quantize_static 678, "
                "float32 1263 (least of the rounds); at batch 1 within noise of the portable form",
                "uint8 codes": "the s8s8 kernel is 20 times slower than u8s8; adding 128 to code "
                "and zero point changes no product",
                "queries, keys and values as three products": "bit-equal; CPU time 1.00 of the "
                "packed product with a Split at batch 1, 0.99 at batch 8, within the interval "
                "(tuned_wide in benchmarks/cpu_forms.py); the last block's queries are one row",
                "prefix by Concat over [B, N, D]": "CPU time 0.997 of the graph without a prefix, "
                "with an A/A control of 1.005",
            },
        ),
        Target(
            name="tensorrt",
            summary="INT8 kernels of TensorRT 10, 11 and TensorRT-RTX: zero point 0, FP16 body",
            linear="qdq",
            attention="standard",
            folds=("centre-shift",),
            skips=("cls-only",),
            form="tensorrt",
            evidence={
                "three products for q, k, v": "TensorRT-RTX 1.7.1 turns a packed one with a Split "
                "into a float16 GEMM of dequantized weights, three into one INT8 GEMM",
                "no Q/DQ on the residual": "in a ViT-B/16 of 12 blocks it changes no product and "
                "leaves the sums in float16, 78 of 79 tensors (TensorRT-RTX 1.7.1, "
                "benchmarks/tensorrt_residual.py)",
                "no cls-only": "with one query row, TensorRT-RTX 1.7.1 does not fuse INT8 "
                "attention; the patches are dropped behind it instead",
            },
        ),
    )
}


def find_target(name: str) -> Target:
    """Look a target up. Raises ConfigError for an unknown name."""
    if name not in TARGETS:
        raise ConfigError(f"unknown target '{name}'; take one of: {', '.join(TARGETS)}")
    return TARGETS[name]


@dataclass(frozen=True)
class GraphOptions:
    """How a plan becomes a graph.

    Attributes:
        target: name of a target.
        pixels: the graph takes uint8 pixels in this layout, normalization folded into the patch
            convolution; None takes normalized float32 `[B, 3, H, W]`.
        without: folds to leave out, for debugging.
        batch: fixed batch size, or None for any.
        body: type of the floating-point parts in a graph for TensorRT; every other target has
            float32. `float32` there is for comparing with the simulation.
        probes: quantized tensors whose codes the graph also gives out, for the outlier monitor.
    """

    target: str = DEFAULT_TARGET
    pixels: PixelLayout | None = None
    without: tuple[str, ...] = ()
    batch: int | None = None
    body: Body = "float16"
    probes: int = 0

    def __post_init__(self) -> None:
        find_target(self.target)
        if self.pixels not in (None, "nchw", "nhwc"):
            raise ConfigError(f"--bake-preprocess {self.pixels}: take nchw or nhwc")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"--batch {self.batch} is out of range: take at least 1")
        if not 0 <= self.probes <= 3:
            raise ConfigError(f"--probes {self.probes} is out of range: take 0 to 3")
        if self.probes and find_target(self.target).form == "tensorrt":
            raise ConfigError(
                "--probes adds outputs that TensorRT's INT8 kernels would have to give up their "
                "fusions for; take --target onnx or onnxruntime for the outlier monitor"
            )
