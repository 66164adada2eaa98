"""`--dry-run` finds a model that is not there, without a download."""

from __future__ import annotations

import json

import pytest

from regcache_deploy.cli.main import main
from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders import hub
from regcache_deploy.encoders.known import check_model
from regcache_deploy.errors import ModelError

import_open_clip()
huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def no_download(tmp_path, monkeypatch):
    """An empty cache, and a hub that must not be asked."""

    def asked(*words, **more):
        raise AssertionError("a dry run asked the hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", asked)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_resolves", lambda host: True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["--model", "ViT-B-23", "--pretrained", "random"], 3, "did you mean: ViT-B-32"),
        (["--model", "ViT-B-32", "--pretrained", "laion3b"], 3, "no pretrained tag 'laion3b'"),
        (["--model", "ViT-B-32", "--pretrained", "./no.pt"], 3, "no checkpoint file at no.pt"),
        (["--model", "ViT-B-32"], 2, "needs --pretrained"),
        (["--model", "timm/vit_tiny_patch61"], 3, "unknown model 'timm/vit_tiny_patch61'"),
        (["--model", "timm/vit_tiny_patch16_224", "--pretrained", "x"], 3, "no pretrained tag 'x'"),
        (["--model", "demo-denser"], 3, "the demos are: demo"),
        (["--model", "demo", "--pretrained", "random"], 2, "brings its own weights"),
        (["--model", "./no/folder"], 3, "no such folder"),
        (["--model", "swin-folder"], 3, "window attention"),
        (["--model", "openai/clip", "--pretrained", "tag"], 2, "brings its own weights"),
        (["--model", "openai/clip"], 0, ""),
        (["--model", "demo-dense"], 0, ""),
        (["--model", "ViT-B-32", "--pretrained", "openai"], 0, ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["export", "search"])
def test_a_dry_run_looks_for_the_model(no_download, capsys, command, words, code, problem):
    (no_download / "swin-folder").mkdir()
    (no_download / "swin-folder" / "config.json").write_text(json.dumps({"model_type": "swin"}))
    assert main([command, *words, "--data", "demo", "--dry-run"]) == code
    assert problem in capsys.readouterr().err


def test_without_a_network_the_cache_is_all_there_is(no_download, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        check_model("openai/clip", None)
