"""What a plan must satisfy before a graph is written from it."""

from __future__ import annotations

from typing import get_args

import numpy as np

from ..errors import BundleError, ConfigError, ModelError, UnsupportedEncoderError
from ..integer_codes import CONTAINER_BITS, code_range
from ..merge import Merge
from ..plan import Plan, TensorQuant
from ..regcache_config import DeleteAt
from ..spec import LINEARS, Activation, EncoderSpec, FinalNorm, Pool
from ..targets import DEFAULT_TARGET, Target

MIN_BITS = 2


def check_exportable(plan: Plan) -> None:
    """Refuse a plan that no graph, or only a wrong one, could be written from.

    Raises:
        BundleError: a weight or register is missing, or a quantizer does not fit the Q/DQ form.
        ConfigError: a RegCache number is out of range.
        ModelError: a weight is NaN or infinite, or the structure is unsupported.
    """
    _check_structure(plan.encoder)
    plan.check()
    for name in plan.encoder.weight_shapes():
        if not np.isfinite(plan.weights[name]).all():
            raise ModelError(f"weight {name} holds NaN or infinite values; search again")
    _check_regcache(plan)
    if plan.merge is not None:
        _check_merge(plan, plan.merge)
    _check_published(plan)
    unknown = sorted(plan.linears.keys() - set(plan.encoder.linears()))
    if unknown:
        raise BundleError(f"the plan quantizes {unknown[0]}, which this encoder does not have")
    for name, quant in plan.linears.items():
        _check_quantizer(f"the input of {name}", quant.input)
        _check_quantizer(f"the weight of {name}", quant.weight)
        if quant.input.per_channel:
            raise BundleError(
                f"the input of {name} has one scale per channel; an integer GEMM takes one scale "
                "for the whole activation: calibrate in the form 'deploy'"
            )
        rows = plan.weights[f"{name}.weight"].shape[0]
        if quant.weight.per_channel and quant.weight.scale.shape != (rows,):
            raise BundleError(
                f"the weight of {name} has {quant.weight.scale.size} scales for {rows} rows"
            )


def check_target(plan: Plan, target: Target) -> None:
    """Refuse a plan whose quantizers this target's operators would leave out.

    Raises:
        BundleError: attention is quantized, and the target computes it in floating point.
        ConfigError: published quantizers and a target that is not portable.
        UnsupportedEncoderError: TensorRT, and a gated MLP or norms inside a block's parts.
    """
    if (plan.encoder.attn_norm or plan.encoder.mlp_norm) and target.form != "as_written":
        raise UnsupportedEncoderError(
            "norms in front of out_proj or fc2 (EVA-02) are not supported by target "
            f"'{target.name}'; take --target onnx"
        )
    if plan.encoder.gated and target.form != "as_written":
        # its halves would have to be two products; that form was neither written nor tried
        raise UnsupportedEncoderError(
            f"a gated MLP ({plan.encoder.activation}) is not supported by target "
            f"'{target.name}'; take --target onnx"
        )
    if plan.published and (not target.portable or target.form != "as_written"):
        raise ConfigError(
            f"quantizers as published (--strict-paper) need --target {DEFAULT_TARGET}, "
            f"not '{target.name}'"
        )
    if plan.matmuls and target.form == "as_written":
        raise BundleError(
            f"the plan quantizes {next(iter(plan.matmuls))}, which target "
            f"'{target.name}' computes in floating point; take --target tensorrt"
        )


def _check_published(plan: Plan) -> None:
    spec, roles = plan.encoder, {"attn.qk", "attn.pv", *LINEARS}
    for name, (left, right) in plan.published.items():
        block, _, role = name.removeprefix("blocks.").partition(".")
        if role not in roles or not block.isdecimal() or int(block) >= spec.depth:
            raise BundleError(f"the plan quantizes {name}, which this encoder does not have")
        if name in plan.linears or name in plan.matmuls:
            raise BundleError(f"the plan quantizes {name} in two ways")
        left.check(f"the left operand of {name}")
        right.check(f"the right operand of {name}")
        rows = plan.weights[f"{name}.weight"].shape[0] if role in LINEARS else 1
        if left.scale.size > 1 or right.scale.size not in (1, rows) or right.kind != "uniform":
            raise BundleError(f"the published quantizers of {name} do not fit their tensors")


