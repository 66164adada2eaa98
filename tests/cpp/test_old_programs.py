"""A program that was compiled with an older header meets a newer library."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

FIRST = """
import ctypes, sys
c = ctypes
class First(c.Structure):
    _fields_ = [("struct_size", c.c_size_t), ("library", c.c_char_p), ("threads", c.c_int32),
                ("provider", c.c_int), ("device_id", c.c_int32), ("engine_cache", c.c_char_p),
                ("fp16", c.c_int32), ("max_pixels", c.c_int64), ("saturation_warning", c.c_double),
                ("warning", c.c_void_p), ("user_data", c.c_void_p)]
library = c.CDLL(sys.argv[1])
library.regcache_last_error.restype = c.c_char_p
library.regcache_model_default_params.restype = First
params = library.regcache_model_default_params()
assert params.struct_size == c.sizeof(First), params.struct_size
params.library = sys.argv[3].encode()
params.threads = 1
model = c.c_void_p()
status = library.regcache_model_open(sys.argv[2].encode(), c.byref(params), c.byref(model))
assert status == 0, library.regcache_last_error()
library.regcache_model_output_dim.argtypes = [c.c_void_p]
print(library.regcache_model_output_dim(model))
"""


def test_the_first_header_still_opens_a_model(release: Path, bundle: Path) -> None:
    runtime = (release / "onnxruntime/libonnxruntime.so.1").resolve()
    command = [
        sys.executable,
        "-c",
        FIRST,
        str(release / "libregcache.so"),
        str(bundle),
        str(runtime),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_defaults_stay_inside_of_a_shorter_struct(release: Path) -> None:
    library = ctypes.CDLL(str(release / "libregcache.so"))
    size = 72
    buffer = ctypes.create_string_buffer(b"\xaa" * 256, 256)
    library.regcache_model_params_init(ctypes.byref(buffer), ctypes.c_size_t(size))
    assert int.from_bytes(buffer.raw[:8], sys.byteorder) == size
    assert buffer.raw[size:] == b"\xaa" * (256 - size)
