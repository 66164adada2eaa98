"""Weights that are cut, missing, or another model's, through the loader that users call."""

from __future__ import annotations

import pytest
import torch

from regcache_deploy.cli.main import export_main
from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders import hub
from regcache_deploy.encoders.load import load_model
from regcache_deploy.errors import ModelError

open_clip = import_open_clip()
timm = pytest.importorskip("timm")
constants = pytest.importorskip("huggingface_hub").constants

TINY, TAG = "timm/vit_tiny_patch16_224", "augreg_in21k_ft_in1k"
CLIP, CLIP_TAG = "ViT-B-32", "laion2b_s34b_b79k"
CLIP_REPOSITORY = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, on a machine without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_resolves", lambda host: False)
    return tmp_path


def put(cache, repository, name, data):
    """A file as the hub's own client keeps it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True, exist_ok=True)
    (folder / "snapshots" / "abc" / name).write_bytes(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole file of vit_tiny, random weights."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), path)
    return path


def test_a_whole_file_in_the_cache_is_enough(cache, whole):
    put(cache, f"timm/vit_tiny_patch16_224.{TAG}", "model.safetensors", whole.read_bytes())
    assert load_model(TINY, TAG).encoder.spec.depth == 12


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.6])
def test_a_half_downloaded_file(cache, whole, share, capsys):
    data = whole.read_bytes()
    repository = f"timm/vit_tiny_patch16_224.{TAG}"
    put(cache, repository, "model.safetensors", data[: int(len(data) * share)])
    with pytest.raises(ModelError, match=r"damaged, perhaps half downloaded .*delete the file"):
        load_model(TINY, TAG)
    words = ["--model", TINY, "--pretrained", TAG, "--data", "demo", "--output", str(cache / "o")]
    assert export_main(words) == 3
    message = capsys.readouterr().err.splitlines()[-1]
    assert "delete the file from" in message
    assert str(cache) in message


def test_a_half_downloaded_file_of_open_clip(cache, whole):
    put(cache, CLIP_REPOSITORY, "open_clip_model.safetensors", whole.read_bytes()[:5000])
    match = rf"damaged, perhaps half downloaded .*--pretrained {CLIP_TAG}=PATH"
    with pytest.raises(ModelError, match=match):
        load_model(CLIP, CLIP_TAG)


def test_a_download_that_was_cut_off_and_no_network(cache, whole):
    """The hub's client leaves `.incomplete` behind; that is no file of the repository yet."""
    folder = cache / f"models--timm--vit_tiny_patch16_224.{TAG}"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "0123.incomplete").write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"not in the cache .* HF_HUB_OFFLINE is set"):
        load_model(TINY, TAG)


@pytest.mark.parametrize(
    ("model", "pretrained", "parts"),
    [
        (TINY, TAG, ("model.safetensors", f"vit_tiny_patch16_224.{TAG}", "--pretrained PATH")),
        (CLIP, CLIP_TAG, ("open_clip_model.safetensors", CLIP_REPOSITORY, f"{CLIP_TAG}=PATH")),
        ("hf-hub:org/name", None, ("download the repository", "org/name", "--model FOLDER")),
        ("org/name", None, ("unknown model 'org/name'", "--model FOLDER")),
    ],
)
def test_no_network_says_which_file_goes_where(cache, monkeypatch, model, pretrained, parts):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(ModelError, match="no network") as caught:
        load_model(model, pretrained)
    for part in (*parts, str(cache)):
        assert part in str(caught.value)


def test_a_checkpoint_of_another_architecture(whole, tmp_path):
    """A timm ViT for open_clip's ViT, a ResNet for timm's."""
    with pytest.raises(ModelError, match=r"does not fit or cannot be read: .*(key|size)"):
        load_model("ViT-S-32", str(whole))
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "resnet.pt")
    with pytest.raises(ModelError, match=r"does not fit or cannot be read"):
        load_model(TINY, str(tmp_path / "resnet.pt"))
