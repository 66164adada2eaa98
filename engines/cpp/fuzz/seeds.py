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


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps(
        {
            "__metadata__": {"labels": '["a", "b"]', "logit_scale": "10.0"},
            "text_features": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        }
    ).encode()
    (folder / "manifest").write_bytes(b"\0\0" + json.dumps(MANIFEST).encode())
    head = len(header).to_bytes(8, "little") + header + bytes(24)
    (folder / "head").write_bytes(b"\1\0" + head)
    (folder / "preprocess").write_bytes(b"\2\0" + json.dumps(PREPROCESS).encode())
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
