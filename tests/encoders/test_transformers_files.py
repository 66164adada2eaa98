"""Models in transformers' layout, without transformers: what the files say, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regcache_deploy.encoders import hub
from regcache_deploy.encoders.load import load_model
from regcache_deploy.encoders.model_files import Folder, Repository
from regcache_deploy.encoders.transformers_preprocess import crop_share
from regcache_deploy.errors import ModelError, UnsupportedEncoderError

huggingface_hub = pytest.importorskip("huggingface_hub")

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
}


def processor(name: str = "preprocessor_config.json", **changes: Any) -> tuple[str, Any]:
    """A processor's file: 56 pixels, of which 48 are cut out."""
    values = {
        "do_resize": True,
        "size": {"shortest_edge": 56},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": 48, "width": 48},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
    }
    return name, values | changes


@pytest.mark.parametrize(
    ("config", "feature"),
    [
        ({"model_type": "siglip2", "vision_config": {"num_patches": 256}}, "NaFlex"),
        ({"model_type": "swin"}, "window attention"),
        ({"model_type": "bert"}, "kind 'bert'"),
        ({"model_type": "dinov3_vit", "use_gated_mlp": True}, "a gated MLP with gelu"),
        ({"model_type": "siglip", "vision_config": {"vision_use_head": False}}, "pooling head"),
        ({"model_type": "clip", "vision_config": {"hidden_act": "silu"}}, "silu"),
        ({"model_type": "clip", "vision_config": {"num_channels": 4}}, "4 colour channels"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_feature(tmp_path, config, feature):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedEncoderError, match=feature):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["../other/x.safetensors", "/etc/hostname", "a/../../b", "a\0b"])
@pytest.mark.parametrize("files", [Folder(Path("model")), Repository("org/name")], ids=str)
def test_a_name_that_leads_out_of_the_model_is_refused(files, name):
    for look in (files.find, files.below):
        with pytest.raises(ModelError, match="which is not one of them"):
            look(name)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({}, "names no model_type"),
        ({"model_type": "dinov2", "hidden_size": "wide"}, "hidden_size is 'wide'"),
        ({"model_type": "dinov2", "patch_size": [1, 2, 3]}, "patch_size"),
        ([], "holds no JSON object"),
    ],
    ids=str,
)
def test_a_configuration_that_makes_no_sense(tmp_path, config, problem):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=problem):
        load_model(str(tmp_path), "random")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        ({"resample": 1}, "lanczos"),
        ({"do_center_crop": False}, "varying shape"),
        ({"crop_size": 60}, "a crop of"),
        ({"size": {"max_pixels": 3}}, "size"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"crop_size": {"height": 48, "width": 32}}, "no square, out of a shorter edge"),
    ],
    ids=str,
)
def test_preprocessing_that_cannot_be_done_is_refused(tmp_path, changes, problem):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2"} | SMALL))
    name, values = processor(**changes)
    (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(ModelError, match=rf"not supported: .*{problem}"):
        load_model(str(tmp_path), "random")


def test_a_folder_of_no_layout_and_a_missing_one(tmp_path):
    with pytest.raises(ModelError, match=r"neither open_clip_config\.json nor"):
        load_model(str(tmp_path))
    with pytest.raises(ModelError, match="no such folder"):
        load_model(f"{tmp_path}/no/such")
    with pytest.raises(ModelError, match="there is no folder"):
        load_model(f"local-dir:{tmp_path}/no")


def test_a_share_makes_timm_resize_to_the_edge_of_the_file():
    for crop in range(32, 600, 7):
        for edge in range(crop + 1, crop + 60):
            assert int(crop / crop_share(crop, edge)) == edge


class Hub:
    """A hub of one repository, whose files lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []

    def download(self, repository: str, name: str) -> str:
        errors = huggingface_hub.errors
        self.asked.append(name)
        if repository == "org/gated":
            raise _response_error(errors.GatedRepoError)
        if repository != "org/name":
            raise _response_error(errors.RepositoryNotFoundError)
        if not (self.folder / name).is_file():
            raise _response_error(errors.RemoteEntryNotFoundError)
        return str(self.folder / name)


def _response_error(kind: Any) -> Exception:
    error: Exception = kind.__new__(kind)
    Exception.__init__(error, "404")
    return error


@pytest.fixture
def online(tmp_path, monkeypatch):
    fake = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_resolves", lambda host: True)
    return fake


def test_a_repository_is_asked_for_what_it_may_have(online):
    (online.folder / "config.json").write_text(json.dumps({"model_type": "dinov2"} | SMALL))
    name, values = processor()
    (online.folder / name).write_text(json.dumps(values))
    loaded = load_model("org/name", "random")
    assert loaded.encoder.spec.image_size == (48, 48)
    assert set(online.asked) == {"open_clip_config.json", "config.json", name}
    with pytest.raises(ModelError, match=r"org/name has no model\.safetensors"):
        load_model("org/name")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("org/other", "unknown model 'org/other': the hub has no such repository"),
        ("org/gated", "gated: accept its terms"),
        ("org/name", "neither open_clip_config"),
    ],
)
def test_what_the_hub_does_not_give(online, name, problem):
    with pytest.raises(ModelError, match=problem):
        load_model(name)
