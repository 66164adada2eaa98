"""Names of architectures and tags, read from the libraries' files, against the libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders import known, library_names
from regcache_deploy.encoders.known import check_names
from regcache_deploy.encoders.library_names import QUICK, open_clip_names, timm_names
from regcache_deploy.errors import ConfigError, ModelError

open_clip = import_open_clip()
timm = pytest.importorskip("timm")


def test_names_of_open_clip_are_those_of_the_library() -> None:
    names = open_clip_names()
    assert names is not None
    assert set(names) == set(open_clip.list_models())
    for name, tags in names.items():
        known_tags = set(open_clip.list_pretrained_tags_by_model(name))
        assert known_tags <= set(tags), name
        assert known_tags == set(tags) or name.endswith(QUICK), name


def test_every_name_of_timm_is_found() -> None:
    names = timm_names()
    assert names is not None
    assert set(timm.list_models()) <= set(names)


@pytest.mark.parametrize(
    ("name", "pretrained", "error", "words"),
    [
        ("ViT-B16", "openai", ModelError, "did you mean: ViT-B-16"),
        ("ViT-B-16", "opnai", ModelError, "did you mean: openai"),
        ("ViT-B-16", None, ConfigError, "needs --pretrained"),
        ("ViT-B-16", "random:x", ConfigError, "whole number"),
        ("ViT-B-16", "/nowhere/x.pt", ModelError, "no checkpoint file"),
        ("timm/vit_base_patch16_dinv2", None, ModelError, "did you mean"),
        ("/nowhere/x", None, ModelError, "no such folder"),
        ("local-dir:/nowhere", None, ModelError, "no folder"),
        ("hf-hub:x", None, ModelError, "no hub repository"),
        ("org/name", "openai", ConfigError, "brings its own weights"),
        ("onnx:/nowhere.onnx", None, ModelError, "no file"),
        ("demo-dens", None, ModelError, "the demos are"),
        ("demo", "openai", ConfigError, "brings its own weights"),
    ],
)
def test_what_is_mistyped_is_said(
    name: str, pretrained: str | None, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        check_names(name, pretrained)


def test_what_may_be_there_passes(tmp_path: Path) -> None:
    check_names("ViT-B-16", "openai")
    check_names("ViT-B-32-quickgelu", "openai")
    check_names("ViT-B-16", "random:3")
    check_names("timm/vit_base_patch14_dinov2.lvd142m", None)
    check_names("org/name", None)
    check_names(str(tmp_path), None)
    check_names("natural-vit-s14", None)


def test_files_of_another_layout_leave_the_answer_to_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model_configs").mkdir()
    (tmp_path / "pretrained.py").write_text("_PRETRAINED = dict(load())\n", encoding="utf-8")
    monkeypatch.setattr(library_names, "_folder", lambda package: tmp_path)
    assert open_clip_names() is None
    assert timm_names() is None
    known.check_names("ViT-B16", "opnai")


def test_no_library_is_imported() -> None:
    script = (
        "import sys\n"
        "from regcache_deploy.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "print(code, {'torch', 'timm', 'open_clip', 'numpy'} & set(sys.modules))\n"
    )
    words = ["export", "--model", "ViT-B-16", "--pretrained", "opnai", "--data", "demo"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[0] == "3 set()"
    assert "did you mean: openai?" in done.stderr


def test_a_name_that_this_program_has_registered_passes(tmp_path: Path) -> None:
    text = '{"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}'
    (tmp_path / "of-this-program.json").write_text(text, encoding="utf-8")
    open_clip.add_model_config(tmp_path / "of-this-program.json")
    try:
        check_names("of-this-program", "x.pt")
    finally:
        open_clip.factory._MODEL_CONFIGS.pop("of-this-program")
    with pytest.raises(ModelError, match="unknown model"):
        check_names("of-this-program", "x.pt")
