"""The text tower of a bundle: embeddings, threads, heads, and what it refuses."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from regcache_deploy.bundling import text as bundling
from regcache_deploy.encoders.zero_shot_head import OpenClipHead
from regcache_deploy.errors import VerificationError
from regcache_deploy.work.progress import Reporter
from regcache_engines import Bundle, TextTower, head
from regcache_engines import text as text_module
from regcache_engines.errors import BundleError, ConfigError, DataError, EngineError
from regcache_engines.head import head_bytes, read_head
from regcache_engines.text_config import TEXT_FILES, TextConfig
from regcache_engines.text_head import head_file, make_head, read_classes, read_prompts
from regcache_export.bundle import write_bundle
from tests.cpp.damaging import replace_file
from tests.text_bundles import (
    END,
    TEMPLATES,
    small_clip,
    small_tokenizer,
    text_bundle,
    text_side,
)
from tests.tiny_plans import tiny_plan

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

TEXTS = ["a photo of a dog", "Été &amp; hiver", "", "word " * 90, "cat"]


@pytest.fixture(scope="module")
def model() -> Any:
    return small_clip()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, model: Any) -> Path:
    return text_bundle(tmp_path_factory.mktemp("text") / "tiny.regcache", text_side(model))


def cosines(one: Any, other: Any) -> Any:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(axis=1) / norms


def test_the_bundle_says_what_it_has(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    entry = opened.manifest["text"]
    assert opened.has_text
    assert entry["precision"] in ("int8", "float16")
    assert entry["cosine"]["lowest"] >= 0.999
    config = TextConfig.parse(opened.read("text/text.json"), "x")
    assert (config.context_length, config.padding, config.pooling) == (20, "longest", "argmax")
    assert (config.eos_id, config.lower_case, config.logit_scale) == (END, True, 50)
    assert config.templates == TEMPLATES
    assert config.precision == entry["precision"]


def test_embeds_as_the_original(bundle: Path, model: Any) -> None:
    side = text_side(model)
    with TextTower(bundle, threads=1) as tower:
        ids = tower.tokenize(TEXTS)
        assert ids.dtype == np.int64
        original = side.tokens(TEXTS).numpy()
        assert (ids == original[:, : ids.shape[1]]).all()
        found = tower.embed(TEXTS)
        assert found.dtype == np.float32
        assert cosines(found, side.features(TEXTS).numpy()).min() > 0.998
        alone = np.concatenate([tower.embed([text]) for text in TEXTS])
        assert np.array_equal(found, alone), "a text's embedding does not depend on the others"
        assert tower.output_dim == found.shape[1] == 20


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_other_precisions(
    precision: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where INT8 loses too much, float16 is taken, and where that cannot hold a weight, float32."""
    monkeypatch.setattr(bundling, "in_int8", lambda whole: _damaged(whole))
    if precision == "float32":
        monkeypatch.setattr(bundling, "in_half", lambda whole: None)
    side = text_side(model)
    path = text_bundle(tmp_path / "x.regcache", side)
    with TextTower(path / "text", threads=1) as tower:
        assert tower.config.precision == precision
        found, expected = tower.embed(TEXTS), side.features(TEXTS).numpy()
        assert np.abs(found - expected).max() < (1e-4 if precision == "float32" else 2e-2)
        assert cosines(found, expected).min() > 0.9999
    stored = onnx.load(path / TEXT_FILES[0]).graph.initializer[0]
    assert stored.data_type == onnx.TensorProto.DataType.Value(precision.upper().replace("32", ""))


def _damaged(whole: onnx.ModelProto) -> onnx.ModelProto:
    out = onnx.ModelProto()
    out.CopyFrom(whole)
    bias = next(t for t in out.graph.initializer if t.name == "norm.bias")
    value = onnx.numpy_helper.to_array(bias) + 3
    bias.CopyFrom(onnx.numpy_helper.from_array(value, bias.name))
    return out


def test_a_weight_beyond_float16(model: Any) -> None:
    from regcache_export.text import build_text_model
    from regcache_export.text_weights import in_half

    encoder = text_side(model).encoder
    weights = {name: value.numpy().copy() for name, value in encoder.weights.items()}
    assert in_half(build_text_model(encoder.spec, weights)) is not None
    weights["blocks.0.mlp.fc1.weight"][0, 0] = 1e5
    assert in_half(build_text_model(encoder.spec, weights)) is None


