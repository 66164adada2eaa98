"""A search, a calibration and a simulation on another device than the CPU, and one with no memory.

No GPU is needed: `second_device` computes on the CPU and keeps a GPU's rules.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.model import LoadedModel
from regcache_deploy.errors import RegCacheError
from regcache_deploy.evaluation import torch_runners
from regcache_deploy.evaluation.bundle_evaluation import Session
from regcache_deploy.quantization import integer_gemm
from regcache_deploy.report import block_errors
from regcache_deploy.run import calibrate, study
from regcache_deploy.run.export import run_export
from regcache_deploy.run.options import ExportOptions
from regcache_deploy.search.pictures import picture_data
from regcache_deploy.work.progress import Reporter
from regcache_export.plan import Plan
from tests.second_device import SECOND, Watch, second_device
from tests.tiny_plans import PREPROCESS, SPEC, tame_encoder, tiny_plan

ROOMS = ("encoders/", "quantization/", "search/", "evaluation/corners", "run/")

BY_DESIGN = {
    "aten.arange in search/problem.py": "rows of images",
    "aten.arange in search/evaluator.py": "rows of images",
    "aten.arange in search/pictures.py": "rows of images",
    "aten.arange in quantization/gradients.py": "positions of sampled tokens: alike everywhere",
    "aten.randn in quantization/gradients.py": "probes drawn by one generator: alike everywhere",
    "aten.full in quantization/gradients.py": "how many tokens each one stands for",
    "aten.zeros in quantization/histogram.py": "counters, some thousand numbers in all",
    "aten.arange in quantization/histogram.py": "the middles of their bins",
}
"""What is made on the CPU, and why."""

QUIET = Reporter(quiet=True)


def tiny_model() -> LoadedModel:
    return LoadedModel("tiny", "random:0", tame_encoder(), dict(PREPROCESS))


def options(folder: Path, baseline: str, **more: Any) -> ExportOptions:
    numbers = {"search_images": 8, "calibration_images": 3, "limit": 4, "batch_size": 5}
    return ExportOptions(baseline=baseline, output=folder, **(numbers | more))


def found_by(options: ExportOptions, pictures: bool = True) -> dict[str, Any]:
    """What a search finds, and the numbers of its pictures, which take eight images at once."""
    done = study.run_study(options, QUIET, model=tiny_model())
    result = done.result(agreement={}, differences=(), results_csv=Path("x.csv")).to_json()
    kept = ("sensitive_layer", "search_accuracy", "accuracy", "paired", "ways", "token_norms")
    drawn = picture_data(done.model.encoder, done.sets, done.found) if pictures else {}
    return {
        **{name: result[name] for name in kept},
        "config": done.config.to_json(),
        "device": result["search_cost"]["device"],
        "pictures": {name: np.nan_to_num(array).tolist() for name, array in drawn.items()},
    }


def unexpected(watch: Watch) -> list[str]:
    return [said for said in watch.on_cpu if said not in BY_DESIGN]


@pytest.fixture(autouse=True)
def float_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """INT8 products are exact where float32 sums round, beyond 2**24; a GPU has the latter."""
    monkeypatch.setattr(integer_gemm, "has_exact_int8", lambda: False)


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (study, calibrate, torch_runners, block_errors):
        monkeypatch.setattr(module, "use_device", lambda text: SECOND)


FIXED = {"sensitive_layer": "blocks.1.fc2", "recipe": "regcache"}


@pytest.mark.parametrize(
    ("baseline", "more"),
    [
        ("naive", {"observer": "mse", "merge": "2"}),
        ("repqvit", {"candidates": "best", "register": "solo"}),
        # one choice: its calibration alone takes a minute, an operation at a time in Python
        ("ptq4vit", {"prefix_block": 1, "prefix_count": 2, "delete_count": 2, **FIXED}),
    ],
)
def test_a_search_computes_where_it_was_asked_to(
    baseline: str, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu = found_by(options(tmp_path / "cpu", baseline, **more))
    monkeypatch.setattr(study, "use_device", lambda text: SECOND)
    with second_device(ROOMS) as watch:
        there = found_by(options(tmp_path / "there", baseline, **more))
    assert watch.there > 1000
    assert not unexpected(watch)
    assert (on_cpu.pop("device"), there.pop("device")) == ("cpu", str(SECOND))
    assert there == on_cpu


def test_a_resumed_search_finds_its_parts_on_the_device(tmp_path: Path, second: None) -> None:
    with second_device(ROOMS) as first:
        before = found_by(options(tmp_path, "repqvit"))
    with second_device(ROOMS) as again:
        assert found_by(options(tmp_path, "repqvit")) == before
    assert again.there < first.there / 4


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    from regcache_export.bundle import write_bundle

    plan = tiny_plan()
    plan.save(tmp_path)
    return write_bundle(plan, tmp_path / "t.regcache")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator, folder = np.random.default_rng(3), tmp_path / "images"
    folder.mkdir()
    for index in range(7):
        pixels = generator.integers(0, 256, (32, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_a_calibration_computes_where_it_was_asked_to(
    observer: str, bundle: Path, images: Path, second: None
) -> None:
    words = calibrate.RecalibrateOptions(
        bundle.parent, str(images), bundle.parent / "out", observer, batch_size=3
    )
    with second_device(ROOMS) as watch:
        found = calibrate.recalibrate(words, QUIET)
    assert (found["images"], found["device"]) == (7, str(SECOND))
    assert watch.there > 50
    # the certificate behind it, which is numpy's, is the CPU's
    assert not [s for s in unexpected(watch) if not s.startswith(("encoders/", "aten."))]


def test_an_evaluation_computes_where_it_was_asked_to(
    bundle: Path, images: Path, second: None
) -> None:
    session = Session(bundle, ("fp32", "simulated"), QUIET, batch_size=4)
    with second_device(ROOMS) as watch, session:
        there = session.evaluate(str(images), "fidelity")
    assert watch.there > 50
    assert not unexpected(watch)
    assert there[-1].metrics["mean_cosine"] > 0.9


@pytest.mark.slow
def test_an_export_from_the_device_is_that_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "use_device", lambda text: torch.device("cpu"))
    words = {"certificate_images": 2, "text": False, "batch_size": 6}
    on_cpu = run_export(options(tmp_path / "x", "repqvit", **words), QUIET)
    wanted = Plan.load(tmp_path / "x")
    shutil.rmtree(tmp_path / "x")
    monkeypatch.setattr(study, "use_device", lambda text: SECOND)
    with second_device(ROOMS):
        there = run_export(options(tmp_path / "x", "repqvit", **words), QUIET)
    assert there.agreement == on_cpu.agreement
    found = Plan.load(tmp_path / "x")
    assert found.regcache == wanted.regcache
    for name, layer in wanted.linears.items():
        np.testing.assert_array_equal(found.linears[name].input.scale, layer.input.scale)
        np.testing.assert_array_equal(found.linears[name].weight.scale, layer.weight.scale)


def test_out_of_memory_halves_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = found_by(options(tmp_path / "whole", "naive", batch_size=4), pictures=False)
    block, failed = Encoder.block, []

    def small(self: Encoder, index: int, tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        calibrating = len(rest) > 0 and type(rest[0]).__name__ == "BlockRecord"
        if len(tokens) > 1 and index > 0 and not calibrating:
            failed.append(len(tokens))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return block(self, index, tokens, *rest)

    monkeypatch.setattr(Encoder, "block", small)
    found = found_by(options(tmp_path / "halved", "naive", batch_size=4), pictures=False)
    assert max(failed) == 4
    assert found["config"] == wanted["config"]
    assert found["sensitive_layer"] == wanted["sensitive_layer"]
    for name, value in wanted["accuracy"].items():
        assert found["accuracy"][name] == pytest.approx(value, abs=1e-5)


def test_one_image_too_many_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*unused: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(Encoder, "block", never)
    with pytest.raises(RegCacheError, match="memory is full"):
        found_by(options(tmp_path, "naive"))


def test_the_watch_sees_a_tensor_in_the_wrong_place(
    tmp_path: Path, second: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm = Encoder.norm

    def wandering(self: Encoder, name: str, x: torch.Tensor) -> torch.Tensor:
        moved = Encoder(self.spec, {k: v.cpu() for k, v in self.weights.items()})
        return norm(moved, name, x.cpu()).to(x.device)

    with second_device(("",)) as watch, torch.no_grad():
        encoder, image = tame_encoder().to(SECOND), torch.zeros(1, 3, *SPEC.image_size)
        encoder(image)
        assert not [s for s in watch.on_cpu if "layer_norm" in s]
        with pytest.raises(RuntimeError, match="tensors on"):
            encoder.run_blocks(encoder.embed(image).cpu())
        monkeypatch.setattr(Encoder, "norm", wandering)
        encoder(image)
    assert watch.on_cpu
