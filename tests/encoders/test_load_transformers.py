"""Models in transformers' layout: our maps of names against transformers itself."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from regcache_deploy.compat import import_torchvision
from regcache_deploy.encoders import transformers_clip, transformers_dino
from regcache_deploy.encoders.load import load_model
from regcache_deploy.errors import ConfigError, ModelError, UnsupportedEncoderError

import_torchvision()  # transformers imports it without the workaround
transformers: Any = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
}
TOWER = SMALL | {"intermediate_size": 160}
TEXT = {k: v for k, v in TOWER.items() if k not in ("image_size", "patch_size")} | {
    "vocab_size": 99,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def filled(model: Any) -> Any:
    """Every parameter random, also those that start at zero or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.1)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model.eval()


def model_of(kind: str, **changes: Any) -> Any:
    """A small model of transformers."""
    t = transformers
    tower = TOWER | changes
    pairs = {"vision_config": tower, "text_config": TEXT}
    dino = {k: v for k, v in tower.items() if k != "intermediate_size"}
    return filled(
        {
            "CLIPModel": lambda: t.CLIPModel(t.CLIPConfig(**pairs, projection_dim=48)),
            "CLIPVisionModel": lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**tower)),
            "CLIPVisionModelWithProjection": lambda: t.CLIPVisionModelWithProjection(
                t.CLIPVisionConfig(**tower, projection_dim=40)
            ),
            "MetaClip2Model": lambda: t.MetaClip2Model(
                t.MetaClip2Config(**pairs, projection_dim=48)
            ),
            "MetaClip2VisionModelWithProjection": lambda: t.MetaClip2VisionModelWithProjection(
                t.MetaClip2VisionConfig(**tower, projection_dim=40)
            ),
            "SiglipModel": lambda: t.SiglipModel(t.SiglipConfig(**pairs)),
            "SiglipVisionModel": lambda: t.SiglipVisionModel(t.SiglipVisionConfig(**tower)),
            "Dinov2Model": lambda: t.Dinov2Model(t.Dinov2Config(**dino)),
            "Dinov2WithRegistersModel": lambda: t.Dinov2WithRegistersModel(
                t.Dinov2WithRegistersConfig(**dino)
            ),
            "DINOv3ViTModel": lambda: t.DINOv3ViTModel(
                t.DINOv3ViTConfig(**{"num_register_tokens": 4} | tower)
            ),
        }[kind]()
    )


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


@pytest.fixture
def saved(tmp_path):
    """Save a model, and its processor if one is given."""

    def save(model: Any, file: tuple[str, Any] | None = None, **more: Any) -> Path:
        model.save_pretrained(tmp_path, **more)
        if file is not None:
            (tmp_path / file[0]).write_text(json.dumps(file[1]))
        return tmp_path

    return save


@torch.no_grad()
def largest_difference(model: Any, encoder: Any) -> float:
    torch.manual_seed(1)
    images = torch.randn(2, 3, *encoder.spec.image_size)
    if hasattr(model, "get_image_features"):
        out = model.get_image_features(pixel_values=images)
        expected = getattr(out, "pooler_output", out)
    else:
        out = model(pixel_values=images)
        expected = out.image_embeds if hasattr(out, "image_embeds") else out.pooler_output
    return float((expected - encoder(images)).abs().max())


KINDS = [
    ("CLIPModel", {}),
    ("CLIPModel", {"hidden_act": "gelu"}),
    ("CLIPVisionModel", {"layer_norm_eps": 1e-3}),
    ("CLIPVisionModelWithProjection", {}),
    ("MetaClip2Model", {}),
    ("MetaClip2VisionModelWithProjection", {}),
    ("SiglipModel", {}),
    ("SiglipVisionModel", {"hidden_act": "gelu"}),
    ("Dinov2Model", {"mlp_ratio": 3}),
    ("Dinov2Model", {"qkv_bias": False}),
    ("Dinov2WithRegistersModel", {"num_register_tokens": 3}),
    ("Dinov2Model", {"use_swiglu_ffn": True}),
    ("Dinov2WithRegistersModel", {"use_swiglu_ffn": True}),
    ("DINOv3ViTModel", {}),
    ("DINOv3ViTModel", {"use_gated_mlp": True, "hidden_act": "silu"}),
    ("DINOv3ViTModel", {"key_bias": True, "proj_bias": False, "mlp_bias": False}),
    ("DINOv3ViTModel", {"num_register_tokens": 0, "rope_theta": 30.0}),
]


