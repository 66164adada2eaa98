"""The canonical forward pass equals open_clip's own module, for every supported switch."""

from __future__ import annotations

import pytest
import torch

from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.load import load_model
from regcache_deploy.encoders.open_clip_vit import from_open_clip
from regcache_deploy.encoders.regcache import RegCache, RegCacheConfig, delete_sinks
from regcache_deploy.errors import ConfigError, ModelError, UnsupportedEncoderError
from regcache_export.regcache_config import RegCacheConfig as Numbers

open_clip = import_open_clip()
from open_clip.transformer import QuickGELU, VisionTransformer  # noqa: E402

TINY = {
    "image_size": 64,
    "patch_size": 16,
    "width": 128,
    "layers": 3,
    "heads": 2,
    "mlp_ratio": 4.0,
    "output_dim": 32,
}


def tiny_tower(**switches: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(**{**TINY, **switches}).eval()


def largest_difference(tower) -> float:
    torch.manual_seed(1)
    images = torch.randn(2, 3, *tower.image_size)
    with torch.no_grad():
        return float((tower(images) - from_open_clip(tower)(images)).abs().max())


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"no_ln_pre": True},
        {"ls_init_value": 0.1},
        {"pool_type": "avg"},
        {"final_ln_after_pool": True},
        {"pool_type": "avg", "final_ln_after_pool": True},
        {"act_layer": QuickGELU},
        {"pos_embed_type": "sin_cos_2d"},
        {"patch_dropout": 0.5},
        {"mlp_ratio": 3.5},
        {"attentional_pool": True},
        {"attentional_pool": True, "output_dim": 128},
        {"image_size": (64, 96)},
    ],
    ids=str,
)
def test_canonical_forward_equals_the_original(switches: dict[str, object]) -> None:
    assert largest_difference(tiny_tower(**switches)) < 1e-5


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-quickgelu", "ViT-L-14"])
def test_named_architectures(name: str) -> None:
    cfg = open_clip.get_model_config(name)
    torch.manual_seed(0)
    from open_clip.model import _build_vision_tower

    tower = _build_vision_tower(
        cfg["embed_dim"], cfg["vision_cfg"] | {"layers": 3}, cfg.get("quick_gelu", False)
    ).eval()
    assert largest_difference(tower) < 1e-5


@pytest.mark.parametrize(
    ("switches", "feature"),
    [
        ({"attentional_pool": True, "pool_type": "avg"}, "more than one query"),
        ({"attentional_pool": "parallel"}, "type 'parallel'"),
        ({"pool_type": "none"}, "pool_type"),
        ({"block_type": "custom", "qk_norm": True}, "CustomResidualAttentionBlock"),
        ({"act_layer": torch.nn.SiLU}, "SiLU"),
    ],
)
def test_unsupported_features_are_named(switches: dict[str, object], feature: str) -> None:
    with pytest.raises(UnsupportedEncoderError, match=feature):
        from_open_clip(tiny_tower(**switches))


