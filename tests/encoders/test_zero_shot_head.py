"""The zero-shot head: equal to open_clip's, cached, and its templates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders import zero_shot_head
from regcache_deploy.encoders.zero_shot_head import OpenClipHead, read_templates
from regcache_deploy.errors import ConfigError, ModelError

open_clip = import_open_clip()
NAMES = ("cat", "dog", "tench", "a very long name", *(f"number {i}" for i in range(9)))


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    ).eval()


def head(clip, cache=None, templates="simple"):
    return OpenClipHead(clip, open_clip.SimpleTokenizer, read_templates(templates), cache)


def test_equals_open_clip(clip):
    expected = open_clip.build_zero_shot_classifier(
        clip,
        open_clip.SimpleTokenizer(),
        NAMES,
        open_clip.SIMPLE_IMAGENET_TEMPLATES,
        num_classes_per_batch=None,
    ).T
    got = head(clip)(NAMES)
    assert got.shape == (len(NAMES), 16)
    assert torch.allclose(got, expected, atol=1e-6)


def test_the_cache_saves_the_text_tower_and_is_keyed_by_everything(clip, tmp_path, monkeypatch):
    calls = []
    real = clip.encode_text

    def counted(*arguments, **keywords):
        calls.append(1)
        return real(*arguments, **keywords)

    monkeypatch.setattr(clip, "encode_text", counted, raising=False)
    first = head(clip, tmp_path)(NAMES)
    count = len(calls)
    assert count > 0
    assert torch.equal(head(clip, tmp_path)(NAMES), first)
    assert len(calls) == count, "the second time costs no text"
    keys = {
        head(clip).key(NAMES),
        head(clip).key(NAMES[:-1]),
        head(clip, None, "openai").key(NAMES),
    }
    with torch.no_grad():
        clip.ln_final.weight.add_(1)
        keys.add(head(clip).key(NAMES))
        clip.ln_final.weight.sub_(1)
    with monkeypatch.context() as patch:
        mlp = clip.transformer.resblocks[0].mlp
        patch.setitem(mlp._modules, "gelu", open_clip.transformer.QuickGELU())
        keys.add(head(clip).key(NAMES))
    assert len(keys) == 5
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:40])
    assert torch.equal(head(clip, tmp_path)(NAMES), first), "a damaged cache is made anew"
    assert len(calls) == 2 * count


def test_a_cached_head_is_that_of_the_tokenizer(clip, tmp_path, caplog):
    """Another tokenizer beside the same weights; one that is not there takes what there is."""

    def reversed_words():
        tokenize = open_clip.SimpleTokenizer()
        return lambda texts: tokenize([text[::-1] for text in texts])

    tried = []

    def fail():
        tried.append(1)
        raise OSError("no network")

    first = head(clip, tmp_path)
    of_first, templates = first(NAMES), first.templates
    other = OpenClipHead(clip, reversed_words, templates, tmp_path)
    assert other.key(NAMES) != first.key(NAMES)
    of_other = other(NAMES)
    assert not torch.allclose(of_other, of_first)
    assert torch.equal(head(clip, tmp_path)(NAMES), of_first)
    offline = OpenClipHead(clip, fail, templates, tmp_path)
    assert torch.equal(offline(NAMES), of_first)
    assert "is taken from" in caplog.text
    assert offline.key(NAMES)
    assert len(tried) == 1, "each attempt may take a minute"


def test_a_cached_head_is_that_of_the_pooling(clip, tmp_path, monkeypatch):
    """Neither weights nor the names of modules say which token is taken."""
    first = head(clip, tmp_path)(NAMES)
    monkeypatch.setattr(clip, "text_pool_type", "first")
    pooled = head(clip, tmp_path)(NAMES)
    assert torch.equal(pooled, head(clip)(NAMES))
    assert not torch.allclose(pooled, first)


def test_other_braces_in_a_template_are_its_own_text(clip, tmp_path):
    file = tmp_path / "templates.txt"
    file.write_text("a {} in {year}, 100% {\n", encoding="utf-8")
    got = head(clip, templates=str(file))(NAMES)
    texts = [f"a {name} in {{year}}, 100% {{" for name in NAMES]
    with torch.no_grad():
        features = clip.encode_text(open_clip.SimpleTokenizer()(texts), normalize=True)
    assert torch.allclose(got, features, atol=1e-6)
    file.write_bytes(b"a caf\xe9 {}\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_templates(str(file))


def test_the_cache_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert zero_shot_head.cache_folder() == tmp_path / "regcache-deploy" / "heads"


def test_without_a_home_nothing_is_cached(monkeypatch):
    """As `docker run --user 54321` leaves it."""

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert zero_shot_head.cache_folder() is None


def test_templates_from_a_file(tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text("a photo of a {}.\n\nart of the {c}\n")
    assert read_templates(str(path)) == ("a photo of a {}.", "art of the {}")
    assert len(read_templates("openai")) == 80
    assert len(read_templates("simple")) == 7
    path.write_text("a photo\n")
    with pytest.raises(ConfigError, match=r"needs \{\} once"):
        read_templates(str(path))
    path.write_text("\n")
    with pytest.raises(ConfigError, match="holds no templates"):
        read_templates(str(path))
    with pytest.raises(ConfigError, match="no such file"):
        read_templates("opneai")


def test_a_tokenizer_that_cannot_be_had_is_a_model_error(clip):
    def fail():
        raise OSError("no network")

    with pytest.raises(ModelError, match=r"tokenizer .* could not be had \(no network\)"):
        OpenClipHead(clip, fail, ("a {}",))(NAMES)


def test_a_tokenizer_whose_library_is_missing_names_the_extra(clip):
    def fail():
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

    with pytest.raises(ConfigError, match=r"needs transformers.*regcache-deploy\[siglip\]"):
        OpenClipHead(clip, fail, ("a {}",))(NAMES)
