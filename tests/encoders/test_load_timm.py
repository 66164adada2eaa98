"""Loading encoders of timm, local checkpoints, image sizes, and what happens without a network."""

from __future__ import annotations

import logging

import pytest
import torch

from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders import hub
from regcache_deploy.encoders.catalogue import describe
from regcache_deploy.encoders.checkpoint import read_state_dict
from regcache_deploy.encoders.load import load_model
from regcache_deploy.errors import ConfigError, ModelError, UnsupportedEncoderError
from regcache_engines.preprocess import Preprocess

import_open_clip()
import timm  # noqa: E402

TINY = "timm/vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A whole classifier, as timm distributes it: with its head."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224").eval()
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save({"state_dict": model.state_dict()}, path)
    return path, model


@torch.no_grad()
def test_a_local_checkpoint_gives_the_original_features(checkpoint):
    path, model = checkpoint
    loaded = load_model(TINY, str(path))
    images = torch.randn(2, 3, 224, 224)
    want = model.forward_head(model.forward_features(images), pre_logits=True)
    assert (loaded.encoder(images) - want).abs().max() < 1e-4
    assert loaded.text_head is None
    assert loaded.caution is None
    assert loaded.preprocess["crop_pct"] == pytest.approx(0.9)
    assert Preprocess(loaded.preprocess).size == (224, 224)


def test_a_bare_file_is_told_how_its_images_are_normalized(checkpoint, caplog):
    path, model = checkpoint
    tag = timm.list_pretrained("vit_tiny_patch16_224.*")[0].partition(".")[2]
    with caplog.at_level(logging.WARNING):
        load_model(TINY, f"{tag}={path}")
        assert "normalized" not in caplog.text
        load_model(TINY, str(path))
    assert "does not say how its images were normalized" in caplog.text
    assert f"they are as for {model.pretrained_cfg['tag']};" in caplog.text
    assert f"TAG=PATH (tags: {tag}" in caplog.text


def test_faults_of_checkpoints(checkpoint, tmp_path):
    path, _ = checkpoint
    with pytest.raises(
        ModelError, match=r"does not fit or cannot be read: .*(size mismatch|Missing|Unexpected)"
    ):
        load_model("timm/vit_small_patch16_224", str(path))
    cut = tmp_path / "cut.pt"
    cut.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(TINY, str(cut))
    with pytest.raises(ModelError, match="no checkpoint file"):
        load_model(TINY, str(tmp_path / "none.pt"))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="no weights by name"):
        read_state_dict(tmp_path / "list.pt")


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("the checkpoint ran code",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="cannot be read"):
        read_state_dict(tmp_path / "evil.pt")


@pytest.mark.parametrize(
    ("name", "pretrained", "kind", "message"),
    [
        ("timm/vit_tny_patch16_224", "random", ModelError, "did you mean: vit_tiny"),
        (TINY, "augreg_in22k_ft_in1k", ModelError, "did you mean|has no pretrained|no network"),
        (TINY + ".augreg_in21k", "other", ConfigError, "one tag and --pretrained other another"),
        ("timm/resnet18", "random", UnsupportedEncoderError, "ResNet"),
        ("timm/vit_small_patch16_rope_mixed_224", "random", UnsupportedEncoderError, "RoPE"),
        ("hf-hub:laion/x", "openai", ConfigError, "brings its own weights"),
        ("hf-hub:laion", None, ModelError, "write hf-hub:ORG/NAME"),
    ],
)
def test_bad_names_get_typed_errors(name, pretrained, kind, message, monkeypatch):
    monkeypatch.setattr(hub, "_resolves", lambda host: False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(kind, match=message):
        load_model(name, pretrained)


def test_without_a_network_the_message_says_which_file_goes_where(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "_resolves", lambda host: False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        hub.require_hub_files("the weights", "org/name", hub.WEIGHT_FILES, "--pretrained PATH")
    text = str(caught.value)
    for part in ("open_clip_model.safetensors", "org/name", str(tmp_path), "--pretrained PATH"):
        assert part in text


def test_a_half_downloaded_file_is_called_damaged():
    from safetensors import SafetensorError

    error = SafetensorError("Error while deserializing header: incomplete metadata")
    found = hub.explain_failure("the weights", error, "--pretrained PATH")
    assert "damaged, perhaps half downloaded" in str(found)
    other = hub.explain_failure("the weights", OSError("timed out"), "--pretrained PATH")
    assert "could not be had (timed out)" in str(other)


@torch.no_grad()
def test_another_image_size_that_is_not_square():
    loaded = load_model(TINY, "random:1", image_size=(96, 160))
    assert loaded.encoder.spec.grid == (6, 10)
    assert loaded.preprocess["size"] == [96, 160]
    assert Preprocess(loaded.preprocess).size == (96, 160)
    assert "random weights (seed 1)" in (loaded.caution or "")


def test_the_catalogue_counts_what_the_paper_counts():
    entry = describe("ViT-B-16")
    assert (entry.tokens, entry.special_tokens, entry.head_dim) == (197, 1, 64)
    assert entry.gflops == pytest.approx(2 * 17.56, rel=0.01)
    assert entry.fuses_int8_attention
    large = describe("ViT-L-14-336")
    assert not large.fuses_int8_attention
    assert "577 tokens" in (large.why_not or "")
    assert "80" in (describe("ViT-H-14").why_not or "")
    assert describe("EVA02-B-16").refusal is None
    assert "rotary" in (describe("PE-Core-T-16-384").why_not or "")
