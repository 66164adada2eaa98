"""How many scans a JPEG has: each one passes over all pixels, and costs a file a few bytes."""

from __future__ import annotations

import re

MAX_SCANS = 500
ALWAYS = 16
"""Scans that any file may have; encoders write about ten."""

_PIXELS = 500 << 20
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_START_OF_SCAN, _END, _ALONE = 0xDA, 0xD9, (0x01, 0xD8)


def most_scans(pixels: int) -> int:
    """Scans that a file with so many pixels may have. libregcache has the same bound."""
    return max(ALWAYS, min(MAX_SCANS, _PIXELS // pixels))


def too_many_scans(data: bytes, pixels: int) -> bool:
    """Whether decoding would pass over the pixels more often than that."""
    most, found, at = most_scans(pixels), 0, 0
    if data.count(b"\xff\xda") <= most:
        return False
    while found <= most and (marker := _MARKER.search(data, at)):
        code, at = marker[1][0], marker.end()
        if code == _END:
            break
        found += code == _START_OF_SCAN
        if code not in _ALONE:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return found > most
