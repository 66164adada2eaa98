"""A PNG reduced to the chunks that its pixels depend on, as libregcache reads it (libpng)."""

from __future__ import annotations

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_END = b"\0\0\0\0IEND\xae\x42\x60\x82"
_MAX_LENGTH, _PALETTE = (1 << 31) - 1, 3


def plain_png(data: bytes) -> bytes:
    """The same pixels without texts, profiles, animation, and without what stands behind them.

    Pillow unpacks all of these, refuses a picture for their size or form, and takes pixels with a
    wrong checksum.

    Args:
        data: a file with the signature.

    Raises:
        ValueError: a chunk up to the last one of pixels is cut, has a wrong checksum, or is one
            that libpng refuses.
    """
    parts, names, at = [SIGNATURE], list[bytes](), len(SIGNATURE)
    while True:
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if names and names[-1] == b"IDAT" != name:
            return b"".join([*parts, _END])
        end = at + 12 + length
        if end > len(data) or length > _MAX_LENGTH:
            raise ValueError("the file is truncated")
        if not (name.isascii() and name.isalpha()):
            raise ValueError("what is no chunk")
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(
            data[end - 4 : end], "big"
        ):
            raise ValueError(f"a wrong checksum of {name.decode()}")
        if name[:1].isupper():
            _check(name, data[at + 8 : end - 4], names, parts[1][16:18] if names else b"")
            parts.append(data[at:end])
            names.append(name)
        at = end


def _check(name: bytes, held: bytes, before: list[bytes], form: bytes) -> None:
    """Raise ValueError for a chunk that libpng refuses. `form`: bits and type of the pixels."""
    indices = form[1:] == bytes([_PALETTE])
    if name == b"IHDR":
        fits = not before and len(held) == 13 and held[10:12] == b"\0\0" and held[12] < 2
    elif name == b"PLTE":
        fits = before == [b"IHDR"] and bool(held) and not (indices and not _is_palette(held))
    elif name == b"IDAT":
        fits = b"PLTE" in before or (bool(before) and not indices)
    else:
        fits = False
    if not fits:
        raise ValueError(f"a chunk {name.decode()} that libpng refuses")


def _is_palette(held: bytes) -> bool:
    return len(held) % 3 == 0 and len(held) <= 3 * 256
