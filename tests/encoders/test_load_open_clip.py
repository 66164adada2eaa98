"""What open_clip's tags say of their weights reaches the encoder, also from a file."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders.hub import explain_failure
from regcache_deploy.encoders.load import load_model
from regcache_deploy.errors import ConfigError, ModelError

open_clip = import_open_clip()
pretrained = pytest.importorskip("open_clip.pretrained")

NAME = "ViT-S-32"
HALF = (0.5, 0.5, 0.5)
TAGS: dict[str, dict[str, Any]] = {
    "quick": {"quick_gelu": True},
    "plain": {},
    "half": {"mean": HALF, "std": HALF, "interpolation": "bicubic", "resize_mode": "squash"},
}


@pytest.fixture
def tags(tmp_path, monkeypatch):
    """Three tags of a small model, and one file of random weights that all of them could be."""
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    state = open_clip.create_model(NAME, pretrained=None).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    known = {tag: {"url": path.as_uri()} | says for tag, says in TAGS.items()}
    monkeypatch.setitem(pretrained._PRETRAINED, NAME, known)
    monkeypatch.setitem(pretrained._PRETRAINED, NAME + "-quickgelu", known)
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *a, **k: str(path))
    original = open_clip.get_model_config

    def config(name):
        found = original(name.removesuffix("-quickgelu"))
        return found | {"quick_gelu": True} if name.endswith("-quickgelu") else found

    monkeypatch.setattr(open_clip, "get_model_config", config)
    monkeypatch.setattr(open_clip, "list_models", lambda: [NAME, NAME + "-quickgelu"])
    return path


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize(
    ("tag", "activation"), [("quick", "quick_gelu"), ("plain", "gelu"), ("half", "gelu")]
)
def test_the_activation_is_that_of_the_tag(tags, tag, activation, from_file):
    model = load_model(NAME, f"{tag}={tags}" if from_file else tag)
    assert model.encoder.spec.activation == activation
    expected = (0.5, "squash") if tag == "half" else (0.48145466, "shortest")
    assert (model.preprocess["mean"][0], model.preprocess["resize_mode"]) == expected


def test_an_architecture_with_another_activation_than_its_weights_is_refused(tags, monkeypatch):
    monkeypatch.setattr("regcache_deploy.encoders.load_open_clip.build_tower", lambda *a, **k: None)
    monkeypatch.setattr("regcache_deploy.encoders.load_open_clip.read_tower", lambda *a, **k: None)
    with pytest.raises(ConfigError, match=f"trained with GELU.*--model {NAME}$"):
        load_model(NAME + "-quickgelu", "plain")


def test_a_bare_file_is_told_what_it_is_taken_for(tags, caplog):
    with caplog.at_level(logging.WARNING):
        model = load_model(NAME, str(tags))
    assert model.encoder.spec.activation == "gelu"
    assert "taken are GELU" in caplog.text
    assert "quick, half" in caplog.text
    assert "TAG=PATH" in caplog.text


def test_texts_make_the_tokenizer_once_and_say_what_it_needs(tags, monkeypatch):
    made = []

    def tokenizer(name):
        made.append(name)
        if len(made) == 1:
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
        return open_clip.SimpleTokenizer()

    monkeypatch.setattr(open_clip, "get_tokenizer", tokenizer)
    encode = load_model(NAME, "plain").text_features
    assert encode is not None
    with pytest.raises(ConfigError, match=r"needs transformers.*regcache-deploy\[siglip\]"):
        encode(["a cat"])
    assert encode(["a cat"]).equal(encode(["a cat"]))
    assert len(made) == 2


def test_an_equals_sign_may_stand_in_a_path(tags):
    path = tags.rename(tags.with_name("epoch=3.safetensors"))
    assert load_model(NAME, str(path)).encoder.spec.depth > 0
    with pytest.raises(ModelError, match="no pretrained tag 'quik'; did you mean: quick"):
        load_model(NAME, f"quik={path}")
    with pytest.raises(ModelError, match="no checkpoint file at quik="):
        load_model(NAME, f"quik={path}.none")


def test_a_network_error_that_names_the_file_is_no_damage():
    error = ConnectionError("404 for https://host/org/open_clip_model.safetensors: not found")
    assert "could not be had" in str(explain_failure("the weights", error, "--pretrained PATH"))
