"""What `for_tensorrt` changed, in the words of the tensor table and of an export's result."""

from __future__ import annotations

from .baselines import differences
from .baselines.table import FORMS
from .quantizers import Quantizer, Uniform
from .simulate import Calibration

OPERANDS = {"qk": ("query", "key"), "pv": ("probabilities", "value")}
SYMMETRIC = "per tensor, symmetric"
FLOAT_ATTENTION = "float attention products"


def tensorrt_forms(baseline: str, calibration: Calibration) -> dict[str, str]:
    """Tensor -> how the graph for TensorRT quantizes it, for `tensor_table`."""
    covered, forms = _covered(baseline, calibration), {}
    for name, layer in calibration.quantization.linears.items():
        for role, quantizer in (("input", layer.input), ("weight", layer.weight)):
            form = FORMS[baseline][f"{name.split('.', 2)[2]}.{role}"][1]
            if role == "input" and name in covered:
                form = f"{SYMMETRIC}, over a wider range"
            forms[f"{name}.{role}"] = _with_width(form, quantizer)
    for name, pair in calibration.quantization.matmuls.items():
        for operand, quantizer in zip(OPERANDS[name.rsplit(".", 1)[1]], pair, strict=True):
            form = f"{SYMMETRIC}, up to 1" if operand == "probabilities" else SYMMETRIC
            forms[f"{name}.{operand}"] = _with_width(form, quantizer)
    return forms


def tensorrt_differences(baseline: str, calibration: Calibration) -> tuple[str, ...]:
    """Where the graph for TensorRT differs from the published baseline, one line each."""
    blocks = len(calibration.quantization.matmuls) // 2
    lines = [
        line for line in differences(baseline) if not blocks or not line.endswith(FLOAT_ATTENTION)
    ]
    if blocks:
        lines.append(
            f"attention operands of {blocks} blocks: as published -> symmetric INT8, softmax at "
            "1/127; where attention does not fuse, float"
        )
    covered = _covered(baseline, calibration)
    if covered:
        lines.append(
            f"inputs of {', '.join(covered)}: asymmetric -> a symmetric range that covers it"
        )
    return (*lines, "every scale: rounded to float16")


def _covered(baseline: str, calibration: Calibration) -> list[str]:
    """Linears whose input got a symmetric range in place of the baseline's asymmetric one."""
    found = []
    for name, layer in calibration.quantization.linears.items():
        form = FORMS[baseline][f"{name.split('.', 2)[2]}.input"][1]
        asymmetric = "asymmetric" in form and "2**(bits-1)" not in form
        if asymmetric and isinstance(layer.input, Uniform) and layer.input.signed:
            found.append(name)
    return found


def _with_width(form: str, quantizer: Quantizer) -> str:
    assert isinstance(quantizer, Uniform)
    return f"{form}, float16 scale, {quantizer.bits} bits"
