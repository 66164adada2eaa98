"""The load tests find what they look for: wrong answers, growth, failed requests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import service
import service_http

from regcache_engines import Clip
from regcache_engines.errors import VerificationError
from regcache_export.bundle import write_bundle
from tests.tiny_plans import tiny_plan


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tiny_plan(), tmp_path_factory.mktemp("service") / "t.regcache")


SHORT = service.Load(seconds=0.6, warm_up=0.3)


def test_four_threads_get_what_one_gets(bundle: Path) -> None:
    row = service.in_a_process(bundle, "onnxruntime", SHORT)
    assert row["wrong"] == 0
    assert row["answers"] > 20
    assert row["p99_ms_16"] >= row["p50_ms_16"] > 0
    assert row["warm_mib"] > 10


def test_a_wrong_answer_ends_the_run(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = Clip.embed_images, [0]

    def sometimes_wrong(self: Clip, images: object) -> np.ndarray:
        calls[0] += 1
        found = right(self, images)  # type: ignore[arg-type]
        return found if calls[0] % 40 else found + np.float32(1e-6)

    monkeypatch.setattr(Clip, "embed_images", sometimes_wrong)
    monkeypatch.setattr("resource.setrlimit", lambda *limits: None)
    with pytest.raises(VerificationError, match="are not those of one thread"):
        service.serve(bundle, "onnxruntime", SHORT)


def test_growth_ends_the_run(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bytes] = []
    right = Clip.embed_images

    def leaking(self: Clip, images: object) -> np.ndarray:
        kept.append(os.urandom(1 << 20))
        return right(self, images)  # type: ignore[arg-type]

    monkeypatch.setattr(Clip, "embed_images", leaking)
    monkeypatch.setattr("resource.setrlimit", lambda *limits: None)
    with pytest.raises(VerificationError, match="memory grew"):
        service.serve(bundle, "onnxruntime", service.Load(seconds=0.6, warm_up=0.2, growth=8))


def test_the_limit_holds(bundle: Path) -> None:
    with pytest.raises(VerificationError):
        service.in_a_process(bundle, "onnxruntime", service.Load(seconds=0.5, limit=30))


@pytest.mark.slow
def test_no_request_fails_while_workers_are_replaced(bundle: Path) -> None:
    for module in ("fastapi", "uvicorn"):
        pytest.importorskip(module, reason=f"needs {module}: make test-examples")
    found = service_http.load_service(bundle, seconds=4, restart=2)
    assert found["failed"] == 0, found["failures"]
    assert found["wrong"] == found["restarts_given_up"] == 0
    assert found["restarts"] >= 1
    assert found["answers"] > 20
