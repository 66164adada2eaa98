"""Whether an ONNX file keeps weights in other files, read off its bytes without onnx."""

from __future__ import annotations

from collections.abc import Iterator

_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}
"""Fields of onnx.proto that lead to tensors, by message; TensorProto.external_data is the end."""


def has_external_data(data: bytes) -> bool:
    """Whether any tensor of a serialized model names another file.

    Also where that cannot be told: readers of protobuf differ in what else they take (groups, tags
    of more than 32 bits, numbers that are longer than need be), and writers of ONNX write none of
    it.
    """
    todo = [("model", 0, len(data))]
    try:
        while todo:
            message, start, end = todo.pop()
            for field, begin, stop in _fields(data, start, end):
                child = _MESSAGES[message].get(field)
                if child == "external":
                    return True
                if child is not None:
                    todo.append((child, begin, stop))
    except _OddError:
        return True
    return False


class _OddError(Exception):
    """Bytes that another reader may take in another way."""


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of every length-delimited field of a message."""
    while position < end:
        tag, position = _varint(data, position, end)
        if not 8 <= tag < 1 << 32:
            raise _OddError
        kind = tag & 7
        if kind == 0:
            _, position = _varint(data, position, end)
        elif kind == 1:
            position += 8
        elif kind == 5:
            position += 4
        elif kind == 2:
            size, position = _varint(data, position, end)
            if position + size > end:
                raise _OddError
            yield tag >> 3, position, position + size
            position += size
        else:
            raise _OddError
    if position > end:
        raise _OddError


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64 or (byte == 0 and shift):
                raise _OddError
            return value, position
        shift += 7
    raise _OddError
