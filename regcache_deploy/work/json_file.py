"""JSON files, whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from regcache_engines.files import atomic_write_bytes


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document under a temporary name and rename it."""
    atomic_write_bytes(path, (json.dumps(document, indent=1) + "\n").encode())