def test_a_graph_or_a_tokenizer_that_is_not_the_original_ends_the_export(model: Any) -> None:
    from dataclasses import replace

    side = text_side(model)
    wrong = replace(side, features=lambda texts: side.features([t[::-1] for t in texts]))
    with pytest.raises(VerificationError, match="differs from the original tower"):
        bundling.text_part(wrong, ("cat",), 20, Reporter(quiet=True))
    wrong = replace(side, tokens=lambda texts: side.tokens([t + "!" for t in texts]))
    with pytest.raises(VerificationError, match="splits 'a photo of a cat"):
        bundling.text_part(wrong, ("cat",), 20, Reporter(quiet=True))


def test_what_does_not_fit_is_left_out_and_the_manifest_says_why(caplog: Any) -> None:
    side = text_side(small_clip(custom=True, embed_cls=True))
    part = bundling.text_part(side, (), 20, Reporter(quiet=True))
    assert part.files == {}
    assert "class token" in part.manifest["left_out"]
    assert "gets no text tower" in caplog.text
    other = bundling.text_part(text_side(small_clip()), (), 21, Reporter(quiet=True))
    assert "20 numbers beside an image's of 21" in other.manifest["left_out"]


def test_a_tower_that_reads_its_padding(tmp_path: Path) -> None:
    side = text_side(small_clip(custom=True, no_causal_mask=True, pool_type="last"))
    path = text_bundle(tmp_path / "x.regcache", side)
    with TextTower(path, threads=1) as tower:
        assert tower.config.padding == "context_length"
        assert tower.tokenize(["cat"]).shape == (1, 20)
        assert cosines(tower.embed(TEXTS), side.features(TEXTS).numpy()).min() > 0.998


def test_equal_bundles(bundle: Path, model: Any, tmp_path: Path) -> None:
    again = text_bundle(tmp_path / "again.regcache", text_side(model))
    for name in TEXT_FILES:
        assert (bundle / name).read_bytes() == (again / name).read_bytes()


@pytest.mark.parametrize("threads", [-1, 0, 4097])
def test_a_number_of_threads_out_of_range_is_refused(bundle: Path, threads: int) -> None:
    with pytest.raises(EngineError, match=f"threads is {threads}"):
        TextTower(bundle, threads=threads)


