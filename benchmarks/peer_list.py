"""The tools that `peers.py` compares.

Every tool is set up as its own documentation advises; `settings` repeats what was chosen.
"""

from __future__ import annotations

import sys

from peer_tools import (
    Peer,
    modelopt,
    no_file,
    openvino_file,
    openvino_float,
    ours_file,
    quantize_dynamically,
    quantize_nncf,
    run_compiled,
    run_eager,
    run_onnxruntime,
    run_openvino,
    run_ours,
    run_tensorrt,
    static_all,
    static_linears,
    tensorrt_file,
    tensorrt_half,
)
from peer_work import Work

FP32 = "W32A32"
PAPER, AUTO = "--recipe paper", "--recipe auto"
NNCF = "model_type=TRANSFORMER, default preset"
F32, HINT = "INFERENCE_PRECISION_HINT=f32", "INFERENCE_PRECISION_HINT left at its default"
STATIC = "QDQ, uint8 activations and int8 weights per channel, MinMax calibration"


def peers(modelopt_python: str = sys.executable) -> list[Peer]:
    """All tools; the first one is the reference of accuracy."""
    ort, ov, ours = "onnxruntime", "openvino", "regcache-deploy"
    return [
        Peer("torch_eager", "PyTorch eager", "torch", "open_clip's own module, on the CPU",
             no_file, run_eager, FP32),
        Peer("torch_compile", "torch.compile", "torch",
             "inductor on the CPU, one static graph a batch size", no_file, run_compiled, FP32),
        Peer("onnxruntime_fp32", "ONNX Runtime FP32", ort,
             "the encoder as it is, written by our exporter", lambda w: w.float_model,
             run_onnxruntime, FP32),
        Peer("openvino_fp32", "OpenVINO FP32", ov, f"the same file, {F32}",
             openvino_float, run_openvino("f32"), FP32),
        Peer("openvino_default", "OpenVINO, float file, default hint", ov, f"the same file, {HINT}",
             openvino_float, run_openvino(), FP32, note=hint),
        Peer("static_default", "quantize_static, all operators", ort,
             f"quant_pre_process; {STATIC}; every operator that it quantizes by default",
             static_all, run_onnxruntime),
        Peer("static_linears", "quantize_static, linears only", ort,
             f"{STATIC}; MatMul with constant weights only", static_linears, run_onnxruntime),
        Peer("dynamic", "quantize_dynamic, int8 per channel", ort,
             "quant_pre_process; int8 weights per channel",
             quantize_dynamically("QInt8", True), run_onnxruntime),
        Peer("dynamic_quint8", "quantize_dynamic, uint8 per tensor", ort,
             "quant_pre_process; uint8 weights per tensor, as the usual CLIP files for browsers",
             quantize_dynamically("QUInt8", False), run_onnxruntime),
        Peer("nncf", "NNCF INT8 in OpenVINO", "nncf", f"{NNCF}; {F32}",
             quantize_nncf, run_openvino("f32"), note=smoothing),
        Peer("nncf_default", "NNCF INT8 in OpenVINO, default hint", "nncf", f"{NNCF}; {HINT}",
             quantize_nncf, run_openvino(), note=lambda w: f"{smoothing(w)}; {hint(w)}"),
        Peer("modelopt_int8", "ModelOpt ONNX INT8 in ONNX Runtime", "nvidia-modelopt",
             "quantize_mode=int8, calibration_method=entropy, high_precision_dtype=fp32",
             modelopt("int8", modelopt_python, False), run_onnxruntime),
        Peer("ours_float", "ours, float file", ours, "our exact folds, no quantizer",
             ours_file("float", "plain"), run_ours, FP32),
        Peer("portable_plain", "ours, portable, quantizer alone", ours, "--target onnx",
             ours_file("portable", "plain"), run_ours),
        Peer("portable_regcache", "ours, portable, RegCache as published", ours,
             f"--target onnx {PAPER}", ours_file("portable", "regcache"), run_ours,
             note=published),
        Peer("portable_auto", "ours, portable, auto", ours, f"--target onnx {AUTO}",
             ours_file("portable", "auto"), run_ours, note=raced),
        Peer("tuned_plain", "ours, tuned, quantizer alone", ours, "--target onnxruntime",
             ours_file("tuned", "plain"), run_ours),
        Peer("tuned_regcache", "ours, tuned, RegCache as published", ours,
             f"--target onnxruntime {PAPER}", ours_file("tuned", "regcache"), run_ours,
             note=published),
        Peer("tuned_auto", "ours, tuned, auto", ours, f"--target onnxruntime {AUTO}",
             ours_file("tuned", "auto"), run_ours, note=raced),
        Peer("openvino_regcache", "ours, portable, RegCache as published, in OpenVINO", ours,
             f"--target onnx {PAPER}; {F32}", openvino_file("regcache"), run_openvino("f32"),
             note=published),
        Peer("openvino_auto", "ours, portable, auto, in OpenVINO", ours,
             f"--target onnx {AUTO}; {F32}", openvino_file("auto"), run_openvino("f32"),
             note=raced),
        Peer("openvino_auto_default", "ours, portable, auto, in OpenVINO, default hint", ours,
             f"--target onnx {AUTO}; {HINT}", openvino_file("auto"), run_openvino(),
             note=lambda w: f"{raced(w)}; {hint(w)}"),
        Peer("tensorrt_fp16", "TensorRT FP16", "tensorrt-cu13", "our FP16 graph, strongly typed",
             tensorrt_half, run_tensorrt, "W16A16"),
        Peer("modelopt_int8_tensorrt", "ModelOpt INT8 in TensorRT", "nvidia-modelopt",
             "quantize_mode=int8, calibration_method=entropy, high_precision_dtype=fp16",
             modelopt("int8", modelopt_python, True), run_tensorrt),
        Peer("modelopt_fp8_tensorrt", "ModelOpt FP8 in TensorRT", "nvidia-modelopt",
             "quantize_mode=fp8, calibration_method=max, high_precision_dtype=fp16",
             modelopt("fp8", modelopt_python, True), run_tensorrt, "FP8"),
        Peer("tensorrt_plain", "ours in TensorRT, quantizer alone", ours, "--target tensorrt",
             tensorrt_file("plain"), run_tensorrt),
        Peer("tensorrt_regcache", "ours in TensorRT, RegCache as published", ours,
             f"--target tensorrt {PAPER}", tensorrt_file("regcache"), run_tensorrt,
             note=published),
        Peer("tensorrt_auto", "ours in TensorRT, auto", ours, f"--target tensorrt {AUTO}",
             tensorrt_file("auto"), run_tensorrt, note=raced),
    ]  # fmt: skip


def hint(work: Work) -> str:
    return work.notes["openvino"]


def smoothing(work: Work) -> str:
    return work.notes["nncf"]


def published(work: Work) -> str:
    return work.published_words


def raced(work: Work) -> str:
    return work.raced_words
