"""The canonical text tower and its graph against the original modules."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from regcache_deploy.compat import import_torchvision
from regcache_deploy.encoders.load import load_model
from regcache_deploy.encoders.text_encoder import TextEncoder, from_open_clip_text
from regcache_deploy.errors import ConfigError, ModelError, UnsupportedEncoderError
from regcache_engines.onnxruntime_session import open_session
from regcache_export.text import build_text_model
from tests.text_bundles import END, small_clip

pytest.importorskip("onnxruntime")
import_torchvision()  # transformers imports it without the workaround

CASES: dict[str, dict[str, Any]] = {
    "CLIP": {},
    "QuickGELU": {"quick_gelu": True},
    "CustomTextCLIP": {"custom": True},
    "end token": {"custom": True, "pool_type": "eos", "eos_id": 7},
    "SigLIP": {
        "custom": True,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    },
    "first token": {"custom": True, "no_causal_mask": True, "pool_type": "first"},
    "layer scale": {"ls_init_value": 0.1},
    "no projection": {"custom": True, "proj_type": "none", "width": 64},
}


def some_ids(length: int = 20) -> torch.Tensor:
    ids = torch.randint(8, END - 1, (3, length), generator=torch.Generator().manual_seed(0))
    for row, end in zip(ids, (length - 1, 5, 9), strict=True):
        row[end] = END
        row[end - 1] = 7
        row[end + 1 :] = 0
    return ids


def graph_of(encoder: TextEncoder, ids: torch.Tensor) -> np.ndarray:
    weights = {name: value.numpy() for name, value in encoder.weights.items()}
    session = open_session(build_text_model(encoder.spec, weights).SerializeToString(), threads=1)
    return session.run(None, {"input_ids": ids.numpy()})[0]


@pytest.mark.parametrize("case", CASES)
def test_equals_open_clip(case: str) -> None:
    model = small_clip(**CASES[case])
    ids = some_ids()
    with torch.no_grad():
        expected = model.encode_text(ids)
    encoder = from_open_clip_text(model)
    assert expected.abs().max() > 0.1
    assert torch.allclose(encoder(ids), expected, atol=1e-5)
    found = graph_of(encoder, ids)
    assert np.abs(found - expected.numpy()).max() < 1e-4
    shapes = {name: tuple(value.shape) for name, value in encoder.weights.items()}
    assert shapes == encoder.spec.weight_shapes()


@pytest.mark.parametrize("case", ["CLIP", "end token"])
def test_what_stands_behind_the_end_changes_nothing(case: str) -> None:
    encoder = from_open_clip_text(small_clip(**CASES[case]))
    ids = some_ids()
    assert encoder.spec.any_length
    whole, cut = graph_of(encoder, ids)[1:2], graph_of(encoder, ids[1:2, :6])
    assert np.abs(whole - cut).max() < 1e-5


def test_a_tower_that_sees_its_padding_has_a_fixed_length() -> None:
    encoder = from_open_clip_text(small_clip(**CASES["SigLIP"]))
    assert not encoder.spec.any_length
    with pytest.raises(Exception, match=r"(?i)invalid dimensions|got: 6"):
        graph_of(encoder, some_ids()[:, :6])


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ({"embed_cls": True, "custom": True}, "class token"),
        ({"no_causal_mask": True, "pool_type": "first", "custom": True}, "padding"),
        ({"qk_norm": True}, "CustomResidualAttentionBlock"),
    ],
)
def test_refused_by_feature(text: dict[str, Any], feature: str) -> None:
    model = small_clip(**text)
    if feature == "padding":
        model.text.use_pad_mask = True
    with pytest.raises(UnsupportedEncoderError, match=feature):
        from_open_clip_text(model)


def test_a_tower_of_another_library_is_refused() -> None:
    model = small_clip(custom=True)
    model.text = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedEncoderError, match="another library"):
        from_open_clip_text(model)


# transformers


def tokenizer_file(folder: Any) -> None:
    """A tokenizer of whole words with an end token, as transformers saves one."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<pad>": 1, "<unk>": 0, "<end>": 2} | {w: i + 3 for i, w in enumerate("abcdefgh")}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", 2)]
    )
    made.save(str(folder / "tokenizer.json"))
    settings = {"pad_token": {"content": "<pad>"}, "padding_side": "right"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


KINDS: dict[str, dict[str, Any]] = {
    "CLIPModel": {},
    "CLIPModel, its end token": {"eos_token_id": 5},
    "MetaClip2Model": {},
    "SiglipModel": {},
}


def saved(kind: str, folder: Any, **text: Any) -> Any:
    transformers: Any = pytest.importorskip("transformers")
    tower = {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vision = tower | {"image_size": 32, "patch_size": 16}
    words = tower | {"vocab_size": 99, "max_position_embeddings": 12, "eos_token_id": 2}
    name = kind.split(",")[0].removesuffix("Model")
    configuration = getattr(transformers, f"{name}Config")(
        vision_config=vision,
        text_config=words | text,
        **({} if name == "Siglip" else {"projection_dim": 48}),
    )
    model = getattr(transformers, f"{name}Model")(configuration).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.1)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers(kind: str, tmp_path: Any) -> None:
    model = saved(kind, tmp_path, **KINDS[kind])
    tokenizer_file(tmp_path)
    loaded = load_model(str(tmp_path), templates="simple")
    assert loaded.text is not None
    encoder = loaded.text.encoder
    ids = torch.randint(6, 99, (3, 12), generator=torch.Generator().manual_seed(0))
    for row, end in zip(ids, (4, 8, 11), strict=True):
        row[end] = encoder.spec.eos_id or 98
        row[end + 1 :] = 1
    with torch.no_grad():
        out = model.get_text_features(input_ids=ids)
    expected = getattr(out, "pooler_output", out)
    assert torch.allclose(encoder(ids), expected, atol=1e-5)
    assert np.abs(graph_of(encoder, ids) - expected.numpy()).max() < 1e-4
    assert loaded.text.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))
    assert (loaded.text.logit_bias is not None) == (kind == "SiglipModel")
    texts = ["a b", "h g f e d c b a h g f e d c b a"]
    assert loaded.text.tokens(texts)[:, -1].tolist() == [1, 2], "filled up, and cut before its end"
    assert loaded.text_head is not None
    assert loaded.text_head(["a b", "c"]).shape == (2, encoder.spec.output_dim)


def test_a_model_without_a_tokenizer_has_no_text_side(tmp_path: Any, caplog: Any) -> None:
    saved("CLIPModel", tmp_path)
    loaded = load_model(str(tmp_path))
    assert loaded.text is None
    assert loaded.text_head is None
    assert "has no tokenizer.json" in caplog.text
    with pytest.raises(ConfigError, match="no text tower"):
        load_model(str(tmp_path), templates="simple")


def test_weights_that_are_not_what_the_configuration_says(tmp_path: Any) -> None:
    saved("CLIPModel", tmp_path)
    tokenizer_file(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["vocab_size"] = 98
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"token_embed\.weight.*says \[98, 64\]"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["CLIP", "MetaClip2", "Siglip"])
def test_defaults_are_those_of_transformers(name: str) -> None:
    from regcache_deploy.encoders.transformers_text import TEXT_DEFAULTS

    transformers: Any = pytest.importorskip("transformers")
    kind = getattr(transformers, f"{name}Config").model_type
    theirs = getattr(transformers, f"{name}TextConfig")()
    for field, value in TEXT_DEFAULTS[kind].items():
        assert getattr(theirs, field) == value, field
