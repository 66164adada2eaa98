"""The ONNX graph of a plan, written node by node from the encoder's description."""

from .encoder import INPUT_NAME, IR_VERSION, OPSET, OUTPUT_NAME, build_model, serialize

__all__ = ["INPUT_NAME", "IR_VERSION", "OPSET", "OUTPUT_NAME", "build_model", "serialize"]
