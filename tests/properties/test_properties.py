"""What must hold for any numbers: quantizers, exact folds, racing, the manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.quantization.encoder_folds import CALIBRATION_FOLDS
from regcache_deploy.quantization.quantizers import Uniform, symmetric_weight
from regcache_deploy.search.statistics import survivors
from regcache_deploy.search.stopping import Floor
from regcache_engines.bundle import Bundle
from regcache_engines.errors import BundleError
from regcache_export.bundle import write_bundle
from regcache_export.passes import FoldState, make_folds
from tests.tiny_plans import PREPROCESS, tiny_encoder, tiny_images, tiny_plan

few = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
size = st.floats(2.0**-60, 2.0**60, width=32)
bits = st.sampled_from([4, 6, 8])
values = st.lists(st.floats(-1.5, 1.5, width=32), min_size=1, max_size=40)


def made(kind: str, low: float, high: float, width: int) -> Uniform:
    if kind == "symmetric":
        return Uniform.symmetric(torch.tensor(max(low, high)), width)
    return Uniform.asymmetric(torch.tensor(-low), torch.tensor(high), width)


@few
@given(st.sampled_from(["symmetric", "asymmetric"]), size, size, bits, values)
def test_a_quantizer_is_a_projection(
    kind: str, low: float, high: float, width: int, numbers: list[float]
) -> None:
    quantizer = made(kind, low, high, width)
    x = torch.tensor(numbers, dtype=torch.float32) * max(low, high)
    codes = quantizer.codes(x.clone())
    least, most = quantizer.code_range
    assert least <= codes.min()
    assert codes.max() <= most
    assert torch.equal(codes, codes.round())
    once = quantizer(x.clone())
    assert torch.equal(quantizer(once.clone()), once), "a second time changes nothing"
    assert torch.equal(quantizer(torch.zeros(3)), torch.zeros(3)), "zero is a code"
    order = x.sort().values
    assert (quantizer(order).diff() >= 0).all(), "the order stays"
    inside = (codes > least) & (codes < most)
    error = (once.double() - x.double())[inside].abs()
    assert (error <= quantizer.scale.double() * (0.5 + 1e-4 * 2**width)).all()


@few
@given(st.integers(0, 2**31), bits, st.integers(-20, 20))
def test_weights_scale_with_their_channel(seed: int, width: int, power: int) -> None:
    """Powers of two on output channels move into the scales: the codes stay."""
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))
    factors = torch.tensor([2.0**power, 1, 2.0**-power, 4, 1])[:, None]
    one, other = symmetric_weight(weight, width), symmetric_weight(weight * factors, width)
    assert torch.equal(one.codes(weight.clone()), other.codes(weight * factors))


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1, 2, 3, 6]),
    st.booleans(),
    st.sampled_from(sorted(CALIBRATION_FOLDS)),
)
def test_a_fold_keeps_the_function(seed: int, heads: int, scaled: bool, name: str) -> None:
    encoder = tiny_encoder(seed, heads=heads, layer_scale=scaled)
    weights = {key: value.double() for key, value in encoder.weights.items()}
    state = FoldState(
        encoder=encoder.spec,
        weights={key: value.numpy() for key, value in weights.items()},
        register={},
        regcache=None,
        preprocess=PREPROCESS,
    )
    (fold,) = make_folds([name])
    folded = fold(state).state
    images = tiny_images(2).double()
    before = Encoder(encoder.spec, weights)(images)
    changed = {key: torch.from_numpy(np.asarray(value)) for key, value in folded.weights.items()}
    after = Encoder(folded.encoder, changed)(images)
    assert (after - before).abs().max() <= 1e-12 * before.abs().max()


outcomes = st.lists(st.lists(st.floats(0, 1), min_size=6, max_size=6), min_size=1, max_size=5)


@few
@given(outcomes, st.integers(6, 60), st.floats(0.001, 0.5), st.integers(0, 99))
def test_racing_keeps_the_leader_and_loses_nothing_it_has_not_seen(
    rows: list[list[float]], total: int, error: float, seed: int
) -> None:
    table = {index: np.asarray(row) for index, row in enumerate(rows)}
    alive = survivors(table, total, error, seed)
    best = max(values.mean() for values in table.values())
    assert next(iter(alive.values())) == best
    assert list(alive.values()) == sorted(alive.values(), reverse=True)
    assert alive == survivors(table, total, error, seed), "the same seed, the same answer"
    equal = [index for index, row in table.items() if np.array_equal(row, table[next(iter(alive))])]
    assert set(equal) <= alive.keys(), "what answers as the leader does is never out"
    stricter = survivors(table, total, error / 10, seed)
    assert alive.keys() <= stricter.keys(), "a smaller chance of error drops no more"


@few
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 30), st.floats(0, 1))
def test_a_choice_is_left_only_when_it_is_certain_to_lose(
    seen: list[float], more: int, floor: float
) -> None:
    stop = Floor(floor)
    x = torch.tensor(seen, dtype=torch.float64)
    if stop(x, len(seen) + more):
        assert float(torch.cat([x, torch.ones(more, dtype=torch.float64)]).mean()) < floor


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tiny_plan(), tmp_path_factory.mktemp("whole") / "tiny.regcache")


@few
@given(data=st.data())
def test_no_byte_of_a_bundle_changes_unseen(data: st.DataObject, whole: Path) -> None:
    """Any byte of any listed file, cut or longer: refused. The manifest itself has no hash."""
    names = sorted(path.name for path in whole.iterdir() if path.name != "manifest.json")
    name = data.draw(st.sampled_from(names))
    copy = whole.with_name("copy.regcache")
    shutil.copytree(whole, copy)
    try:
        content = bytearray((copy / name).read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["flip", "cut", "longer"]))
        if change == "flip":
            content[at] ^= data.draw(st.integers(1, 255))
        elif change == "cut":
            del content[at:]
        else:
            content += b"\0"
        (copy / name).write_bytes(content)
        with pytest.raises(BundleError):
            Bundle.open(copy)
    finally:
        shutil.rmtree(copy)
