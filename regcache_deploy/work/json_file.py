"""JSON for other programs, and JSON files that are whole or not there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from regcache_engines.files import atomic_write_bytes


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document under a temporary name and rename it."""
    atomic_write_bytes(path, (json.dumps(document, indent=1) + "\n").encode())


def json_text(document: Any) -> str:
    """A document as JSON, which has no infinity and no NaN: they are null."""
    return json.dumps(_finite(document), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
