"""Bundles in other programs' layouts, opened by what reads them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import regcache_engines
from regcache_deploy.cli.main import main
from regcache_engines import TextTower
from regcache_engines.onnxruntime_session import open_session
from regcache_export.bundle import write_bundle
from regcache_export.targets import GraphOptions
from tests.cpp.damaging import preprocessing, replace_file
from tests.text_bundles import small_clip, text_bundle, text_side
from tests.tiny_plans import PREPROCESS, tiny_plan

pytest.importorskip("onnxruntime")
tokenizers = pytest.importorskip("tokenizers")

SIZE = 32
TEXTS = ["a photo of a dog", "Don't   PANIC, 42 times", "été 日本", "word " * 90]
FIXED: dict[str, Any] = {"custom": True, "no_causal_mask": True, "pool_type": "last"}


def plan_of(**config: Any) -> Any:
    plan = tiny_plan(image_size=(SIZE, SIZE))
    return replace(plan, preprocess=PREPROCESS | {"size": [SIZE, SIZE]} | config)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_bundle(tmp_path_factory.mktemp("pack") / "t.regcache", plan=plan_of())


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a text tower that reads its padding, and squashed images."""
    path = tmp_path_factory.mktemp("pack") / "f.regcache"
    return text_bundle(path, text_side(small_clip(**FIXED)), plan_of(resize_mode="squash"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ten pictures: five of odd sizes, five of the encoder's own."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    found = []
    for index in range(10):
        height, width = ((40 + 7 * index, 61) if index % 2 else (55, 33 + 9 * index), (SIZE, SIZE))[
            index >= 5
        ]
        coarse = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        found.append(folder / f"{index}.png")
        picture.save(found[-1])
    return found


def own_embeddings(bundle: Path, images: list[Path]) -> Any:
    with regcache_engines.open(bundle, threads=1) as clip:
        return clip.embed_images(images, normalize=False)


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def pack(bundle: Path, layout: str, folder: Path, *more: str) -> int:
    return main(["pack", str(bundle), "--layout", layout, str(folder), "-q", *more])


class Immich:
    """The reading rules of immich's server (machine-learning/immich_ml/models/clip)."""

    def __init__(self, folder: Path) -> None:
        self.preprocess = json.loads((folder / "visual/preprocess_cfg.json").read_bytes())
        self.text = json.loads((folder / "config.json").read_bytes())["text_cfg"]
        settings = json.loads((folder / "textual/tokenizer_config.json").read_bytes())
        length, pad = self.text["context_length"], settings["pad_token"]
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "textual/tokenizer.json"))
        self.tokenizer.enable_padding(
            length=length, pad_token=pad, pad_id=self.tokenizer.token_to_id(pad)
        )
        self.tokenizer.enable_truncation(max_length=length)
        self.visual, self.textual = (
            open_session(folder / tower / "model.onnx", threads=1)
            for tower in ("visual", "textual")
        )

    def embed_text(self, text: str) -> Any:
        ids = self.tokenizer.encode(" ".join(text.split())).ids
        return self.textual.run(None, {"text": np.array([ids], dtype=np.int32)})[0][0]

    def embed_image(self, path: Path) -> Any:
        size = self.preprocess["size"][0]
        how = Image.Resampling[self.preprocess["interpolation"].upper()]
        image = Image.open(path).convert("RGB")
        if self.preprocess.get("resize_mode") == "squash":
            image = image.resize((size, size), how)
        else:
            short = min(image.size)
            width, height = (int(side * size / short) for side in image.size)
            image = image.resize((width, height), how)
            left, top = ((side - size) // 2 for side in image.size)
            image = image.crop((left, top, left + size, top + size))
        pixels = np.asarray(image, np.float32) / 255
        mean, std = (np.array(self.preprocess[k], np.float32) for k in ("mean", "std"))
        feed = np.expand_dims(((pixels - mean) / std).transpose(2, 0, 1), 0)
        return self.visual.run(None, {"image": feed.astype(np.float32)})[0][0]


@pytest.mark.parametrize("which", ["bundle", "fixed"])
def test_immich(
    which: str, images: list[Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made = request.getfixturevalue(which)
    assert pack(made, "immich", tmp_path / "clip") == 0
    reader = Immich(tmp_path / "clip")
    found = np.stack([reader.embed_image(path) for path in images])
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    expected = unit(own_embeddings(made, images))
    # images of odd sizes: the server rounds a side down where open_clip rounds it
    assert (found * expected)[5:].sum(axis=1).min() >= 0.99999
    assert (found * expected)[:5].sum(axis=1).min() >= 0.99
    with TextTower(made, threads=1) as tower:
        expected = unit(tower.embed(TEXTS))
    found = np.stack([reader.embed_text(text) for text in TEXTS])
    assert (found * expected).sum(axis=1).min() >= 0.99999


def node_modules() -> Path:
    """Where @huggingface/transformers is: below REGCACHE_NODE_MODULES, or npm's global folder."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    given = os.environ.get("REGCACHE_NODE_MODULES")
    if given is None and shutil.which("npm") is not None:
        given = subprocess.run(
            ["npm", "root", "-g"], capture_output=True, text=True, check=False
        ).stdout.strip()
    if not given or not (Path(given) / "@huggingface/transformers").is_dir():
        pytest.skip(
            "npm's package @huggingface/transformers is not there; install it (with "
            "ONNXRUNTIME_NODE_INSTALL=skip) and set REGCACHE_NODE_MODULES to its node_modules"
        )
    return Path(given)


@pytest.mark.parametrize("which", ["bundle", "fixed"])
def test_transformers_js(
    which: str, images: list[Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    modules = node_modules()
    made = request.getfixturevalue(which)
    assert pack(made, "transformers", tmp_path / "clip") == 0
    with TextTower(made, threads=1) as tower:
        ids, embeddings = [tower.tokenize([text]) for text in TEXTS], tower.embed(TEXTS)
        dtype = "q8" if tower.config.precision == "int8" else "fp32"
    # a text that is too long loses its end token there
    texts = TEXTS[:-1]
    asked = {
        "images": list(map(str, images)),
        "texts": texts,
        "padding": "max_length" if which == "fixed" else True,
        "dtype": dtype,
    }
    script = Path(__file__).with_name("read_with_transformers.cjs")
    done = subprocess.run(
        ["node", str(script), str(modules), str(tmp_path / "clip"), json.dumps(asked)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    cosines = (unit(np.array(result["images"])) * unit(own_embeddings(made, images))).sum(axis=1)
    print(
        f"cosines of images of the encoder's own size {cosines[5:].min():.7f}, of others {cosines}"
    )
    # in node it resizes without a filter against aliasing
    assert cosines[5:].min() >= 0.9999
    assert cosines[:5].min() >= 0.9
    assert result["ids"] == [row[0].tolist() for row in ids[: len(texts)]]
    found = unit(np.array(result["texts"]))
    assert (found * unit(embeddings[: len(texts)])).sum(axis=1).min() >= 0.9999


def test_a_bundle_without_text(tmp_path: Path) -> None:
    made = write_bundle(plan_of(), tmp_path / "plain.regcache")
    assert pack(made, "transformers", tmp_path / "t") == 0
    assert pack(made, "immich", tmp_path / "i") == 0
    assert sorted(path.name for path in (tmp_path / "t/onnx").iterdir()) == [
        "vision_model_quantized.onnx"
    ]
    assert not (tmp_path / "i/textual").exists()


def test_preprocessing_in_the_words_of_transformers(tmp_path: Path) -> None:
    made = write_bundle(plan_of(crop_pct=0.875), tmp_path / "x.regcache")
    assert pack(made, "transformers", tmp_path / "t") == 0
    processor = json.loads((tmp_path / "t/preprocessor_config.json").read_bytes())
    assert processor["size"] == {"shortest_edge": 36}
    assert processor["crop_size"] == {"height": 32, "width": 32}
    assert processor["image_mean"] == PREPROCESS["mean"]
    assert pack(made, "immich", tmp_path / "i") == 2


def test_refused(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(code: int, *words: str) -> None:
        error = capsys.readouterr().err
        assert all(word in error for word in words), error

    pixels = write_bundle(plan_of(), tmp_path / "p.regcache", options=GraphOptions(pixels="nhwc"))
    batch = write_bundle(plan_of(), tmp_path / "b.regcache", options=GraphOptions(batch=4))
    tall = write_bundle(tiny_plan(), tmp_path / "tall.regcache")
    odd = Path(shutil.copytree(bundle, tmp_path / "odd.regcache"))
    preprocessing(crop_mode="border")(odd)
    for path, layout, words in (
        (bundle, "onnx", "take one of"),
        (pixels, "immich", "raw pixels"),
        (batch, "transformers", "batches of 4"),
        (tall, "immich", "square"),
        (tall, "transformers", "no resizing"),
        (odd, "immich", "'border'"),
        (odd, "transformers", "'border'"),
    ):
        assert pack(path, layout, tmp_path / "out") == 2
        said(2, words)
        assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    assert pack(bundle, "immich", tmp_path / "full") == 2
    said(2, "not empty", "--replace")
    assert (tmp_path / "full/mine.txt").exists()
    assert pack(bundle, "immich", tmp_path / "full", "--replace") == 0
    assert not (tmp_path / "full/mine.txt").exists()
    assert pack(bundle, "immich", odd, "--replace") == 2
    said(2, "is a bundle")


@pytest.mark.parametrize(
    ("config", "edge"),
    [
        ({"crop_mode": "center"}, (36, None)),  # timm's own share, 0.875
        ({"crop_pct": 1.0, "resize_mode": "squash"}, (32, None)),  # with a field of timm's, its way
        ({"crop_pct": 1.0, "crop_mode": "squash"}, (None, 32)),
        ({"resize_mode": "squash"}, (None, 32)),
    ],
)
def test_fields_are_read_as_the_bundle_reads_them(
    config: dict[str, Any], edge: tuple[int | None, int | None], bundle: Path, tmp_path: Path
) -> None:
    made = Path(shutil.copytree(bundle, tmp_path / "t.regcache"))
    known = json.loads((made / "preprocess_cfg.json").read_text())
    for name in ("resize_mode", "crop_mode", "crop_pct"):
        known.pop(name, None)
    replace_file(made, "preprocess_cfg.json", json.dumps(known | config).encode())
    size = known["size"] if isinstance(known["size"], int) else known["size"][0]
    shortest, whole = (None if n is None else n * size // 32 for n in edge)
    assert pack(made, "transformers", tmp_path / "out") == 0
    found = json.loads(next((tmp_path / "out").rglob("preprocessor_config.json")).read_text())
    assert (found["size"].get("shortest_edge"), found["size"].get("height")) == (shortest, whole)
