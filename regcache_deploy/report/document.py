"""The JSON document of a finished search, in its run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import DataError

DETAILS = "search.json"


def load_document(folder: Path) -> dict[str, Any]:
    """Read the document. Raises DataError where there is none, or it cannot be read."""
    path = folder / DETAILS
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"{folder} holds no finished search ({DETAILS} is missing); "
            f"run: regcache search --output {folder}"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return document
