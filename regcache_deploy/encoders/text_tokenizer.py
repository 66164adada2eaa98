"""Tokenizers of text towers in the format of Hugging Face's `tokenizers`, as a bundle carries them.

open_clip's own tokenizer mends a text before it splits it: ftfy, HTML entities, white space, case.
Of ftfy the file has composed characters, straight quotes, ligatures and width; what it cannot
have is the repair of wrongly decoded text.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..compat import require
from ..errors import UnsupportedEncoderError

WORDS = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""How CLIP splits a text; without flags, which JavaScript's patterns lack."""

PUNCTUATION = "".join(f"\\{mark}" if mark in "\\]^[-" else mark for mark in string.punctuation)
"""Inside of a character class; JavaScript refuses further escapes."""

LONG = "word " * 4096


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer of the library `tokenizers`, and how it is used.

    Attributes:
        tokenizer: with special tokens; neither cuts nor pads.
        context_length: where a text is cut.
        pad_id: fills rows up.
        html_unescape: `&amp;` is `&`, before the tokenizer.
    """

    tokenizer: Any
    context_length: int
    pad_id: int
    html_unescape: bool

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, cut at the context length."""
        self.tokenizer.enable_truncation(self.context_length)
        try:
            return [self.tokenizer.encode(text).ids for text in texts]
        finally:
            self.tokenizer.no_truncation()

    @property
    def eos_id(self) -> int | None:
        """The token that ends every text, a cut one, too; None without one."""
        ends = {row[-1] for row in self.ids(["one", "two words", LONG])}
        return ends.pop() if len(ends) == 1 else None

    @property
    def lower_case(self) -> bool:
        """Whether case makes no difference."""
        one, other = self.ids(["A Photo of THE Dog", "a photo of the dog"])
        return one == other

    def to_json(self) -> str:
        text: str = self.tokenizer.to_str(pretty=False)
        return text


def from_open_clip_tokenizer(tokenizer: Any, context_length: int) -> TextTokenizer:
    """Either of open_clip's tokenizers.

    Raises:
        UnsupportedEncoderError: one that drops tokens at random, or that has no fast form.
        ConfigError: `tokenizers` is not installed.
    """
    if type(tokenizer).__name__ == "SimpleTokenizer":
        if tokenizer.reduction_fn is not None:
            raise UnsupportedEncoderError("a tokenizer that drops tokens at random")
        names = {i: name for name, i in tokenizer.encoder.items()}
        made = byte_pairs(
            tokenizer.encoder,
            [" ".join(pair) for pair in tokenizer.bpe_ranks],
            names[tokenizer.sot_token_id],
            names[tokenizer.eot_token_id],
        )
        made.normalizer = _sequence(_clean(tokenizer.clean_fn))
        return TextTokenizer(made, context_length, 0, html_unescape=True)
    return _from_hf(tokenizer, context_length)


def byte_pairs(vocabulary: Mapping[str, int], merges: Sequence[str], start: str, end: str) -> Any:
    """CLIP's byte-level BPE, without a normalizer.

    Args:
        vocabulary: ids by token, special ones included.
        merges: lines of two parts, the first one first.
        start, end: special tokens around a text.
    """
    library = require("tokenizers", "text")
    from tokenizers import models, pre_tokenizers, processors

    pairs = [(left, right) for left, right in (line.split(" ") for line in merges)]
    model = models.BPE(
        vocab=dict(vocabulary), merges=pairs, end_of_word_suffix="</w>", fuse_unk=False
    )
    made = library.Tokenizer(model)
    made.add_special_tokens([start, end])
    words = pre_tokenizers.Split(library.Regex(WORDS), "removed", invert=True)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    made.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(token, vocabulary[token]) for token in (start, end)],
    )
    return made


def lowered() -> Any:
    """The normalizer of transformers' CLIP: composed characters, single spaces, lower case."""
    from tokenizers import normalizers

    return _sequence([normalizers.NFC(), *_single_spaces(), normalizers.Lowercase()])


def _from_hf(tokenizer: Any, context_length: int) -> TextTokenizer:
    inner = getattr(tokenizer, "tokenizer", None)
    if getattr(tokenizer, "tokenizer_mode", "") or getattr(tokenizer, "strip_sep_token", False):
        raise UnsupportedEncoderError("a tokenizer that replaces its own special tokens")
    backend = getattr(inner, "backend_tokenizer", None)
    if inner is None or backend is None:
        raise UnsupportedEncoderError(
            f"the tokenizer {type(inner or tokenizer).__name__}, which has no tokenizer.json"
        )
    if getattr(inner, "padding_side", "right") != "right":
        raise UnsupportedEncoderError("a tokenizer that pads on the left")
    library = require("tokenizers", "text")
    made = library.Tokenizer.from_str(backend.to_str())
    made.no_truncation()
    made.no_padding()
    own = [made.normalizer] if made.normalizer is not None else []
    made.normalizer = _sequence([*_clean(tokenizer.clean_fn), *own])
    pad = inner.pad_token_id
    return TextTokenizer(made, context_length, 0 if pad is None else pad, html_unescape=True)


def _clean(function: Callable[[str], str]) -> list[Any]:
    """The steps of one of open_clip's cleaning functions."""
    from tokenizers import Regex, normalizers

    steps = [*_mended(), *_single_spaces()]
    name = function.__name__
    if name == "_clean_lower":
        return [*steps, normalizers.Lowercase()]
    if name == "_clean_whitespace":
        return steps
    if name == "_clean_canonicalize":
        return [
            *_mended(),
            normalizers.Replace("_", " "),
            normalizers.Replace(Regex(f"[{PUNCTUATION}]"), ""),
            normalizers.Lowercase(),
            *_single_spaces(),
        ]
    raise UnsupportedEncoderError(f"a tokenizer that cleans texts by {name}")


def _mended() -> list[Any]:
    """What ftfy does to characters that were decoded rightly."""
    from ftfy import chardata
    from tokenizers import Regex, normalizers

    tables = {**chardata.LIGATURES, **chardata.WIDTH_MAP}
    return [
        *(normalizers.Replace(chr(old), new) for old, new in tables.items()),
        normalizers.Replace(Regex(chardata.SINGLE_QUOTE_RE.pattern), "'"),
        normalizers.Replace(Regex(chardata.DOUBLE_QUOTE_RE.pattern), '"'),
        normalizers.NFC(),
    ]


def _single_spaces() -> list[Any]:
    from tokenizers import Regex, normalizers

    return [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]


def _sequence(steps: Sequence[Any]) -> Any:
    from tokenizers import normalizers

    return normalizers.Sequence(list(steps))