@pytest.mark.parametrize(("kind", "changes"), KINDS, ids=str)
def test_outputs_are_transformers_own(saved, kind, changes):
    model = model_of(kind, **changes)
    encoder = load_model(str(saved(model))).encoder
    assert largest_difference(model, encoder) < 1e-5


@pytest.mark.parametrize("kind", ["Dinov2Model", "Dinov2WithRegistersModel", "DINOv3ViTModel"])
def test_models_of_any_size_take_that_of_their_processor(saved, kind):
    model = model_of(kind)
    loaded = load_model(str(saved(model, processor())))
    assert loaded.encoder.spec.image_size == (48, 48)
    assert largest_difference(model, loaded.encoder) < 1e-5


def test_another_size_that_is_no_square(saved):
    model = model_of("Dinov2Model")
    encoder = load_model(str(saved(model)), image_size=(32, 96)).encoder
    assert largest_difference(model, encoder) < 1e-5


def test_preprocessing_is_that_of_the_file(saved):
    loaded = load_model(str(saved(model_of("Dinov2Model"), processor())))
    assert loaded.preprocess == {
        "size": [48, 48],
        "mode": "RGB",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "interpolation": "bilinear",
        "resize_mode": "shortest",
        "fill_color": 0,
        "crop_pct": 48 / 56,
        "crop_mode": "center",
    }


def test_the_size_of_the_position_embedding_wins_and_that_is_said(saved, caplog):
    with caplog.at_level(logging.WARNING):
        loaded = load_model(str(saved(model_of("CLIPVisionModel"), processor())))
    assert loaded.preprocess["size"] == [64, 64]
    assert "makes images of 48x48" in caplog.text


def test_a_processor_inside_that_of_the_whole_model(saved):
    _, values = processor(size={"height": 64, "width": 64}, do_center_crop=False)
    file = ("processor_config.json", {"image_processor": values, "processor_class": "X"})
    loaded = load_model(str(saved(model_of("SiglipModel"), file)))
    assert (loaded.preprocess["resize_mode"], loaded.preprocess["mean"][0]) == ("squash", 0.1)


