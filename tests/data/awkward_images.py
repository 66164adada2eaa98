"""Awkward JPEG and PNG files, made by script: every mode that the formats have, odd sizes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = [(1, 1), (7, 150), (151, 11), (33, 32), (24, 32), (131, 97)]


def png(width: int, height: int, depth: int, kind: int, rows: bytes) -> bytes:
    """A PNG file of any bit depth and colour type, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    stride = len(rows) // height
    lines = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    data = chunk(b"IHDR", header)
    if kind == 3:
        data += chunk(b"PLTE", bytes(range(3 * 3)))  # fewer colours than indices
        data += chunk(b"tRNS", b"\0\x80")
    return b"\x89PNG\r\n\x1a\n" + data + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def write_awkward_images(folder: Path) -> list[Path]:
    """Write them and return their paths, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    for width, height in SIZES:
        name = f"{width}x{height}"
        values = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 4))
        ramp = np.linspace(0, 1, width)[None, :, None]
        noise = (values * 0.5 + ramp * 127).astype(np.uint8)
        colour = Image.fromarray(noise[..., :3])
        cmyk = Image.frombytes("CMYK", (width, height), noise.tobytes())
        for subsampling in (0, 1, 2):
            colour.save(folder / f"{name}-s{subsampling}.jpg", quality=83, subsampling=subsampling)
        colour.save(folder / f"{name}-progressive.jpg", progressive=True)
        cmyk.save(folder / f"{name}-cmyk.jpg")
        turned = Image.Exif()
        turned[0x0112] = 6
        colour.save(folder / f"{name}-turned.jpg", exif=turned)
        colour.convert("L").save(folder / f"{name}-grey.jpg")
        for mode in ("RGB", "L", "1", "P"):
            colour.convert(mode).save(folder / f"{name}-{mode}.png")
        Image.fromarray(noise).save(folder / f"{name}-RGBA.png")
        colour.quantize(5).save(folder / f"{name}-P5.png", transparency=1)
        alpha = Image.merge("LA", [colour.convert("L"), Image.fromarray(noise[..., 3])])
        alpha.save(folder / f"{name}-LA.png")
    rng = np.random.default_rng(5)
    for depth, kind, channels in (
        (16, 0, 1), (16, 2, 3), (16, 4, 2), (16, 6, 4), (8, 4, 2),
        (1, 0, 1), (2, 0, 1), (4, 0, 1), (1, 3, 1), (2, 3, 1), (4, 3, 1), (8, 3, 1),
    ):  # fmt: skip
        width, height = 45, 38
        stride = (width * channels * depth + 7) // 8
        rows = rng.integers(0, 256, stride * height, dtype=np.uint8)
        if depth == 16 and kind == 0:
            rows[::2] %= 2  # around the 255 where Pillow clips
        if kind == 3 and depth == 8:
            rows %= 5
        path = folder / f"raw-{depth}-{kind}.png"
        path.write_bytes(png(width, height, depth, kind, rows.tobytes()))
    return sorted(folder.iterdir())


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """A grey progressive JPEG whose refinement scans say nothing, and cost a few bytes each."""

    def segment(code: int, data: bytes) -> bytes:
        return bytes([0xFF, code]) + struct.pack(">H", len(data) + 2) + data

    blocks = ((side + 7) // 8) ** 2
    runs = (blocks + 16383) // 16384  # of 2**14 blocks without a coefficient
    parts = [b"\xff\xd8", segment(0xDB, bytes([0]) + bytes([1] * 64))]
    # bytes that look like starts of scans, where none can be
    parts.append(segment(0xFE, b"\xff\xda" * 600))
    parts.append(segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0])))
    parts.append(segment(0xC4, bytes([0x00, 1, *[0] * 15, 0])))
    parts.append(segment(0xC4, bytes([0x10, 1, *[0] * 15, 0xE0])))
    parts.append(segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes((blocks + 7) // 8))
    for index in range(scans - 1):
        place = 0x01 if index == 0 else 0x10
        parts.append(segment(0xDA, bytes([1, 1, 0, 1, 63, place])) + bytes((runs * 15 + 7) // 8))
    return b"".join([*parts, b"\xff\xd9"])
