"""TensorRT 10 and 11, and TensorRT-RTX, behind one builder and one engine.

Nothing here imports a runtime before it is used, and nothing touches `Builder` or `Runtime` before
`probe` has seen that this is safe: without a GPU, full TensorRT can kill the interpreter.
"""
