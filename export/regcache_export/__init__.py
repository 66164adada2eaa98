"""From a plan to an ONNX bundle and its certificate, with numpy and onnx."""
