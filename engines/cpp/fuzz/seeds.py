"""Write the fuzzer's first inputs: `python engines/cpp/fuzz/seeds.py DIR`."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

MANIFEST = {
    "schema": 1,
    "model": "seed",
    "files": {
        "model.onnx": {"sha256": "0" * 64, "size": 1},
        "preprocess_cfg.json": {"sha256": "0" * 64, "size": 1},
    },
    "graph": {
        "input": {"name": "image", "dtype": "float32", "shape": ["batch", 3, 8, 8]},
        "output": {"name": "image_features"},
        "probes": [{"name": "fc2", "output": "codes", "low": 0, "high": 255}],
    },
}
PREPROCESS = {
    "size": [8, 9],
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bilinear",
    "resize_mode": "longest",
    "fill_color": 3,
}

# graph { initializer { raw_data: "x" } }, and one whose weights are in another file
MODEL, OUTSIDE = b"\x3a\x05\x2a\x03\x4a\x01x", b"\x3a\x04\x2a\x02\x6a\x00"

NAMES = (
    *("manifest.json", "model.onnx", "preprocess_cfg.json", "text_features.safetensors"),
    *("text/model.onnx", "text/tokenizer.json", "text/text.json", "other", ".hidden", "text"),
)
"""As in folder.cpp."""


def entry(name: str, data: bytes, kind: int = 0) -> bytes:
    """One file of a folder, as folder.h describes it."""
    return bytes([kind, NAMES.index(name)]) + len(data).to_bytes(3, "little") + data


def folders(head: bytes) -> dict[str, bytes]:
    """Whole bundles, and some that are refused for what lies beside their files."""
    files = {"model.onnx": MODEL, "preprocess_cfg.json": json.dumps(PREPROCESS).encode()}
    with_head = files | {"text_features.safetensors": head}
    with_text = with_head | {name: name.encode() for name in NAMES[4:7]}
    more = {
        "plain": (files, b""),
        "head": (with_head, b""),
        "text": (with_text, b""),
        "outside": (files | {"model.onnx": OUTSIDE}, b""),
        "hidden": (files, entry(".hidden", b"x")),
        "unlisted": (files, entry("other", b"x")),
        "linked": (files, entry("other", bytes([1]), kind=1)),
        "pipe": (files, entry("other", b"", kind=3)),
        "folder": (with_text, entry("text", b"", kind=2)),
    }
    return {name: _folder(*parts) for name, parts in more.items()}


def _folder(files: dict[str, bytes], more: bytes) -> bytes:
    listed = {name: {"sha256": f"#{NAMES.index(name)}", "size": -1} for name in files}
    manifest = json.dumps(MANIFEST | {"files": listed})
    for name in files:
        mark = f'"#{NAMES.index(name)}", "size": '
        manifest = manifest.replace(f"{mark}-1", f"{mark}~{NAMES.index(name)}")
    return (
        entry(NAMES[0], manifest.encode()) + b"".join(entry(*file) for file in files.items()) + more
    )


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps(
        {
            "__metadata__": {"labels": '["a", "b"]', "logit_scale": "10.0"},
            "text_features": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        }
    ).encode()
    (folder / "manifest").write_bytes(b"\0\0" + json.dumps(MANIFEST).encode())
    rows = np.eye(2, 3, dtype=np.float32).tobytes()
    head = len(header).to_bytes(8, "little") + header + rows
    (folder / "head").write_bytes(b"\1\0" + head)
    (folder / "preprocess").write_bytes(b"\2\0" + json.dumps(PREPROCESS).encode())
    for name, data in folders(head).items():
        (folder / f"folder-{name}").write_bytes(b"\4\0" + data)
    noise = np.random.default_rng(0).integers(0, 256, (13, 17, 4), dtype=np.uint8)
    colour = Image.fromarray(noise[..., :3])
    pictures = {
        "rgb.png": (colour, {}),
        "rgba.png": (Image.fromarray(noise), {}),
        "grey.png": (colour.convert("L"), {}),
        "grey_alpha.png": (colour.convert("LA"), {}),
        "bit.png": (colour.convert("1"), {}),
        "palette.png": (colour.quantize(7), {}),
        "grey16.png": (Image.fromarray(noise[..., 0].astype(np.uint16) * 200), {}),
        "rgb.jpg": (colour, {"subsampling": 0}),
        "chroma.jpg": (colour, {"subsampling": 2}),
        "progressive.jpg": (colour, {"progressive": True}),
        "grey.jpg": (colour.convert("L"), {}),
        "cmyk.jpg": (colour.convert("CMYK"), {}),
    }
    for number, (name, (picture, options)) in enumerate(pictures.items()):
        file = io.BytesIO()
        kind = "PNG" if name.endswith("png") else "JPEG"
        picture.save(file, kind, **options)
        (folder / name).write_bytes(bytes([3, number * 21]) + file.getvalue())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
