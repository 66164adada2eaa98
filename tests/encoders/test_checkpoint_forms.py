"""Good weights in odd forms: wrappings of training programs, an image tower alone, folders."""

from __future__ import annotations

import argparse
import json
import logging
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import torch

from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders.checkpoint import below_attribute, read_state_dict
from regcache_deploy.encoders.load import load_model
from regcache_deploy.errors import ConfigError, ModelError

open_clip = import_open_clip()
from open_clip import factory  # noqa: E402

NAME = "tiny-for-tests"
TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
CONFIG = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
TIMM = "timm/vit_tiny_patch16_224"


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.fixture
def clip(monkeypatch):
    """A small architecture that open_clip knows, and random weights of it."""
    monkeypatch.setitem(factory._MODEL_CONFIGS, NAME, CONFIG)
    torch.manual_seed(7)
    return open_clip.create_model(NAME, pretrained=None)


def visual_of(state):
    return {n.removeprefix("visual."): v for n, v in state.items() if n.startswith("visual.")}


FORMS = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "module": lambda s: under("module.", s),
    "compiled": lambda s: under("_orig_mod.", s),
    "compiled, parallel": lambda s: {"state_dict": under("_orig_mod.module.", s)},
    "parallel, compiled": lambda s: {"state_dict": under("module._orig_mod.", s)},
    "compiled tower": lambda s: {n.replace("visual.", "visual._orig_mod."): s[n] for n in s},
    "lightning": lambda s: {"state_dict": under("model.", s) | {"loss.t": torch.ones(2)}},
    "lightning, parallel": lambda s: {"state_dict": under("net.module.", s)},
    "model": lambda s: {"model": s, "optimizer": {"lr": 1.0}},
    "model_ema": lambda s: {"model": {n: v * 0 for n, v in s.items()}, "model_ema": s},
    "wrapped twice": lambda s: {"model_ema": {"state_dict": under("module.", s)}},
    "averaged": lambda s: under("module.", s) | {"n_averaged": torch.tensor(4)},
    "arguments": lambda s: {"state_dict": s, "args": argparse.Namespace(lr=1)},
    "records": lambda s: {"state_dict": s, "best": np.float64(0.8), "last": np.zeros(2)},
    "folders": lambda s: {"state_dict": s, "args": argparse.Namespace(out=Path("x"))},
    "times": lambda s: {"state_dict": s, "at": datetime(2026, 1, 1, tzinfo=timezone.utc)},
    "a word of its own": lambda s: {"params": s, "optimizer": {"state": {0: torch.ones(1)}}},
    "sharded": lambda s: under("_fsdp_wrapped_module.", s),
    "checkpointed": lambda s: {
        n.replace("resblocks.0.", "resblocks.0._checkpoint_wrapped_module."): s[n] for n in s
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_wrappings_of_both_towers(clip, tmp_path, form):
    torch.save(FORMS[form](clip.state_dict()), tmp_path / "x.ckpt")
    loaded = load_model(NAME, str(tmp_path / "x.ckpt"))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (loaded.encoder(images) - clip.visual.eval()(images)).abs().max() < 1e-5
    assert loaded.text_head is not None


@pytest.mark.parametrize(
    "form",
    [
        lambda s: s,
        lambda s: under("visual.", s),
        lambda s: {"state_dict": under("module.", s)},
        lambda s: {"state_dict": under("encoder.", s) | {"head.weight": torch.ones(2)}},
    ],
    ids=["bare", "visual.", "module.", "lightning"],
)
def test_an_image_tower_alone_has_no_head_and_says_so(clip, tmp_path, caplog, form):
    torch.save(form(visual_of(clip.state_dict())), tmp_path / "x.pt")
    with caplog.at_level(logging.WARNING):
        loaded = load_model(NAME, str(tmp_path / "x.pt"))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (loaded.encoder(images) - clip.visual.eval()(images)).abs().max() < 1e-5
    assert loaded.text_head is None
    assert loaded.text_features is None
    assert "holds the image tower alone" in caplog.text


def test_an_image_tower_with_a_hole_is_refused(clip, tmp_path):
    state = visual_of(clip.state_dict())
    del state["ln_post.bias"]
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=r"does not fit.*ln_post\.bias"):
        load_model(NAME, str(tmp_path / "x.pt"))


class Constants(torch.nn.Module):
    """Weights and numbers as in OpenAI's archives, in half precision."""

    def __init__(self, state):
        super().__init__()
        for name, number in (("input_resolution", 32), ("context_length", 8), ("vocab_size", 32)):
            self.register_buffer(name, torch.tensor(number))
        self.inner = torch.nn.ModuleDict()
        for name, value in state.items():
            at: torch.nn.Module = self
            *parents, last = name.split(".")
            for parent in parents:
                if parent not in dict(at.named_children()):
                    at.add_module(parent, torch.nn.Module())
                at = getattr(at, parent)
            at.register_buffer(last, value.half())

    def forward(self, x):
        return x


def test_a_torchscript_archive(clip, tmp_path):
    state = clip.state_dict()
    archive = torch.jit.trace(Constants(state), torch.zeros(1), check_trace=False)
    torch.jit.save(archive, tmp_path / "x.pt")
    found = read_state_dict(tmp_path / "x.pt")
    assert found.keys() == state.keys()
    loaded = load_model(NAME, str(tmp_path / "x.pt"))
    weight = loaded.encoder.weights["blocks.1.mlp.fc1.weight"]
    original = clip.visual.transformer.resblocks[1].mlp.c_fc.weight
    assert torch.equal(weight, original.half().float())
    assert loaded.text_head is not None


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Bad:
        def __reduce__(self):
            return print, ("ran",)

    torch.save({"state_dict": {"a": torch.ones(1)}, "x": Bad()}, tmp_path / "x.pt")
    with pytest.raises(ModelError, match="cannot be read"):
        read_state_dict(tmp_path / "x.pt")


