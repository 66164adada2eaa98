"""Room 2: from a plan to an ONNX bundle. numpy and onnx, never torch."""
