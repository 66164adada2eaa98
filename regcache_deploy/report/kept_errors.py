"""What was measured by layer, kept in the run folder, so that a second page has it at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from regcache_engines.bundle import MODEL, Bundle
from regcache_export.certificate_files import IMAGES

from ..work.json_file import write_json

KEPT = "layers.json"


def kept_errors(bundle: Bundle, folder: Path) -> dict[str, Any] | None:
    """What `keep_errors` left for these very files; None where nothing can be used."""
    try:
        kept = json.loads((folder / KEPT).read_text(encoding="utf-8"))
        return dict(kept["errors"]) if kept["of"] == _key(bundle) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is measured again and written anew


def keep_errors(bundle: Bundle, folder: Path, errors: dict[str, Any]) -> None:
    write_json(folder / KEPT, {"of": _key(bundle), "errors": errors})


def _key(bundle: Bundle) -> dict[str, str]:
    files = bundle.manifest["files"]
    return {name: files[name]["sha256"] for name in (MODEL, IMAGES) if name in files}