def test_missing_and_misshapen_weights_are_named() -> None:
    encoder = from_open_clip(tiny_tower())
    weights = dict(encoder.weights)
    name = "blocks.1.mlp.fc2.weight"
    with pytest.raises(ModelError, match=name):
        Encoder(encoder.spec, {k: v for k, v in weights.items() if k != name})
    with pytest.raises(ModelError, match=r"has shape \(3, 3\)"):
        Encoder(encoder.spec, weights | {name: torch.zeros(3, 3)})
    weights[name] = torch.full_like(weights[name], float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        Encoder(encoder.spec, weights).check_finite()


def register_of(encoder: Encoder, start: int) -> dict[int, torch.Tensor]:
    torch.manual_seed(2)
    return {i: torch.randn(encoder.spec.width) for i in range(start, encoder.spec.depth)}


def test_copies_of_the_prefix_equal_one_with_a_log_count_on_its_logit() -> None:
    """tau equal keys add log(tau) to the softmax: checked against attention written out."""
    encoder = from_open_clip(tiny_tower()).replace({})
    encoder = Encoder(encoder.spec, {k: v.double() for k, v in encoder.weights.items()})
    register = {i: v.double() for i, v in register_of(encoder, 2).items()}
    x = torch.randn(2, 17, 128, dtype=torch.double)
    got = encoder.block(2, x, regcache=RegCache(RegCacheConfig(2, 5, 2, 0), register))

    w, spec = encoder.weights, encoder.spec
    normed = encoder.norm("blocks.2.norm1", x)
    qkv = normed @ w["blocks.2.attn.qkv.weight"].T + w["blocks.2.attn.qkv.bias"]
    q, k, v = qkv.view(2, 17, 3, spec.heads, spec.head_dim).permute(2, 0, 3, 1, 4)
    prefix_k, prefix_v = encoder.prefix_kv(2, register[2])
    k = torch.cat([prefix_k.expand(2, -1, -1, -1), k], dim=2)
    v = torch.cat([prefix_v.expand(2, -1, -1, -1), v], dim=2)
    logits = q @ k.transpose(-1, -2) / spec.head_dim**0.5
    logits[..., 0] += torch.log(torch.tensor(5.0, dtype=torch.double))
    mixed = (logits.softmax(-1) @ v).transpose(1, 2).reshape(2, 17, 128)
    x = x + mixed @ w["blocks.2.attn.out_proj.weight"].T + w["blocks.2.attn.out_proj.bias"]
    hidden = encoder.norm("blocks.2.norm2", x) @ w["blocks.2.mlp.fc1.weight"].T
    hidden = torch.nn.functional.gelu(hidden + w["blocks.2.mlp.fc1.bias"])
    want = x + hidden @ w["blocks.2.mlp.fc2.weight"].T + w["blocks.2.mlp.fc2.bias"]
    assert (got - want).abs().max() < 1e-12


def test_deletion_takes_the_largest_patches_of_each_image_and_never_a_leading_token() -> None:
    tokens = torch.zeros(2, 6, 4)
    tokens[0, :, 1] = torch.tensor([9.0, 1, -7, 2, 3, 4])
    tokens[1, :, 2] = torch.tensor([9.0, 5, 1, 2, -8, 3])
    kept = delete_sinks(tokens, count=2, num_prefix_tokens=1)
    assert kept[0, :, 1].tolist() == [9, 1, 2, 3]
    assert kept[1, :, 2].tolist() == [9, 1, 2, 3]


def test_deletion_equals_masking_the_same_tokens() -> None:
    """Blocks are permutation-equivariant: dropping tokens equals hiding them from attention."""
    encoder = from_open_clip(tiny_tower())
    tokens = encoder.embed(torch.randn(3, 3, 64, 64))
    features = encoder.pool(
        encoder.run_blocks(tokens, regcache=RegCache(RegCacheConfig(0, 0, 0, 4)))
    )
    order = tokens[:, 1:].abs().amax(-1).argsort(dim=1)[:, :12] + 1
    for row in range(3):
        keep = torch.cat([torch.zeros(1, dtype=torch.long), order[row].flip(0)])
        alone = encoder.pool(encoder.run_blocks(tokens[row : row + 1, keep]))
        assert torch.allclose(features[row : row + 1], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (Numbers(9, 1, 0, 0), "prefix block 9 is out of range"),
        (Numbers(0, -1, 0, 0), "prefix count -1 is out of range"),
        (Numbers(0, 1, 0, 16), "at least one must stay"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers: Numbers, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        numbers.check(from_open_clip(tiny_tower()).spec)


@pytest.mark.parametrize(
    ("name", "pretrained", "kind", "message"),
    [
        ("ViT-B-61", "openai", ModelError, "did you mean: .*ViT-B-16"),
        ("ViT-B-16", None, ConfigError, "needs --pretrained"),
        ("ViT-B-16", "opneai", ModelError, "did you mean: openai"),
        ("ViT-B-16", "/nowhere/w.safetensors", ModelError, "no checkpoint file"),
        ("ViT-B-16", "random:x", ConfigError, "whole number"),
        ("RN50", "random", UnsupportedEncoderError, "ModifiedResNet"),
        ("demo", "openai", ConfigError, "brings its own weights"),
    ],
)
def test_bad_names_get_typed_errors(
    name: str, pretrained: str | None, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        load_model(name, pretrained)


def test_random_weights_are_seeded_and_labelled() -> None:
    first, again, other = (load_model("ViT-S-32", f"random:{seed}") for seed in (3, 3, 4))
    assert first.weights_sha256() == again.weights_sha256() != other.weights_sha256()
    assert "random weights (seed 3)" in (first.caution or "")


def test_checkpoint_faults_are_named(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    model = open_clip.create_model("ViT-S-32", pretrained=None)
    path = tmp_path / "weights.safetensors"
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, path)
    loaded = load_model("ViT-S-32", str(path))
    assert torch.equal(loaded.encoder.weights["norm.weight"], state["visual.ln_post.weight"])

    key = "visual.transformer.resblocks.3.mlp.c_fc.weight"
    for change, message in (
        ({key: None}, key),
        ({key: torch.zeros(2, 2)}, "size mismatch"),
        ({key: torch.full_like(state[key], float("nan"))}, "NaN"),
    ):
        broken = {k: v for k, v in (load_file(path) | change).items() if v is not None}
        save_file(broken, tmp_path / "broken.safetensors")
        with pytest.raises(ModelError, match=message):
            load_model("ViT-S-32", str(tmp_path / "broken.safetensors"))
    whole = path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot be read"):
        load_model("ViT-S-32", str(tmp_path / "cut.safetensors"))
