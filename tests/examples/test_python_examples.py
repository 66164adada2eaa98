"""The programs of `examples/` for Python do what they say, on a tiny bundle with a text tower."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import regcache_engines
from regcache_export.bundle import write_bundle
from tests.tiny_plans import SPEC, tiny_plan
from tests.tiny_text import with_text

FOLDER = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_bundle(tiny_plan(), tmp_path_factory.mktemp("examples") / "t.regcache")
    return with_text(made, SPEC.output_dim)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "more").mkdir()
    for index, name in enumerate(("a.png", "b.jpg", "more/c.png")):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff junk")
    (folder / "notes.txt").write_text("no image")
    return folder


def example(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


def test_classify(bundle: Path, photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(photographs / "a.png")
    assert example("classify").main(str(bundle), image, image) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == image
    with regcache_engines.open(bundle) as clip:
        assert shown[1].split()[-1] == clip.classify(image)[0][0].label
    assert len(shown) == 2 * (1 + 4)


def test_a_folder_is_embedded_and_searched(
    bundle: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "e.npz"
    assert example("embed_folder").main(str(bundle), str(photographs), str(stored)) == 0
    assert "left out" in capsys.readouterr().err
    found = np.load(stored)
    assert found["names"].tolist() == ["a.png", "b.jpg", "more/c.png"]
    with regcache_engines.open(bundle) as clip:
        wanted = clip.embed_images([photographs / name for name in found["names"]])
    assert np.array_equal(found["embeddings"], wanted)

    pytest.importorskip("tokenizers")
    assert example("search_photos").main(str(bundle), str(stored), "a dog", "the beach") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a dog"
    with regcache_engines.open(bundle) as clip:
        cosines = clip.similarity([photographs / name for name in found["names"]], "a dog")[:, 0]
    names = [line.split()[-1] for line in lines[1:4]]
    assert names == found["names"][np.argsort(-cosines)].tolist()

    search = example("search_photos").main
    np.savez(tmp_path / "other", **{**found, "model": np.array("0" * 64)})
    (tmp_path / "torn.npz").write_bytes(stored.read_bytes()[:500])
    for name, message in (
        ("other.npz", "of another bundle"),
        ("torn.npz", "is not what embed_folder"),
        ("none.npz", "is not what embed_folder"),
    ):
        with pytest.raises(regcache_engines.DataError, match=message):
            search(str(bundle), str(tmp_path / name), "a dog")


def test_where_the_embeddings_go_is_looked_at_first(bundle: Path, photographs: Path) -> None:
    with pytest.raises(regcache_engines.ConfigError, match="no folder for"):
        example("embed_folder").main(str(bundle), str(photographs), str(photographs / "no/e.npz"))


@pytest.fixture
def client(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    pytest.importorskip("httpx", reason="the server's test needs httpx: make test-examples")
    testing = pytest.importorskip("fastapi.testclient", reason="needs fastapi: make test-examples")
    monkeypatch.setenv("REGCACHE_BUNDLE", str(bundle))
    with testing.TestClient(example("server").app) as opened:
        yield opened


def test_server(client: Any, bundle: Path, photographs: Path) -> None:
    data = (photographs / "a.png").read_bytes()
    with regcache_engines.open(bundle) as clip:
        embedding, best = clip.embed_images(data)[0], clip.classify(data)[0][0]
    answer = client.post("/embed", content=data).json()
    assert np.allclose(answer["embedding"], embedding, atol=1e-6)
    first = client.post("/classify?top=1", content=data).json()
    assert [entry["label"] for entry in first] == [best.label]
    refused = client.post("/embed", content=b"junk")
    assert refused.status_code == 422
    assert "cannot identify image" in refused.json()["error"]
    assert client.post("/classify?top=0", content=data).status_code == 422
    assert client.get("/healthz").json()["saturation"] == []


def test_the_server_refuses_what_would_fill_its_memory(
    client: Any, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (photographs / "a.png").read_bytes()
    monkeypatch.setattr(sys.modules["example_server"], "LARGEST", len(data))
    for place in ("/embed", "/classify"):
        assert client.post(place, content=data).status_code == 200
        assert client.post(place, content=data + b"0").status_code == 413
    assert client.post("/embed", content=b"").status_code == 422


def test_the_server_is_short() -> None:
    lines = (FOLDER / "server.py").read_text().split('"""', 2)[2].splitlines()
    assert len([line for line in lines if line.strip()]) <= 60
