"""A bundle that merges tokens in the C++ runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from regcache_export.bundle import write_bundle
from regcache_export.merge import Merge
from regcache_export.targets import GraphOptions
from tests.cpp.programs import assert_equal_results
from tests.tiny_plans import tiny_plan


@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
def test_a_merged_bundle_gives_pythons_embeddings(
    target: str, release: Path, images: list[Path], tmp_path: Path
) -> None:
    plan = replace(tiny_plan(), merge=Merge((3, 2, 0), proportional=True))
    options = GraphOptions(target=target)
    made = write_bundle(plan, tmp_path / "merged.regcache", options=options)
    assert_equal_results(release, made, images, tmp_path / "out")
