"""JSON that every parser takes."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from regcache_deploy.work.json_file import json_text


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_what_is_not_finite_is_null() -> None:
    """Python writes NaN and Infinity, which no other parser reads."""
    document: dict[str, Any] = {
        "seconds": math.inf,
        "rows": [{"error": math.nan, "n": 3}, (np.float64("-inf"), 0.5)],
        "name": "NaN",
        "none": None,
        "kept": True,
    }
    found = json.loads(json_text(document), parse_constant=refuse)
    assert found == {
        "seconds": None,
        "rows": [{"error": None, "n": 3}, [None, 0.5]],
        "name": "NaN",
        "none": None,
        "kept": True,
    }
