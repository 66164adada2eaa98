"""Models of open_clip with a text tower of transformers: their image tower comes through alone."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders import load_open_clip
from regcache_deploy.encoders.load import load_model
from regcache_deploy.encoders.open_clip_image import foreign_text_tower
from regcache_deploy.errors import ModelError

open_clip = import_open_clip()

VISION = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2}
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": VISION,
    "text_cfg": {"hf_model_name": "xlm-roberta-base", "hf_pooler_type": "mean_pooler"},
}
FOREIGN = [
    name
    for name in open_clip.list_models()
    if "hf_model_name" in open_clip.get_model_config(name)["text_cfg"]
]


@pytest.fixture(autouse=True)
def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip as it is where transformers is not installed."""
    monkeypatch.setattr(sys.modules["open_clip.hf_model"], "transformers", None)


@pytest.fixture
def original() -> Any:
    torch.manual_seed(0)
    text = {"context_length": 4, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}
    return open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=VISION, text_cfg=text).eval()


@pytest.fixture
def weights(original: Any) -> dict[str, torch.Tensor]:
    """As a trained checkpoint names them; of the text tower a few, which nobody reads."""
    state = {k: v.clone() for k, v in original.state_dict().items() if not k.startswith("text.")}
    tower = "text.transformer."
    state[f"{tower}embeddings.word_embeddings.weight"] = torch.zeros(5, 8)
    return state | {f"{tower}encoder.layer.0.attention.self.query.weight": torch.zeros(8, 8)}


@pytest.fixture
def architecture(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "tiny-xlm.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    open_clip.add_model_config(tmp_path / "tiny-xlm.json")
    yield "tiny-xlm"
    open_clip.factory._MODEL_CONFIGS.pop("tiny-xlm")


def same(model: Any, original: Any) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(images), original.encode_image(images))
    assert model.text is None
    assert model.text_head is None
    assert model.text_features is None


def test_a_checkpoint(
    tmp_path: Path,
    original: Any,
    weights: dict[str, torch.Tensor],
    architecture: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    save_file(weights, tmp_path / "w.safetensors")
    with caplog.at_level(logging.WARNING):
        same(load_model(architecture, str(tmp_path / "w.safetensors")), original)
    assert "xlm-roberta-base of transformers" in caplog.text
    assert "image tower is taken alone" in caplog.text


def test_a_folder(tmp_path: Path, original: Any, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    content = {"model_cfg": CONFIG, "preprocess_cfg": preprocess}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    model = load_model(str(tmp_path))
    same(model, original)
    assert model.preprocess["mean"] == preprocess["mean"]


def test_a_tag(
    tmp_path: Path,
    original: Any,
    weights: dict[str, torch.Tensor],
    architecture: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_file(weights, tmp_path / "w.safetensors")
    table = sys.modules["open_clip.pretrained"]._PRETRAINED
    entry = {"file": str(tmp_path / "w.safetensors"), "mean": (0.5, 0.5, 0.5)}
    monkeypatch.setitem(table, architecture, {"mine": entry})
    model = load_model(architecture, "mine")
    same(model, original)
    assert model.preprocess["mean"] == [0.5, 0.5, 0.5]


def test_what_does_not_fit_is_still_refused(
    tmp_path: Path, weights: dict[str, torch.Tensor], architecture: str
) -> None:
    del weights["visual.conv1.weight"]
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"conv1\.weight"):
        load_model(architecture, str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("name", FOREIGN)
def test_every_such_architecture_is_named(name: str) -> None:
    assert foreign_text_tower(open_clip, name, None)


def test_an_own_text_tower_is_no_foreign_one() -> None:
    assert foreign_text_tower(open_clip, "ViT-B-16", None) is None


def test_coca_keeps_its_image_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    config = open_clip.get_model_config("coca_roberta-ViT-B-32")
    small = config | {"vision_cfg": config["vision_cfg"] | {"layers": 1, "width": 64}}
    small["multimodal_cfg"] = small["multimodal_cfg"] | {"layers": 1}
    monkeypatch.setattr(open_clip.factory, "get_model_config", lambda name: small)
    weights = load_open_clip._Weights(seed=0)
    model, alone = load_open_clip._model(open_clip, "coca_roberta-ViT-B-32", weights, None, None)
    assert alone
    assert model.visual.transformer.width == 64
