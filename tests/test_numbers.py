"""docs/numbers.md names every file of results, and the docs' links lead somewhere."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))


def test_every_result_is_explained():
    text = (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8")
    files = [p.name for p in (ROOT / "benchmarks" / "results").iterdir() if p.is_file()]
    named = set(re.findall(r"`([\w.*-]+\.(?:csv|md))`", text))
    assert [f for f in files if not any(fnmatch(f, name) for name in named)] == []
    assert [name for name in named if not any(fnmatch(f, name) for f in files)] == []


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target
