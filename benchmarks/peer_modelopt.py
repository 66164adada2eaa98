"""Quantize an ONNX file with ModelOpt; run by `peers.py` in the environment that has it.

    python benchmarks/peer_modelopt.py MODEL.onnx CALIBRATION.npy OUTPUT.onnx int8|fp8 fp16|fp32

ModelOpt pins versions of onnx and onnxruntime that differ from ours, so it lives in an environment
of its own: `pip install 'nvidia-modelopt[onnx]'`.
"""

from __future__ import annotations

import sys

import numpy as np


def main(model: str, calibration: str, output: str, mode: str, rest: str) -> int:
    try:
        import modelopt
        from modelopt.onnx.quantization import quantize
    except ImportError as error:
        print(f"ModelOpt does not load here: {error}".splitlines()[0], file=sys.stderr)
        return 1
    quantize(
        model,
        quantize_mode=mode,
        calibration_data=np.load(calibration),
        calibration_method="entropy" if mode == "int8" else "max",
        calibration_eps=["cpu"],
        high_precision_dtype=rest,
        output_path=output,
    )
    print(f"version {modelopt.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
