"""What rounding noise explains of an optimized graph's difference, and what it does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from regcache_deploy.bundling.certify import graph_offsets
from regcache_deploy.quantization.quantizers import Bits
from regcache_export.certificate import Subject
from regcache_export.graph import build_model
from regcache_export.optimized import OptimizedRun, cosine
from regcache_export.reference import Reference, initializers
from regcache_export.rounding_noise import DRAWS, NOISE, controlled, free_run
from regcache_export.targets import GraphOptions
from regcache_export.trace import graph_input
from tests.bundling.certificate_helpers import pixels, plan_of
from tests.tiny_plans import PREPROCESS, naive_calibration, tiny_encoder, tiny_regcache

LAYER = "blocks.0.attn.qkv"
HEAD = np.random.default_rng(0).standard_normal((5, 20)).astype(np.float32)
IMAGES = pixels(6).numpy()


def subject() -> Subject:
    encoder = tiny_encoder()
    plan = plan_of(naive_calibration(encoder, tiny_regcache(encoder), Bits(4, 4)))
    model = build_model(plan)
    offsets = graph_offsets(plan, model)
    return Subject(model, plan.encoder, plan.regcache, GraphOptions(), offsets, PREPROCESS)


def with_a_tie(found: Subject, image: int) -> Subject:
    """One scale moved so that one value of one image lies on a rounding tie, as near as it gets."""
    reference = Reference(
        initializers(found.model), found.spec, found.regcache, found.options, found.offsets
    )
    tokens = reference.embed(graph_input(IMAGES[image : image + 1], PREPROCESS, found.model))
    steps = reference.block(0, tokens).steps[LAYER][0, 3]  # of a patch
    place = int(np.abs(np.abs(steps) - 2.5).argmin())
    factor = abs(steps[place]) / 2.5
    model = onnx.ModelProto()
    model.CopyFrom(found.model)
    (scale,) = (t for t in model.graph.initializer if t.name == f"{LAYER}.input_scale")
    value = numpy_helper.to_array(scale) * factor
    scale.CopyFrom(numpy_helper.from_array(value.astype(np.float32), scale.name))
    return replace(found, model=model)


def run_of(found: np.ndarray, written: np.ndarray) -> OptimizedRun:
    similar = cosine(found, written)
    flipped = np.flatnonzero((found @ HEAD.T).argmax(1) != (written @ HEAD.T).argmax(1))
    return OptimizedRun(
        top1=1 - len(flipped) / len(found),
        mean_cosine=float(similar.mean()),
        min_cosine=float(similar.min()),
        cosines=tuple(similar.tolist()),
        flipped=tuple(flipped.tolist()),
    )


def test_a_tie_explains_an_image_that_is_far_off() -> None:
    """Four bits: one code moves the features; the exact run alone would not show it."""
    tied = with_a_tie(subject(), image=2)
    written = free_run(tied, IMAGES)
    others = (free_run(tied, IMAGES, NOISE, seed) for seed in range(100, 120))
    run = next(run for found in others if not (run := run_of(found, written)).near)
    assert run.off == {2}
    assert run.problem is not None
    judged = controlled(run, tied, IMAGES, written, HEAD)
    assert (judged.explained, judged.problem) == ((2,), None)
    # the exact arithmetic falls on one side, and says nothing about the other
    assert judged.control == pytest.approx(1, abs=1e-9)


def test_noise_does_not_explain_a_wrong_graph() -> None:
    found = subject()
    written = free_run(found, IMAGES)
    wrong = written.copy()
    wrong[3] += 0.3 * np.roll(written[3], 1)
    run = run_of(wrong, written)
    judged = controlled(run, found, IMAGES, written, HEAD)
    assert judged.unexplained == {3}
    assert "rounding does not explain image 3" in str(judged.problem)
    # a flipped class is no better explained than that, however near the features are
    near = replace(run, mean_cosine=1.0, cosines=(1.0,) * 6, flipped=(4,), top1=5 / 6)
    judged = controlled(near, found, IMAGES, written, HEAD)
    assert "only 83.33% of the images keep their class" in str(judged.problem)
    assert "image 4" in str(judged.problem)
    nan = replace(run, cosines=(float("nan"),) * 6, mean_cosine=float("nan"), flipped=())
    assert len(controlled(nan, found, IMAGES, written, HEAD).unexplained) == 6


def test_the_control_runs_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = subject()
    written = free_run(found, IMAGES)
    calls = []

    def counted(
        subject: Subject, images: np.ndarray, noise: float = 0.0, seed: int = 0
    ) -> np.ndarray:
        calls.append(len(images))
        return free_run(subject, images, noise, seed)

    monkeypatch.setattr("regcache_export.rounding_noise.free_run", counted)
    same = run_of(written, written)
    assert controlled(same, found, IMAGES, written, HEAD) is same
    assert not calls
    wrong = written.copy()
    wrong[3] += 0.3 * np.roll(written[3], 1)
    controlled(run_of(wrong, written), found, IMAGES, written, HEAD)
    assert calls == [6] + [1] * DRAWS
