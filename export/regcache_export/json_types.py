"""JSON that a dataclass is made from: every field there, none too many, each of its type.

Python's dataclasses take any value; without this, `"bits": "8"` fails far away from its cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import BundleError


def check_fields(what: str, data: Any, cls: type[Any], absent: Sequence[str] = ()) -> None:
    """Raise BundleError unless `data` holds the fields of the dataclass `cls`.

    Args:
        what: names the object in the message.
        data: parsed JSON; pairs of numbers are lists.
        cls: its annotations are int, float, bool, str, Literal or tuple of ints.
        absent: fields that come from elsewhere.
    """
    expect(what, data, dict, "an object")
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls) if f.name not in absent}
    for name in data:
        if name not in known:
            raise BundleError(f"{what} has an unknown field '{name}'; was a newer version at work?")
    for name, field in known.items():
        if name not in data:
            if field.default is MISSING and field.default_factory is MISSING:
                raise BundleError(f"{what} lacks the field '{name}'")
            continue
        if not _is_a(data[name], hints[name]):
            raise BundleError(
                f"{what} has {name} = {data[name]!r}, which is no {_name(hints[name])}"
            )


def expect(what: str, value: Any, kind: type | tuple[type, ...], name: str) -> None:
    """Raise BundleError unless `value` is of a type."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BundleError(f"{what} is {_short(value)}, and must be {name}")


def _is_a(value: Any, hint: Any) -> bool:
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            return False
        return all(_is_a(v, p) for v, p in zip(value, parts, strict=True))
    if get_origin(hint) is Literal:
        return isinstance(value, str)  # which names are known is judged by whoever reads them
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _name(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return f"list of {len(get_args(hint))} integers"
    if get_origin(hint) is Literal:
        return "string"
    return {int: "integer", float: "number", bool: "truth value"}.get(hint, "string")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
