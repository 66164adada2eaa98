"""The text side of a loaded model, as it is written into a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_engines.text_config import LONGEST, WHOLE

from .text_encoder import TextEncoder
from .text_tokenizer import TextTokenizer


@dataclass(frozen=True)
class TextSide:
    """Text tower and tokenizer. Both are read when they are first asked for.

    Attributes:
        read_encoder: the canonical tower; raises UnsupportedEncoderError for one that does not fit.
        read_tokenizer: raises UnsupportedEncoderError, ConfigError (a library is missing), or
            ModelError (its files cannot be had).
        features: the original tower and tokenizer: texts -> `[n, E]`, not normalized.
        tokens: the original tokenizer: texts -> ids, int64 `[n, C]`, filled up.
        templates: prompts of the model's zero-shot heads.
        logit_scale, logit_bias: of the model; None where it has no bias.
    """

    read_encoder: Callable[[], TextEncoder] = field(repr=False)
    read_tokenizer: Callable[[], TextTokenizer] = field(repr=False)
    features: Callable[[Sequence[str]], Tensor] = field(repr=False)
    tokens: Callable[[Sequence[str]], Tensor] = field(repr=False)
    templates: tuple[str, ...] = field(repr=False)
    logit_scale: float
    logit_bias: float | None

    @cached_property
    def encoder(self) -> TextEncoder:
        return self.read_encoder()

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        return self.read_tokenizer()

    @property
    def padding(self) -> str:
        """How rows are filled up, in the words of `TextConfig`."""
        return LONGEST if self.encoder.spec.any_length else WHOLE


class CanonicalText:
    """A text side without a library's model behind it, with what `OpenClipHead` asks of one."""

    def __init__(self, encoder: TextEncoder, tokenizer: Callable[[], TextTokenizer]) -> None:
        self.encoder, self._make = encoder, tokenizer

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        return self._make()

    def tokens(self, texts: Sequence[str] | str) -> Tensor:
        """Ids int64 `[n, C]`."""
        rows = self.tokenizer.ids([texts] if isinstance(texts, str) else texts)
        out = torch.full((len(rows), self.encoder.spec.context_length), self.tokenizer.pad_id)
        for row, ids in zip(out, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return out

    def features(self, texts: Sequence[str]) -> Tensor:
        return self.encoder(self.tokens(texts))

    def encode_text(self, ids: Tensor, normalize: bool = False) -> Tensor:
        out = self.encoder(ids)
        return F.normalize(out, dim=-1) if normalize else out

    def named_children(self) -> Iterator[tuple[str, Any]]:
        yield "text", self.encoder.spec

    def state_dict(self) -> dict[str, Tensor]:
        return self.encoder.weights