def test_defaults_are_said(saved, caplog):
    folder = saved(model_of("SiglipModel"))
    config = json.loads((folder / "config.json").read_text())
    for name in ("hidden_act", "layer_norm_eps"):
        del config["vision_config"][name]
    (folder / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        load_model(str(folder))
    assert "hidden_act gelu_pytorch_tanh, layer_norm_eps 1e-06" in caplog.text
    assert "has no preprocessor_config.json" in caplog.text
    assert "no zero-shot head" in caplog.text


def test_configurations_of_old_files_are_read_as_transformers_reads_them(saved):
    """They have the image tower's fields twice, and need not agree."""
    folder = saved(model_of("CLIPModel", hidden_act="gelu"))
    config = json.loads((folder / "config.json").read_text())
    inner = {k: v for k, v in config["vision_config"].items() if k in TOWER}
    for twice, activation in ((inner, "quick_gelu"), (inner | {"hidden_act": "gelu"}, "gelu")):
        config["vision_config_dict"] = twice
        (folder / "config.json").write_text(json.dumps(config))
        original = transformers.CLIPModel.from_pretrained(folder).eval()
        assert original.config.vision_config.hidden_act == activation
        encoder = load_model(str(folder)).encoder
        assert encoder.spec.activation == activation
        assert largest_difference(original, encoder) < 1e-5


def test_logit_scale_comes_from_the_file(saved):
    model = model_of("CLIPModel")
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
    assert load_model(str(saved(model))).logit_scale == pytest.approx(7.389, abs=1e-3)


def test_shards(saved):
    model = model_of("CLIPModel")
    folder = saved(model, max_shard_size="200KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert largest_difference(model, load_model(str(folder)).encoder) < 1e-5
    shards[1].unlink()
    with pytest.raises(ModelError, match=rf"has no {shards[1].name}"):
        load_model(str(folder))


@pytest.mark.parametrize("prefix", ["vision_model.", "model.vision_model.", ""])
def test_a_torch_file_with_names_of_older_releases(saved, prefix):
    model = model_of("CLIPVisionModel")
    folder = saved(model)
    (folder / "model.safetensors").unlink()
    state = {prefix + name: value for name, value in model.state_dict().items()}
    state |= {f"{prefix}embeddings.position_ids": torch.arange(17)[None]}
    torch.save(state, folder / "pytorch_model.bin")
    assert largest_difference(model, load_model(str(folder)).encoder) < 1e-5


def test_memory_names_are_read_too(saved):
    model = model_of("Dinov2Model")
    folder = saved(model)
    torch.save(model.state_dict(), folder / "tuned.pt")
    loaded = load_model(str(folder), str(folder / "tuned.pt"))
    assert any("q_proj" in name for name in model.state_dict())
    assert largest_difference(model, loaded.encoder) < 1e-5


def test_a_parameter_without_a_place_is_an_error(saved):
    from safetensors.torch import load_file, save_file

    folder = saved(model_of("Dinov2Model"))
    state = load_file(folder / "model.safetensors")
    save_file(state | {"encoder.layer.0.gate": torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"no place for: encoder\.layer\.0\.gate"):
        load_model(str(folder))
    del state["encoder.layer.1.mlp.fc1.bias"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"no parameter encoder\.layer\.1\.mlp\.fc1\.bias"):
        load_model(str(folder))


def test_a_classifier_is_left_out_by_name(tmp_path, caplog):
    t = transformers
    dino = SMALL | {"num_labels": 5}
    model = filled(t.Dinov2ForImageClassification(t.Dinov2Config(**dino)))
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        encoder = load_model(str(tmp_path)).encoder
    assert "left out is the classifier (classifier.bias, classifier.weight)" in caplog.text
    assert largest_difference(model.dinov2, encoder) < 1e-5


def test_sentence_transformers_folder(saved, tmp_path):
    model = model_of("CLIPModel")
    inner = tmp_path / "0_CLIPModel"
    model.save_pretrained(inner)
    kind = "sentence_transformers.models."
    modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": f"{kind}CLIPModel"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert largest_difference(model, load_model(str(tmp_path)).encoder) < 1e-5
    modules += [{"idx": 1, "name": "1", "path": "1_Dense", "type": f"{kind}Dense"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedEncoderError, match="lists CLIPModel, Dense"):
        load_model(str(tmp_path))


def test_from_the_hub_cache_without_a_network(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    model = model_of("CLIPVisionModelWithProjection")
    model.save_pretrained(folder / "snapshots" / "abc")
    for name in ("org/name", "hf-hub:org/name"):
        loaded = load_model(name)
        assert loaded.name == name
        assert largest_difference(model, loaded.encoder) < 1e-5
    (folder / "snapshots" / "abc" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors of org/name is not in the cache"):
        load_model("org/name")


def test_random_weights_need_no_file(saved):
    folder = saved(model_of("DINOv3ViTModel"))
    (folder / "model.safetensors").unlink()
    first, again, other = (load_model(str(folder), f"random:{seed}") for seed in (3, 3, 4))
    assert first.weights_sha256() == again.weights_sha256() != other.weights_sha256()
    assert first.caution is not None
    assert "random weights" in first.caution
    with pytest.raises(ConfigError, match="brings its own weights"):
        load_model(str(folder), "openai")
    with pytest.raises(ConfigError, match="no text tower"):
        load_model(str(folder), "random", templates="simple")


@pytest.mark.parametrize(
    ("config", "ours"),
    [
        ("CLIPVisionConfig", transformers_clip.CLIP_DEFAULTS),
        ("MetaClip2VisionConfig", transformers_clip.CLIP_DEFAULTS),
        ("SiglipVisionConfig", transformers_clip.SIGLIP_DEFAULTS),
        ("Dinov2Config", transformers_dino.DINOV2_DEFAULTS),
        ("Dinov2WithRegistersConfig", transformers_dino.DINOV2_REGISTERS_DEFAULTS),
        ("DINOv3ViTConfig", transformers_dino.DINOV3_DEFAULTS),
    ],
)
def test_defaults_are_those_of_transformers(config, ours):
    theirs = getattr(transformers, config)()
    for name, value in ours.items():
        assert getattr(theirs, name, True) == value, name  # vision_use_head may not be named