class Settings:
    """Of a training program."""


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (lambda s: {"state_dict": s, "cfg": Settings()}, r"\.Settings beside"),
        (lambda _: torch.nn.Linear(2, 2), r"holds torch\.nn\.modules\.linear\.Linear"),
    ],
    ids=["settings", "whole module"],
)
def test_what_would_run_code_is_named(clip, tmp_path, content, named):
    """Without PyTorch's advice about options that are not ours, and without its escape codes."""
    torch.save(content(clip.state_dict()), tmp_path / "x.pt")
    with pytest.raises(ModelError, match=named) as refused:
        load_model(NAME, str(tmp_path / "x.pt"))
    message = str(refused.value)
    assert "save the weights alone" in message
    assert message.isprintable()
    assert "weights_only" not in message


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize(
    ("data", "said"),
    [(b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), (b"", "is empty")],
)
def test_what_is_there_in_place_of_weights(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ModelError, match=said):
        read_state_dict(tmp_path / name)


def test_a_torn_file_has_a_short_message(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"<html>not found")
    with pytest.raises(ModelError, match=r"cannot be read: Unsupported operand 60$"):
        read_state_dict(tmp_path / "x.pt")


def test_several_models_in_one_file_are_no_choice_of_ours(clip, tmp_path):
    state = clip.state_dict()
    torch.save({"online": state, "target": state}, tmp_path / "x.pt")
    with pytest.raises(ModelError, match="several models: 'online', 'target'"):
        load_model(NAME, str(tmp_path / "x.pt"))


@pytest.mark.parametrize("name", [NAME, TIMM])
def test_a_file_of_an_unknown_tag(clip, tmp_path, monkeypatch, name):
    """The file is there; it was said to be missing, under the name TAG=PATH."""
    torch.save(clip.state_dict(), tmp_path / "x.pt")
    with pytest.raises(ModelError, match="has no pretrained tag 'laion9b'"):
        load_model(name, f"laion9b={tmp_path / 'x.pt'}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="has no pretrained tag 'laion9b'"):
        load_model(name, "laion9b=x.pt")
    with pytest.raises(ModelError, match=r"no checkpoint file at laion9b=y\.pt"):
        load_model(name, "laion9b=y.pt")


def test_nothing_known_leaves_the_names():
    state = {"a.b": torch.ones(1), "c": torch.ones(1)}
    assert below_attribute(state, {"x"}).keys() == state.keys()
    assert below_attribute(state, {"b"}).keys() == {"b"}


@pytest.mark.parametrize("names", [("student.", "teacher."), ("net.online.", "net.target.")])
def test_two_copies_of_a_model_are_no_choice_of_ours(clip, tmp_path, names):
    """A distillation's two networks: the first one by the alphabet was taken."""
    state = clip.state_dict()
    pair = [under(name, {n: v + i for n, v in state.items()}) for i, name in enumerate(names)]
    torch.save({"state_dict": pair[0] | pair[1]}, tmp_path / "x.ckpt")
    with pytest.raises(ModelError, match=f"twice, below '{names[0]}' and below '{names[1]}'"):
        load_model(NAME, str(tmp_path / "x.ckpt"))


@pytest.mark.parametrize(
    "form",
    [
        lambda s: {"model": s},
        lambda s: {"state_dict": under("_orig_mod.", s)},
        lambda s: {"model": s, "args": argparse.Namespace(lr=1)},
        lambda s: {"teacher": under("backbone.", s) | {"dino_head.weight": torch.zeros(2)}},
    ],
    ids=["model", "compiled", "arguments", "teacher"],
)
def test_wrappings_of_a_timm_model(tmp_path, form):
    import timm

    torch.manual_seed(0)
    state = timm.create_model(TIMM.removeprefix("timm/")).state_dict()
    for file in ("x.pth", "best.pth.tar"):
        torch.save(form(state), tmp_path / file)
        encoder = load_model(TIMM, str(tmp_path / file)).encoder
        name = "blocks.3.mlp.fc1.weight"
        assert torch.equal(encoder.weights[name], state[name])
    loaded = load_model(TIMM, f"augreg_in21k={tmp_path / 'x.pth'}")
    assert loaded.preprocess["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("word", ["", "local-dir:"])
def test_a_folder_in_the_layout_of_open_clip(clip, tmp_path, word):
    from safetensors.torch import save_file

    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "resize_mode": "squash"}
    config = {"model_cfg": CONFIG, "preprocess_cfg": preprocess}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(clip.state_dict(), tmp_path / "open_clip_model.safetensors")
    loaded = load_model(f"{word}{tmp_path}")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (loaded.encoder(images) - clip.visual.eval()(images)).abs().max() < 1e-5
    assert (loaded.preprocess["mean"], loaded.preprocess["resize_mode"]) == (
        [0.1, 0.2, 0.3],
        "squash",
    )
    assert loaded.text_head is not None
    with pytest.raises(ConfigError, match="brings its own weights"):
        load_model(f"{word}{tmp_path}", "random")
