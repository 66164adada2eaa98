"""`--on baseline`: the quantizer without RegCache, set again on the images that travel along."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regcache_deploy.bundling.certify import certify_bundle
from regcache_deploy.cli.main import main
from regcache_deploy.data.stream import Batch
from regcache_deploy.errors import BundleError, ConfigError
from regcache_deploy.evaluation.runners import make_runners
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.plan import calibration_of
from regcache_deploy.quantization.plan_baseline import baseline_of
from regcache_engines.bundle import Bundle
from regcache_engines.preprocess import Preprocess, in_layout
from regcache_export.bundle import write_bundle
from regcache_export.targets import GraphOptions
from tests.tiny_plans import PREPROCESS, tiny_encoder, tiny_plan

pytest.importorskip("onnxruntime")

IMAGES = 6


def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (IMAGES, 32, 24, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified bundle with its plan beside it, and images of two classes."""
    folder, plan = tmp_path_factory.mktemp("run"), tiny_plan()
    plan.save(folder)
    options = GraphOptions()
    path = write_bundle(plan, folder / "t.regcache", options=options)
    certify_bundle(path, plan, options, calibration_of(plan), pixels())
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "data" / name).mkdir(parents=True)
        for index in range(4):
            image = draw.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / "data" / name / f"{index}.png")
    return folder


@torch.no_grad()
def test_it_is_the_quantizer_calibrated_without_regcache(folder: Path) -> None:
    images = torch.from_numpy(in_layout(pixels().numpy(), None, PREPROCESS))
    encoder = tiny_encoder()
    alone = make_baseline("naive").calibrate(encoder, encoder.embed(images))
    want = alone.encoder(images, alone.numerics())
    with ExitStack() as stack:
        bundle = Bundle.open(folder / "t.regcache")
        names = ("baseline", "simulated")
        runners = make_runners(names, bundle, None, 1, 8, stack)
        batch = Batch(pixels().numpy(), (), None, Preprocess(PREPROCESS))
        found, simulated = (torch.from_numpy(runner.run(batch)) for runner in runners)
    assert torch.nn.functional.cosine_similarity(found, want).min() > 0.9999
    # and without RegCache it is no longer the encoder that is deployed
    assert torch.nn.functional.cosine_similarity(simulated, want).mean() < 0.99
    assert f"ranges set on the certificate's {IMAGES} images" in runners[0].note


def test_it_stands_beside_fp32_and_the_bundle(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(folder / "t.regcache"), "--on", "fp32,baseline,onnxruntime"]
    words += ["--data", str(folder / "data"), "--transfer", str(folder / "data"), "-q"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    on = [r["on"] for r in found["results"] if r["task"] == "zeroshot_classification"]
    assert on == 2 * ["fp32", "baseline", "onnxruntime"]
    baseline = next(r for r in found["results"] if r["on"] == "baseline")
    assert baseline["paired"]["n"] == 8
    assert len(found["notes"]) == 1
    assert main(words) == 0
    assert "without RegCache, simulated" in " ".join(capsys.readouterr().out.split())


def test_what_has_no_images_or_no_quantizer_is_refused(folder: Path, tmp_path: Path) -> None:
    plan = tiny_plan()
    plan.save(tmp_path)
    write_bundle(plan, tmp_path / "t.regcache")
    with ExitStack() as stack, pytest.raises(BundleError, match="export it again"):
        make_runners(("baseline",), Bundle.open(tmp_path / "t.regcache"), None, 1, 8, stack)
    plain = replace(plan, linears={})
    with pytest.raises(ConfigError, match="nothing that is quantized"):
        baseline_of(plain, calibration_of(plain))


def test_a_plan_names_its_observer_and_its_float_linears() -> None:
    plan = tiny_plan()
    linears = {n: q for n, q in plan.linears.items() if n != "blocks.0.mlp.fc2"}
    options = {"observer": "percentile"}
    plan = replace(plan, linears=linears, provenance={**plan.provenance, "options": options})
    baseline = baseline_of(plan, calibration_of(plan))
    assert baseline.keep_float == {"blocks.0.mlp.fc2"}
    assert baseline.identity()["observer"] == "percentile"
    again = {"recalibrated": {"observer": "mse"}}
    plan = replace(plan, provenance={**plan.provenance, **again})
    assert baseline_of(plan, calibration_of(plan)).identity()["observer"] == "mse"
