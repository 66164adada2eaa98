"""Tokenizers of a bundle against open_clip's own."""

from __future__ import annotations

import html
from functools import partial
from typing import Any

import pytest

from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders.text_tokenizer import from_open_clip_tokenizer
from regcache_deploy.errors import UnsupportedEncoderError

open_clip = import_open_clip()
tokenizers = pytest.importorskip("tokenizers")

AWKWARD = (
    "", "  x  ", "A\u3000B\tC\nD", "Don’t “stop”  now!!! 12345", "Ｈｅｌｌｏ ﬁne é e\u0301",
    "日本語 テスト ｶﾅ", "'S it's IT'S", "a" * 300, "word " * 200, "emoji 😀👍🏽 ok", "½ ² ٣ 四",
    "naïve café ŉ ǆ", "ÄÖÜ ß İstanbul", "rock &amp;amp; roll", "a_b-c (d) [e] {f}",
)  # fmt: skip


def assert_same(made: Any, original: Any, texts: list[str]) -> None:
    rows = made.ids([html.unescape(html.unescape(text)) for text in texts])
    for text, ids, known in zip(texts, rows, original(texts).tolist(), strict=True):
        assert ids + [made.pad_id] * (len(known) - len(ids)) == known, text


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_clips_tokenizer(clean: str) -> None:
    original = open_clip.SimpleTokenizer(context_length=16, clean=clean)
    made = from_open_clip_tokenizer(original, 16)
    names = [*open_clip.IMAGENET_CLASSNAMES[::25], *AWKWARD]
    prompts = [
        prompt(names[i % 40]) for i, prompt in enumerate(open_clip.OPENAI_IMAGENET_TEMPLATES)
    ]
    assert_same(made, original, [*names, *prompts])
    assert (made.eos_id, made.lower_case) == (49407, clean != "whitespace")


def test_one_that_drops_tokens_at_random_is_refused() -> None:
    with pytest.raises(UnsupportedEncoderError, match="at random"):
        from_open_clip_tokenizer(open_clip.SimpleTokenizer(reduction_mask="simple"), 77)


@pytest.fixture
def saved(tmp_path: Any) -> Any:
    """A small tokenizer as transformers saves one: no start token, an end token, padding 5."""
    transformers = pytest.importorskip("transformers")
    texts = ["a photo of a dog", "the quick brown fox", "it s a test 1 2 3"]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = ["<unk>", "<x>", "<y>", "<z>", "<end>", "<pad>"]
    made.train_from_iterator(
        texts, tokenizers.trainers.BpeTrainer(vocab_size=60, special_tokens=special)
    )
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", 4)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )
    fast.save_pretrained(tmp_path)
    return partial(open_clip.tokenizer.HFTokenizer, str(tmp_path), context_length=8)


def test_a_tokenizer_of_transformers(saved: Any) -> None:
    original = saved(clean="canonicalize")
    made = from_open_clip_tokenizer(original, 8)
    assert_same(
        made, original, ["A photo of a DOG!", "the_quick, brown (fox)", "a " * 30, "1 &lt; 2"]
    )
    assert (made.pad_id, made.eos_id, made.lower_case) == (5, 4, True)


def test_special_modes_are_refused(saved: Any) -> None:
    with pytest.raises(UnsupportedEncoderError, match="special tokens"):
        from_open_clip_tokenizer(saved(tokenizer_mode="clips"), 8)
    left = saved()
    left.tokenizer.padding_side = "left"
    with pytest.raises(UnsupportedEncoderError, match="on the left"):
        from_open_clip_tokenizer(left, 8)
