"""From a timm encoder, and from a SigLIP with its text side, to an INT8 bundle and its evaluation.

Tiny architectures with seeded random weights; the images are three colours with noise.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from regcache_deploy.cli.main import export_main, main
from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders.structure import fill_randomly
from regcache_engines.bundle import Bundle
from regcache_export.inspect import integer_gemms
from regcache_export.plan import Plan

open_clip = import_open_clip()
timm = pytest.importorskip("timm")

COLOURS = {"red apple": (200, 60, 50), "green_leaf": (50, 190, 80), "Blue Sky": (60, 90, 210)}
SETTINGS = ["--calibration-images", "6", "--search-images", "8", "--certificate-images", "3"]
CHOICE = ["--prefix-block", "1", "--prefix-count", "2", "--delete-count", "3"]
ALL = "fp32,simulated,onnxruntime"
DEPTH = 3

# "siglip" in the name would make open_clip ask for SigLIP's tokenizer, which is a download
TINY_SIGLIP = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 64,
        "timm_model_name": "regcache_tiny_siglip",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


SIZE = {"img_size": 64, "patch_size": 16, "embed_dim": 64, "depth": DEPTH, "num_heads": 2}
VIT, EVA = timm.models.vision_transformer, timm.models.eva
ARCHITECTURES = {
    # SigLIP's image tower: no class token, attention pooling
    "siglip": (VIT._create_vision_transformer, {"class_token": False, "act_layer": "gelu_tanh"}),
    # DINOv2's: class token, trained registers without position, layer scale
    "registers": (
        VIT._create_vision_transformer,
        {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.1},
    ),
    # DINOv3's: rotary positions instead of learnt ones
    "rotary": (
        EVA._create_eva,
        {
            "num_reg_tokens": 4,
            "qkv_bias": False,
            "init_values": 0.1,
            "global_pool": "token",
            "use_rot_pos_emb": True,
            "use_abs_pos_emb": False,
            "rope_type": "dinov3",
            "rope_rotate_half": True,
        },
    ),
}


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory):
    """Make the tiny ones known to timm and open_clip."""
    from timm.models._registry import _model_entrypoints as known

    def entry(name, create, switches):
        def build(pretrained=False, **keywords):
            return create(name, pretrained=False, **{**SIZE, **switches, **keywords})

        return build

    ours = {f"regcache_tiny_{k}": entry(f"regcache_tiny_{k}", *v) for k, v in ARCHITECTURES.items()}
    known.update(ours)
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny-sig.json").write_text(json.dumps(TINY_SIGLIP))
    open_clip.add_model_config(folder)
    yield
    for name in ours:
        del known[name]
    open_clip.factory._MODEL_CONFIGS.pop("tiny-sig", None)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for index in range(8):
            noise = draw.integers(-45, 45, (70, 90, 3))
            pixels = np.clip(np.asarray(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def saved(model, path):
    fill_randomly(model.to("meta"))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return path


def export(capsys, photos, folder, *arguments):
    words = ["--data", photos, "--output", folder, *SETTINGS, *CHOICE, *arguments]
    assert export_main([*map(str, words), "--json", "-q"]) == 0
    return json.loads(capsys.readouterr().out)


def evaluate(capsys, bundle, *arguments):
    code = main(["eval", str(bundle), "--on", ALL, *map(str, arguments), "--json", "-q"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)["results"]


@pytest.mark.parametrize("architecture", ["registers", "rotary"])
def test_a_timm_encoder_through_to_int8(architecture, photos, tmp_path, capsys):
    name = f"regcache_tiny_{architecture}"
    weights = saved(timm.create_model(name, num_classes=0), tmp_path / "w.safetensors")
    result = export(
        capsys,
        photos,
        tmp_path / "run",
        *("--baseline", "repqvit", "--model", f"timm/{name}", "--pretrained", weights),
    )
    assert (result["prefix_count"], result["delete_count"]) == (2, 3)
    assert result["agreement"]["mean_cosine"] >= 0.999
    bundle = Bundle.open(result["bundle"])
    assert integer_gemms(bundle.model_path) == 4 * DEPTH
    assert bundle.preprocess["crop_mode"] == "center"
    assert not bundle.has_text_features
    spec = Plan.load(tmp_path / "run").encoder
    assert spec.num_prefix_tokens == 5
    assert spec.rotary == (architecture == "rotary")
    assert main(["verify", result["bundle"], "-q"]) == 0
    capsys.readouterr()
    for task in ("knn", "linear_probe"):
        train = ["--task", task, "--train-data", shutil.copytree(photos, tmp_path / task)]
        found = evaluate(capsys, result["bundle"], "--data", photos, *train)
        judged = [r for r in found if r["task"] == task]
        assert [r["on"] for r in judged] == ALL.split(",")
        assert all(r["metrics"]["acc1"] == 1.0 for r in judged), "three colours"
        assert all("changed sides" in r["resolution"] for r in judged[1:])
        assert {r["on"] for r in found if r["task"] == "fidelity"} == {"simulated", "onnxruntime"}


def test_a_siglip_through_to_int8(photos, tmp_path, capsys):
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-sig", pretrained=None)
    fill_randomly(model.visual.to("meta"))
    weights = tmp_path / "w.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, weights)
    result = export(
        capsys,
        photos,
        tmp_path / "run",
        *("--baseline", "naive", "--model", "tiny-sig", "--pretrained", weights),
        *("--templates", "simple"),
    )
    assert result["agreement"]["mean_cosine"] >= 0.999
    bundle = Bundle.open(result["bundle"])
    spec = Plan.load(tmp_path / "run").encoder
    assert (spec.pool, spec.num_prefix_tokens) == ("map", 0)
    assert integer_gemms(bundle.model_path) == 4 * DEPTH
    assert bundle.labels == ("Blue Sky", "green leaf", "red apple")
    other = tmp_path / "other"
    shutil.copytree(photos / "Blue Sky", other / "night sky")
    shutil.copytree(photos / "red apple", other / "tomato")
    found = evaluate(
        capsys, result["bundle"], "--data", photos, "--transfer", other, "--templates", "simple"
    )
    zero_shot = [r for r in found if r["task"] == "zeroshot_classification"]
    assert [(r["dataset"], r["n"]) for r in zero_shot] == [(str(photos), 24)] * 3 + [
        (str(other), 16)
    ] * 3
    train = ["--task", "knn", "--train-data", shutil.copytree(photos, tmp_path / "train")]
    probe = evaluate(capsys, result["bundle"], "--data", photos, *train)
    assert all(r["metrics"]["acc1"] == 1.0 for r in probe if r["task"] == "knn")
