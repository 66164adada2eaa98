"""No held-out image has a say: with noise in their place everything is chosen alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regcache_deploy.data.copies import with_copies
from regcache_deploy.encoders.load_natural import preprocess_cfg
from regcache_deploy.encoders.model import LoadedModel
from regcache_deploy.evaluation.corners import simulate
from regcache_deploy.evaluation.instances import InstanceTop1
from regcache_deploy.run.options import ExportOptions
from regcache_deploy.run.study import Study, decide_study, run_study
from regcache_deploy.search.problem import register_hash
from regcache_deploy.work.progress import Reporter
from tests.search.search_helpers import encoder_and_images

QUIET = Reporter(quiet=True)


def photos(folder: Path, count: int, seed: int) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(seed)
    for index in range(count):
        small = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64, 64)).save(folder / f"{index:02}.png")
    return folder


def noise(folder: Path, count: int) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(9)
    for index in range(count):
        pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


def choices(study: Study) -> list[object]:
    """All that a study decides, and what it decided it by."""
    found = study.found
    return [
        study.config,
        study.baseline.identity(),
        study.recipe,
        [each.to_json() for each in study.raced],
        [(trial.config, trial.score.per_image.tolist()) for trial in found.result.trials],
        found.sensitivity.layer,
        register_hash(found.register),
    ]


def assert_raced_with_both_sides(study: Study) -> None:
    """The race's value is copy detection with images and copies from the quantized encoder."""
    first, sets = study.raced[0], study.sets
    calibration = first.way.baseline.calibrate(study.model.encoder, sets.calibration_tokens)
    both = with_copies(sets.search, study.options.seed)
    features = simulate(calibration, both.batches(8), lambda n: None)
    objective = study.found.objective
    assert isinstance(objective, InstanceTop1)
    found = objective.symmetric().score(features)
    assert torch.equal(found.margin, first.score.margin)
    asked = objective.score(features[: len(sets.search)])
    assert not torch.equal(asked.margin, found.margin)


@pytest.mark.parametrize("objective", ["auto", "cosine"])
def test_held_out_images_decide_nothing(tmp_path: Path, objective: str) -> None:
    model = LoadedModel("tiny", None, encoder_and_images()[0], preprocess_cfg((64, 64)))
    search = photos(tmp_path / "search", 8, 0)
    held_out = [photos(tmp_path / "photos", 6, 1), noise(tmp_path / "noise", 4)]

    def options(evaluation: Path) -> ExportOptions:
        return ExportOptions(
            data=search,
            eval_data=evaluation,
            search_images=8,
            calibration_images=4,
            batch_size=8,
            baseline="naive",
            objective=objective,
            recipe="auto",
            sensitive_layer="blocks.1.fc2",
            prefix_block=1,
        )

    one, other = (decide_study(options(f), QUIET, tmp_path / f.stem, model) for f in held_out)
    assert one.found.objective.name == ("instances" if objective == "auto" else "cosine")
    if objective == "auto":
        assert_raced_with_both_sides(one)
    assert not one.features
    assert one.race is not None
    assert len(one.race.raced) + len(one.race.untried) > 1
    assert choices(one) == choices(other)
    assert not torch.equal(one.sets.evaluation.pixels[:4], other.sets.evaluation.pixels[:4])
    # looking at them afterwards changes nothing, and they do give other figures
    whole = run_study(options(held_out[0]), QUIET, tmp_path / "photos", model)
    assert choices(whole) == choices(one)
    assert whole.sets.judged == 6
    assert whole.judge.name == "instances"


def test_search_images_do_decide(tmp_path: Path) -> None:
    """The comparison above can fail: other search images give other scores."""
    model = LoadedModel("tiny", None, encoder_and_images()[0], preprocess_cfg((64, 64)))
    held_out = photos(tmp_path / "held", 4, 3)
    folders = [photos(tmp_path / "one", 8, 0), photos(tmp_path / "other", 8, 1)]
    found = []
    for folder in folders:
        options = ExportOptions(
            data=folder,
            eval_data=held_out,
            search_images=8,
            calibration_images=4,
            batch_size=8,
            baseline="naive",
            sensitive_layer="blocks.1.fc2",
            prefix_count=0,
            delete_count=0,
            recipe="auto",
        )
        found.append(choices(decide_study(options, QUIET, tmp_path / "parts", model)))
    assert found[0] != found[1]