def _check_structure(spec: EncoderSpec) -> None:
    for what, value, known in (
        ("activation", spec.activation, get_args(Activation)),
        ("final norm", spec.final_norm, get_args(FinalNorm)),
        ("pooling", spec.pool, get_args(Pool)),
    ):
        if value not in known:
            raise UnsupportedEncoderError(f"{what} '{value}' is not one of {', '.join(known)}")
    if spec.stem and (problem := spec.size_problem()):
        raise ModelError(f"the encoder has {problem}")
    if spec.gated and spec.pool_mlp_width:
        raise UnsupportedEncoderError("attention pooling with a gated MLP is not supported")
    if spec.pool == "cls" and not spec.num_prefix_tokens:
        raise ModelError("pooling 'cls' needs a class token, and this encoder has none")
    if spec.head_dim * spec.heads != spec.width:
        raise ModelError(f"width {spec.width} does not divide into {spec.heads} heads")
    if spec.rotary and spec.head_dim % 2:
        raise ModelError(f"heads of {spec.head_dim} channels cannot be turned in pairs")
    if spec.pool == "map":
        if spec.final_norm == "after_pool":
            raise UnsupportedEncoderError(
                "pooling 'map' has its own norm; final_norm is before_pool or none"
            )
        if not spec.pool_heads or spec.pool_width % spec.pool_heads:
            raise ModelError(
                f"pool width {spec.pool_width} does not divide into {spec.pool_heads} heads"
            )
    if not spec.projection and spec.output_dim != spec.pooled_dim:
        raise ModelError(
            f"output_dim {spec.output_dim} without projection must be {spec.pooled_dim}"
        )


def _check_regcache(plan: Plan) -> None:
    if plan.regcache is None:
        return
    plan.regcache.check(plan.encoder)
    if plan.regcache.delete_at not in get_args(DeleteAt):
        raise BundleError(
            f"deletion at '{plan.regcache.delete_at}' is not one of {', '.join(get_args(DeleteAt))}"
        )
    for block in plan.regcache.prefix_blocks(plan.encoder.depth):
        register = plan.register[block]
        if register.shape != (plan.encoder.width,) or not np.isfinite(register).all():
            raise BundleError(
                f"the register of block {block} must be {plan.encoder.width} finite numbers; "
                "search again"
            )


def _check_merge(plan: Plan, merge: Merge) -> None:
    merge.check(plan.encoder, plan.regcache)
    if merge.compat:
        raise ConfigError("the published indexing of merging (--merge-compat) is only simulated")
    if plan.encoder.pool == "cls" and merge.counts[-1]:
        raise ConfigError("a class token alone leaves the last block, and nothing is merged there")


def _check_quantizer(what: str, quant: TensorQuant) -> None:
    if not MIN_BITS <= quant.bits <= CONTAINER_BITS:
        raise BundleError(f"{what} has {quant.bits} bits; this graph holds {MIN_BITS}..8")
    if quant.scale.shape != quant.zero_point.shape or quant.scale.ndim != 1:
        raise BundleError(f"{what} has scale and zero point of different shapes")
    if not quant.per_channel and quant.scale.shape != (1,):
        raise BundleError(f"{what} has {quant.scale.size} scales but is not per channel")
    if not (np.isfinite(quant.scale).all() and (quant.scale > 0).all()):
        raise BundleError(f"{what} has a scale that is not a positive number; calibrate again")
    low, high = code_range(quant)
    if ((quant.zero_point < low) | (quant.zero_point > high)).any():
        raise BundleError(f"{what} has a zero point outside its codes {low}..{high}")
