"""Fixtures of the C++ runtime's tests: two builds, one bundle, all awkward images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from regcache_export.bundle import write_bundle
from tests.cpp.programs import ROOT, build
from tests.data.awkward_images import write_awkward_images
from tests.tiny_plans import tiny_plan

KINDS = (".png", ".jpg", ".jpeg")


@pytest.fixture(scope="session")
def release() -> Path:
    """As `make cpp` builds it."""
    return build()


@pytest.fixture(scope="session")
def sanitized() -> Path:
    """Static, with AddressSanitizer and UndefinedBehaviorSanitizer."""
    return build("--sanitize")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Every mode of JPEG and PNG, in odd sizes; photographs of REGCACHE_TEST_IMAGES, if it is set.

    REGCACHE_TEST_IMAGES=DIR pytest -s tests/cpp/test_results.py   prints the largest differences.
    """
    made = write_awkward_images(tmp_path_factory.mktemp("awkward"))
    golden = (ROOT / "tests/engines/golden").iterdir()
    more = (
        Path(os.environ["REGCACHE_TEST_IMAGES"]) if "REGCACHE_TEST_IMAGES" in os.environ else None
    )
    found = [*golden, *(more.iterdir() if more else [])]
    return made + sorted(path for path in found if path.suffix.lower() in KINDS)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quantized, with a head; 32 x 24 pixels; random weights."""
    return write_bundle(tiny_plan(), tmp_path_factory.mktemp("bundles") / "tiny.regcache")
