"""`Clip` with a text tower: sentences in the space of the photographs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import regcache_engines
from regcache_engines import BundleError, DataError, EngineError, TextTower
from regcache_engines.engine import unit_length
from regcache_export.bundle import write_bundle
from tests.tiny_plans import SPEC, tiny_plan
from tests.tiny_text import with_text

pytest.importorskip("tokenizers")

SENTENCES = ["a photo of a dog", "the beach", "a cat on the beach"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_bundle(tiny_plan(), tmp_path_factory.mktemp("texts") / "t.regcache")
    return with_text(made, SPEC.output_dim)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def test_texts_are_the_towers(bundle: Path) -> None:
    with TextTower(bundle) as tower:
        wanted = tower.embed(SENTENCES)
    with regcache_engines.open(bundle, threads=1) as clip:
        assert np.array_equal(clip.embed_text(SENTENCES, normalize=False), wanted)
        assert np.allclose(clip.embed_text(SENTENCES), unit_length(wanted), atol=1e-6)
        alone, among = clip.embed_text(SENTENCES[0]), clip.embed_text(SENTENCES)[:1]
        assert np.allclose(alone, among, atol=1e-6)


def test_similarity_is_the_cosine(bundle: Path) -> None:
    images = [noise(0), noise(1)]
    with regcache_engines.open(bundle, threads=1) as clip:
        found = clip.similarity(images, SENTENCES)
        rows, columns = clip.embed_images(images), clip.embed_text(SENTENCES)
    assert found.shape == (2, 3)
    assert found.dtype == np.float32
    assert np.allclose(found, rows.astype(float) @ columns.T.astype(float), atol=1e-6)
    assert np.abs(found).max() <= 1 + 1e-6


def test_one_tower_for_all_threads(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[TextTower] = []

    def counting(source: object, threads: int | None = None) -> TextTower:
        made.append(TextTower(source, threads=threads))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr("regcache_engines.clip.TextTower", counting)
    with regcache_engines.open(bundle, threads=1) as clip:
        assert made == []  # photographs alone pay for no tower
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(clip.embed_text, SENTENCES * 4))
        alone = [clip.embed_text(sentence) for sentence in SENTENCES]
    assert len(made) == 1
    assert all(np.array_equal(a, b) for a, b in zip(found, alone * 4, strict=True))
    with pytest.raises(EngineError, match="closed"):
        made[0].embed(SENTENCES)


def test_what_cannot_be_embedded(bundle: Path, tmp_path: Path) -> None:
    with regcache_engines.open(bundle, threads=1) as clip:
        with pytest.raises(DataError, match="no text"):
            clip.embed_text([])
        with pytest.raises(DataError, match="list of strings"):
            clip.embed_text([3])  # type: ignore[list-item]
    with pytest.raises(EngineError, match="closed"):
        clip.embed_text("a dog")
    bare = write_bundle(tiny_plan(), tmp_path / "bare.regcache")
    with regcache_engines.open(bare) as clip, pytest.raises(BundleError, match="no text tower"):
        clip.similarity([noise(0)], ["a dog"])
