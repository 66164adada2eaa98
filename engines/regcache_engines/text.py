"""The text tower of a bundle: texts -> embeddings, with numpy, onnxruntime and tokenizers."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .bundle import MANIFEST, Bundle
from .closing import Closing
from .engine_base import check_threads
from .errors import BundleError, ConfigError, DataError, EngineError
from .gate import Gate, keep_in_children
from .heap import trim_heap
from .onnx_wire import has_external_data
from .onnxruntime_session import open_session
from .text_config import (
    FOLDER,
    INPUT,
    LONGEST,
    OUTPUT,
    TEXT_CONFIG,
    TEXT_MODEL,
    TOKENIZER,
    TextConfig,
)

Ids = npt.NDArray[np.int64]
Embeddings = npt.NDArray[np.float32]

BATCH = 32
"""Texts per run of a float tower. One with dynamic quantization runs them one by one: its ranges
are those of the whole batch, so a text's embedding would depend on its neighbours."""


class TextTower(Closing):
    """The tokenizer and the text encoder of a bundle. A context manager; it holds native memory.

    Any number of threads may call `embed` and `tokenize` at once; a text's embedding does not
    depend on the other texts of the call (to the bit with INT8 weights, to rounding else). `close`
    waits until nobody is inside; a forked child is refused.

    Args:
        source: an open bundle, a bundle's folder, or its folder `text`. The files of a bundle are
            those that its manifest lists, by hash; a folder alone is taken as it is.
        threads: threads inside an operator; None takes one per physical core.

    Attributes:
        config: what `text.json` says: context length, padding, precision, logit scale, ...

    Raises:
        BundleError: no text tower there, or a damaged one.
        ConfigError: `tokenizers` is not installed.
        EngineError: onnxruntime is missing or cannot run the model, or `threads` is out of range.
    """

    def __init__(self, source: Bundle | Path | str, *, threads: int | None = None) -> None:
        check_threads(threads)
        files = _Files(source)
        self.config = TextConfig.parse(files.read(TEXT_CONFIG), str(files.title(TEXT_CONFIG)))
        self._tokenizer = _load_tokenizer(
            files.read(TOKENIZER), self.config, files.title(TOKENIZER)
        )
        model, name = files.read(TEXT_MODEL), files.title(TEXT_MODEL)
        if has_external_data(model):
            raise EngineError(
                f"{name} keeps weights in other files, which no hash of the bundle covers, or "
                "hides whether it does; do not use this bundle"
            )
        self._session = open_session(model, threads=threads, name=name)
        _check_graph(self._session, self.config, name)
        self._gate = Gate()
        keep_in_children(self)

    @property
    def output_dim(self) -> int:
        """Length E of an embedding."""
        return self.config.embedding

    def tokenize(self, texts: Sequence[str]) -> Ids:
        """Texts -> token ids `[n, L]`; too long ones are cut to the context length.

        L is that of the longest text here, or the context length where the tower reads padding.

        Raises:
            DataError: no text, or one that is no string.
        """
        rows = self._rows(texts)
        return self._padded(rows)

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Texts -> embeddings `[n, E]`, not L2-normalized, as the image side's.

        Raises:
            DataError: no text, or one that is no string.
            EngineError: the runtime failed or gave NaN, the tower is closed, or the process forked.
        """
        rows = self._rows(texts)
        out = np.empty((len(rows), self.output_dim), np.float32)
        size = 1 if self.config.precision == "int8" else BATCH
        # texts of like length together: less padding
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        with self._gate:
            for start in range(0, len(order), size):
                part = order[start : start + size]
                out[part] = self._run(self._padded([rows[i] for i in part]))
        return out

    def close(self) -> None:
        """Release the runtime's memory once calls of other threads have ended."""
        if self._gate.shut():
            self._session = None
            trim_heap()

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        # `texts` of untyped callers
        given: Any = texts
        several = isinstance(given, Iterable) and not isinstance(given, str)
        cleaned: list[Any] = list(given) if several else [None]
        if not cleaned:
            raise DataError("there is no text to embed")
        if not all(isinstance(text, str) for text in cleaned):
            raise DataError("texts must be a list of strings")
        if self.config.html_unescape:
            cleaned = [html.unescape(html.unescape(text)) for text in cleaned]
        # one by one: `encode_batch` starts threads that a later fork warns of
        try:
            return [self._tokenizer.encode(text).ids for text in cleaned]
        except (TypeError, UnicodeError) as error:  # half of a character from two
            raise DataError(f"a text is no Unicode text: {error}") from error

    def _padded(self, rows: Sequence[Sequence[int]]) -> Ids:
        length = max(map(len, rows))
        if self.config.padding != LONGEST:
            length = self.config.context_length
        ids = np.full((len(rows), length), self.config.pad_id, np.int64)
        longest = max(map(len, rows))
        if longest > length:
            raise EngineError(
                f"the tokenizer gives {longest} tokens where {TEXT_CONFIG} takes {length}; export "
                "the bundle again"
            )
        for row, values in zip(ids, rows, strict=True):
            row[: len(values)] = values
        return ids

    def _run(self, ids: Ids) -> Embeddings:
        try:
            (found,) = self._session.run([OUTPUT], {INPUT: ids})
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise EngineError(f"ONNX Runtime failed in the text tower: {error}") from error
        if found.shape != (len(ids), self.output_dim) or not np.isfinite(found).all():
            raise EngineError(
                f"the text tower gave NaN or another shape ({list(found.shape)}); export the "
                "bundle again"
            )
        embeddings: Embeddings = found
        return embeddings


class _Files:
    """The folder `text`, of a bundle or alone."""

    def __init__(self, source: Bundle | Path | str) -> None:
        if not isinstance(source, Bundle):
            path = Path(source)
            if (path / MANIFEST).exists():
                source = Bundle.open(path)
            elif not (path / TEXT_CONFIG).is_file():
                raise BundleError(
                    f"{path} is neither a bundle nor the folder {FOLDER} of one: it has no "
                    f"{TEXT_CONFIG}"
                )
        self._bundle = source if isinstance(source, Bundle) else None
        self._folder = source.path / FOLDER if isinstance(source, Bundle) else Path(source)
        if self._bundle is not None and not self._bundle.has_text:
            raise BundleError(
                f"{self._bundle.path} has no text tower: its encoder has none, or it was exported "
                "with --no-text"
            )

    def title(self, name: str) -> Path:
        return self._folder / name

    def read(self, name: str) -> bytes:
        if self._bundle is not None:
            return self._bundle.read(f"{FOLDER}/{name}")
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise BundleError(f"{self._folder / name} is not readable ({error})") from error


def _load_tokenizer(data: bytes, config: TextConfig, path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigError(
            f"texts need tokenizers, which is not installed or does not load ({error}); run: "
            "pip install 'regcache-deploy[text]'"
        ) from error
    try:
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # tokenizers raises plain Exception
        raise BundleError(f"{path} is no tokenizer ({error}); export it again") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(config.context_length)
    return tokenizer


def _check_graph(session: Any, config: TextConfig, name: Path) -> None:
    (ids, *others), (embeds, *more) = session.get_inputs(), session.get_outputs()
    fits = (
        not others
        and not more
        and (ids.name, embeds.name) == (INPUT, OUTPUT)
        and (ids.type, embeds.type) == ("tensor(int64)", "tensor(float)")
        and len(ids.shape) == len(embeds.shape) == 2
        and embeds.shape[1] == config.embedding
    )
    if not fits:
        raise EngineError(f"{name} is no text tower of this format; export it again")
