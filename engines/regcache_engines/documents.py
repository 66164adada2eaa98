"""Read small documents that come from outside: no pipe is waited for, nothing endless is read."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MAX_DOCUMENT = 64 << 20

MAX_NESTING = 100
"""Objects and lists in each other, in what a bundle's readers take."""


def read_document(path: Path, limit: int = MAX_DOCUMENT) -> str:
    """Text of a file in UTF-8.

    Raises:
        OSError: not there, not readable, no regular file (a pipe, a device), or above `limit`
            bytes.
        UnicodeDecodeError: another encoding; it is a ValueError.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > limit else file.read(limit + 1)
        if size > limit or len(data) > limit:
            raise OSError(f"{path} is larger than {limit >> 20} MiB")
    return data.decode("utf-8-sig")


def open_file(path: Path) -> BinaryIO:
    """Open a file to read its bytes.

    Raises:
        OSError: not there, not readable, or no regular file (a pipe, a device).
    """
    # a pipe without a writer would wait for one
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path} is no regular file")
    return os.fdopen(handle, "rb")


def parse_json(text: str) -> Any:
    """`json.loads`, whose every failure is a ValueError."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("too many brackets in each other") from error


def strict_json(text: str) -> Any:
    """JSON that two readers cannot take in two ways; `json.h` of the C++ library refuses the same.

    Raises:
        ValueError: no JSON, a key twice in one object, NaN, -0, a number beyond all floats, half a
            surrogate pair, or too many brackets in each other.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_constant=_no_constant
        )
    except RecursionError as error:
        raise ValueError("too many brackets in each other") from error
    _check_nesting(value, MAX_NESTING)
    # nor 1e999 or half a surrogate pair, which nothing can print
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return value


def read_json(path: Path, limit: int = MAX_DOCUMENT) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: as `read_document`.
        ValueError: no JSON in UTF-8.
    """
    return parse_json(read_document(path, limit))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _integer(digits: str) -> int:
    # other readers give these as floats
    if digits == "-0" or math.isinf(float(digits)):
        raise ValueError(f"{digits:.20} is no whole number")
    return int(digits)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _check_nesting(value: Any, left: int) -> None:
    if isinstance(value, (dict, list)):
        if not left:
            raise ValueError("too many brackets in each other")
        for part in value.values() if isinstance(value, dict) else value:
            _check_nesting(part, left - 1)
