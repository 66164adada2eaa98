"""The planted demo keeps its promises: what its model card says, measured on held-out digits."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_deploy.data.demo_images import load_demo_images
from regcache_deploy.demo.digits import CLASS_NAMES
from regcache_deploy.demo.model import load_demo
from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.load import LoadedModel, load_model
from regcache_deploy.encoders.regcache import RegCache, RegCacheConfig
from regcache_deploy.evaluation import compare_paired
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.simulate import SimulatedNumerics

N = 1000
TAU, DELETED = 3, 6


@functools.cache
def model() -> LoadedModel:
    return load_model("demo")


@functools.cache
def planted_block() -> int:
    return int(load_demo().config["plant"]["block"])


@functools.cache
def tokens(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Tokens `[count, N, D]` at the input of block 0, and labels."""
    images = load_demo_images(split, count, preprocess_cfg=model().preprocess)
    assert images.labels is not None
    with torch.no_grad():
        embedded = torch.cat([model().encoder.embed(b) for b in images.batches(100)])
    return embedded, images.labels


@functools.cache
def head() -> Tensor:
    text_head = model().text_head
    assert text_head is not None
    return text_head(CLASS_NAMES)


@functools.cache
def inputs_of_blocks() -> dict[int, Tensor]:
    """Block -> tokens at its input in the float model, on 200 held-out images."""
    seen: dict[int, Tensor] = {}
    with torch.no_grad():
        encoder = model().encoder
        encoder.run_blocks(tokens("heldout", N)[0][:200], observe=seen.__setitem__)
    return seen


@functools.cache
def register() -> dict[int, Tensor]:
    """Mean LN1 outputs of the 100 tokens of largest norm at the planted block's input."""
    encoder, k = model().encoder, planted_block()
    seen: dict[int, Tensor] = {}
    with torch.no_grad():
        encoder.run_blocks(tokens("search", 64)[0], observe=seen.__setitem__)
        norms = seen[k][:, 1:].abs().amax(-1)
        chosen = norms.flatten().topk(100).indices
        rows, columns = chosen // norms.shape[1], chosen % norms.shape[1] + 1
        return {
            i: encoder.norm(f"blocks.{i}.norm1", seen[i][rows, columns]).mean(0)
            for i in range(k, encoder.spec.depth)
        }


@functools.cache
def correct(baseline: str | None, tau: int, deleted: int) -> Tensor:
    """Per-image correctness on the held-out digits; `baseline` None is FP32."""
    encoder, k = model().encoder, planted_block()
    config = RegCacheConfig(k, tau, k, deleted)
    regcache = None if config.is_empty else RegCache(config, register())
    x, labels = tokens("heldout", N)
    with torch.no_grad():
        if baseline is None:
            runs = [encoder.run_blocks(b, regcache=regcache) for b in x.split(100)]
        else:
            found = make_baseline(baseline).calibrate(
                encoder, tokens("search", 64)[0], regcache=regcache
            )
            numerics = found.numerics()
            runs = [
                found.encoder.run_blocks(b, numerics=numerics, regcache=found.regcache)
                for b in x.split(100)
            ]
        features = F.normalize(encoder.pool(torch.cat(runs)), dim=-1)
    return ((features @ head().T).argmax(-1) == labels).double()


def points(baseline: str | None, tau: int = 0, deleted: int = 0) -> float:
    return 100 * float(correct(baseline, tau, deleted).mean())


def sinks(block: int) -> Tensor:
    """Mask `[images, patches]` of tokens at least 20 times the median token in l-inf norm."""
    norms = inputs_of_blocks()[block][:, 1:].abs().amax(-1)
    return norms >= 20 * norms.median()


def test_float_accuracy() -> None:
    assert points(None) >= 93


def test_two_to_eight_sinks_in_every_later_block() -> None:
    for block in range(planted_block() + 1, model().encoder.spec.depth):
        counts = sinks(block).sum(1).double()
        assert 2 <= counts.mean() <= 8
        assert ((counts >= 2) & (counts <= 8)).double().mean() >= 0.95


def test_sinks_of_different_images_are_nearly_the_same_vector() -> None:
    block = planted_block() + 1
    mask = sinks(block)
    picked = [t[1:][m][0] for t, m in zip(inputs_of_blocks()[block], mask, strict=True) if m.any()]
    unit = F.normalize(torch.stack(picked), dim=-1)
    cosine = unit @ unit.T
    n = len(unit)
    assert n > 150
    assert (cosine.sum() - n) / (n * (n - 1)) >= 0.85


def test_future_sinks_stand_out_at_the_delete_block() -> None:
    """Deletion looks at the input of block k: there the sinks must already be the largest."""
    k = planted_block()
    later = sinks(k + 1)
    norms = inputs_of_blocks()[k][:, 1:].abs().amax(-1)
    found = total = 0
    for row, mask in zip(norms, later, strict=True):
        count = int(mask.sum())
        found += int(mask[row.topk(count).indices].sum()) if count else 0
        total += count
    assert found / total >= 0.95


def test_the_most_sensitive_layer_is_the_planted_one() -> None:
    encoder: Encoder = model().encoder
    quantization = make_baseline("naive").calibrate(encoder, tokens("search", 64)[0]).quantization
    x, labels = (t[:250] for t in tokens("heldout", N))
    scores = {}
    with torch.no_grad():
        for name in quantization.linears:
            numerics = SimulatedNumerics(quantization.only(name))
            features = F.normalize(encoder.pool(encoder.run_blocks(x, numerics=numerics)), dim=-1)
            scores[name] = float(((features @ head().T).argmax(-1) == labels).double().mean())
    assert min(scores, key=scores.__getitem__) == f"blocks.{planted_block()}.mlp.fc2"


def test_later_blocks_do_the_work() -> None:
    """Reading the class out before the planted block gives chance."""
    x, labels = tokens("heldout", N)
    with torch.no_grad():
        encoder = model().encoder
        early = encoder.pool(encoder.run_blocks(x, stop=planted_block()))
    accuracy = ((F.normalize(early, dim=-1) @ head().T).argmax(-1) == labels).double().mean()
    assert accuracy < 0.05


def test_naive_w8a8_loses_and_regcache_wins_it_back() -> None:
    loss = points(None) - points("naive")
    assert loss >= 10
    assert compare_paired(correct(None, 0, 0), correct("naive", 0, 0)).high < -10
    assert points("naive", TAU, DELETED) - points("naive") >= 0.8 * loss


@pytest.mark.parametrize("baseline", ["naive", "repqvit"])
def test_neither_half_is_enough(baseline: str) -> None:
    both = points(baseline, TAU, DELETED)
    assert points(baseline, TAU, 0) <= both - 10
    assert points(baseline, 0, DELETED) <= both - 2