def test_many_threads_get_the_same(bundle: Path) -> None:
    with TextTower(bundle, threads=1) as tower:
        expected = tower.embed(TEXTS)
        found: list[Any] = []
        threads = [
            threading.Thread(target=lambda: found.append(tower.embed(TEXTS))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4
    assert all(np.array_equal(each, expected) for each in found)
    with pytest.raises(EngineError, match="closed"):
        tower.embed(TEXTS)
    tower.close()


def test_closing_gives_the_memory_back(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tower, left = TextTower(bundle, threads=1), list[object]()
    monkeypatch.setattr(text_module, "trim_heap", lambda: left.append(tower._session))
    tower.close()
    tower.close()
    assert left == [None]


@pytest.mark.parametrize("texts", ["one string", [], [1], None, ["half \ud83d"]])
def test_what_is_no_list_of_texts(texts: Any, bundle: Path) -> None:
    with TextTower(bundle, threads=1) as tower, pytest.raises(DataError, match="text"):
        tower.embed(texts)


def test_without_a_text_tower(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="neither a bundle nor the folder text"):
        TextTower(tmp_path)
    plain = write_bundle(tiny_plan(), tmp_path / "plain.regcache")
    with pytest.raises(BundleError, match="has no text tower"):
        TextTower(plain)


CHANGES: dict[str, tuple[str, bytes | dict[str, Any], type[Exception], str]] = {
    "no JSON": ("text.json", b"{", BundleError, "not readable"),
    "newer format": ("text.json", {"format": 2}, BundleError, "format 2"),
    "format as truth": ("text.json", {"format": True}, BundleError, "format True"),
    "no length": ("text.json", {"context_length": 0}, BundleError, "'context_length'"),
    "normalized": ("text.json", {"l2_normalized": True}, BundleError, "'l2_normalized'"),
    "prompt without a place": ("text.json", {"templates": ["a"]}, BundleError, "'templates'"),
    "infinite scale": ("text.json", {"logit_scale": 1e999}, BundleError, "'logit_scale'"),
    "other length": ("text.json", {"embedding": 21}, EngineError, "no text tower"),
    "no tokenizer": ("tokenizer.json", b"{}", BundleError, "no tokenizer"),
    "no model": ("model.onnx", b"x", BundleError, "hides whether"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_refused(what: str, bundle: Path, tmp_path: Path) -> None:
    name, change, error, words = CHANGES[what]
    damaged = Path(shutil.copytree(bundle, tmp_path / "x.regcache"))
    if isinstance(change, dict):
        known = json.loads((damaged / "text" / name).read_text(encoding="utf-8"))
        change = json.dumps(known | change).encode()
    replace_file(damaged, f"text/{name}", change)
    with pytest.raises(error, match=words):
        TextTower(damaged, threads=1)


def test_weights_in_another_file_are_refused(bundle: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(bundle, tmp_path / "x.regcache"))
    path = damaged / TEXT_FILES[0]
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location=".weights", size_threshold=0
    )
    replace_file(damaged, TEXT_FILES[0], path.read_bytes())
    with pytest.raises(BundleError, match="in other files"):
        TextTower(damaged, threads=1)


def test_a_head_is_the_one_of_pytorch(bundle: Path, model: Any, tmp_path: Path) -> None:
    names = ("cat", "dog", "red bicycle", "old church")
    expected = OpenClipHead(model, small_tokenizer, TEMPLATES)(names).numpy()
    with TextTower(bundle, threads=1) as tower:
        found = make_head(tower, names)
        data = head_file(tower, names, ("{}",))
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert (found * expected).sum(axis=1).min() > 0.999
    path = tmp_path / "head.safetensors"
    path.write_bytes(data)
    opened = Bundle.open(bundle).with_head(path)
    assert opened.labels == names
    assert opened.logit_scale == 50
    assert Bundle.open(bundle).labels != names


def test_a_head_of_another_model_is_refused(bundle: Path, tmp_path: Path) -> None:
    path, opened = tmp_path / "head.safetensors", Bundle.open(bundle)
    path.write_bytes(head_bytes(np.eye(2, 8), ("a", "b"), 1))
    with pytest.raises(BundleError, match="8 numbers"):
        opened.with_head(path)
    path.write_bytes(head_bytes(np.eye(2, 20), ("a", "b"), 1, weights_sha256="0" * 64))
    with pytest.raises(BundleError, match="another model's text tower"):
        opened.with_head(path)
    path.write_bytes(head_bytes(np.eye(2, 20), ("a", "b"), 1))
    assert opened.with_head(path).labels == ("a", "b")
    path.write_bytes(b"x" * 20)
    with pytest.raises(BundleError, match="not readable"):
        opened.with_head(path)
    with pytest.raises(BundleError, match="not readable"):
        opened.with_head(tmp_path / "none")


def test_no_head_is_written_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.eye(2, dtype=np.float32)
    with pytest.raises(ConfigError, match="zero byte"):
        head_bytes(rows, ["cat", "dog\0"], 100)
    data = head_bytes(rows, ["cat", "dog"], 100)
    monkeypatch.setattr(head, "MAX_HEADER", int.from_bytes(data[:8], "little"))
    read_head(head_bytes(rows, ["cat", "dog"], 100), Path("head"))
    with pytest.raises(ConfigError, match="fewer or shorter"):
        head_bytes(rows, ["cat", "a dog that has a long name"], 100)


def test_words_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("\ufeffgreat white shark\ncat\n\n", encoding="utf-8")
    assert read_classes(str(path)) == ("great white shark", "cat")
    assert read_classes("a, b c ,d") == ("a", "b c", "d")
    assert read_prompts("a photo of a {}") == ("a photo of a {}",)
    for wrong, words in (
        ("a,b,a", "'a' is there twice"),
        (" , ", "no class names"),
        ("a,,b", "name 2 is empty"),
    ):
        with pytest.raises(ConfigError, match=words):
            read_classes(wrong)
    with pytest.raises(ConfigError, match="no such file"):
        read_classes(str(tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match="no such file, and no prompt"):
        read_prompts("openai")
    with pytest.raises(ConfigError, match="once"):
        read_prompts("{} and {}")
    assert read_prompts("{}") == ("{}",)
    path.write_text('{"imagenet1k": ["a photo of a {c}."]}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="is JSON"):
        read_prompts(str(path))
    path.write_text("great white shark\n \ncat\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="name 2 is empty"):
        read_classes(str(path))  # dropped, every later label is one too low
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_classes(str(path))


def test_braces_of_a_template_are_text() -> None:
    templates = ("a {} in {year}, {0}", "100 % { of {}", "{c} {")
    assert bundling._texts(templates, ("cat",))[:3] == [
        "a cat in {year}, {0}",
        "100 % { of cat",
        "{c} {",
    ]
