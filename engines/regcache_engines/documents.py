"""Read small documents that come from outside: no pipe is waited for, nothing endless is read."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MAX_DOCUMENT = 64 << 20


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


def read_json(path: Path, limit: int = MAX_DOCUMENT) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: as `read_document`.
        ValueError: no JSON in UTF-8.
    """
    return parse_json(read_document(path, limit))
