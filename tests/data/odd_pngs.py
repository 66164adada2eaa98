"""PNG files that readers could take in two ways: by name, whether both take them, and the file."""

from __future__ import annotations

import struct
import zlib

import numpy as np

SIDE = 40
PIXELS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
MIB = 1 << 20


def chunk(name: bytes, data: bytes = b"", crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def header(kind: int = 2, last: bytes = bytes(3)) -> bytes:
    return struct.pack(">IIBB", SIDE, SIDE, 8, kind) + last


def packed(channels: int = 3) -> bytes:
    return zlib.compress(b"".join(b"\0" + row[:, :channels].tobytes() for row in PIXELS))


IHDR, IEND, PALETTE = chunk(b"IHDR", header()), chunk(b"IEND"), chunk(b"PLTE", bytes(768))
ROWS, INDICES = chunk(b"IDAT", packed()), chunk(b"IDAT", packed(1))
TEXT = chunk(b"tEXt", b"a\0b")


def file(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def with_front(*chunks: bytes) -> bytes:
    return file(IHDR, *chunks, ROWS, IEND)


def with_end(end: bytes) -> bytes:
    return file(IHDR, ROWS, end)


def of_a_pixel(last: bytes) -> bytes:
    """A pixel looks the same in every interlacing."""
    form = struct.pack(">IIBB", 1, 1, 8, 0) + last
    return file(chunk(b"IHDR", form), chunk(b"IDAT", zlib.compress(b"\0\5")), IEND)


def of_palette(*chunks: bytes) -> bytes:
    return file(chunk(b"IHDR", header(3)), *chunks, INDICES, IEND)


def unpacking_to(size: int) -> bytes:
    return b"a\0\0" + zlib.compress(bytes(size))


TAKEN = {
    "plain": with_front(),
    "a long compressed text": with_front(chunk(b"zTXt", unpacking_to(2 * MIB))),
    "a long international text": with_front(chunk(b"iTXt", b"a\0\1" + unpacking_to(2 * MIB))),
    "a large profile": with_front(chunk(b"iCCP", unpacking_to(2 * MIB))),
    "texts of 65 MiB": with_front(*[chunk(b"tEXt", b"a\0" + bytes(MIB))] * 65),
    "a profile packed in no known way": with_front(chunk(b"iCCP", b"a\0\1x")),
    "half a gamma": with_front(chunk(b"gAMA", b"a")),
    "half a resolution": with_front(chunk(b"pHYs", b"a")),
    "half a transparency": with_front(chunk(b"tRNS", b"a")),
    "half an animation": with_front(chunk(b"acTL", b"a")),
    "a text in front": file(TEXT, IHDR, ROWS, IEND),
    "half a palette beside colours": with_front(chunk(b"PLTE", b"ab")),
    "no end": with_end(b""),
    "half an end": with_end(IEND[:6]),
    "half a text behind": with_end(TEXT[:9]),
    "a wrong checksum behind": with_end(chunk(b"tEXt", b"a\0b", 5) + IEND),
    "a long text behind": with_end(chunk(b"zTXt", unpacking_to(2 * MIB)) + IEND),
    "more than a file's length behind": with_end(struct.pack(">I", 2**31 - 1) + b"tEXt"),
    "other bytes behind": with_end(b"no chunk is here"),
    "a palette": of_palette(PALETTE),
    "a transparent palette": of_palette(PALETTE, chunk(b"tRNS", b"\0")),
}
REFUSED = {
    "pixels with a wrong checksum": file(IHDR, chunk(b"IDAT", packed(), 5), IEND),
    "a text with a wrong checksum": with_front(chunk(b"tEXt", b"a\0b", 5)),
    "an unknown critical chunk": with_front(chunk(b"ABCD", b"a")),
    "a name that is none": with_front(chunk(b"1234", b"a")),
    "two headers": with_front(IHDR),
    "a long header": file(chunk(b"IHDR", header() + b"\0"), ROWS, IEND),
    "another compression": file(chunk(b"IHDR", header(last=b"\1\0\0")), ROWS, IEND),
    "another filter": file(chunk(b"IHDR", header(last=b"\0\1\0")), ROWS, IEND),
    "another interlacing": of_a_pixel(b"\0\0\2"),
    "two palettes": of_palette(PALETTE, PALETTE),
    "no palette": of_palette(),
    "an empty palette": of_palette(chunk(b"PLTE")),
    "a palette of 10 bytes": of_palette(chunk(b"PLTE", bytes(10))),
    "a palette behind": file(chunk(b"IHDR", header(3)), INDICES, PALETTE, IEND),
    "an empty palette beside colours": with_front(chunk(b"PLTE")),
    "no pixels": file(IHDR, IEND),
    "pixels in two places": file(
        IHDR, chunk(b"IDAT", packed()[:99]), TEXT, chunk(b"IDAT", packed()[99:]), IEND
    ),
    "half the pixels": file(IHDR, ROWS[:500]),
}
