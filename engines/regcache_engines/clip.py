"""A bundle that takes photographs: decode, preprocess, embed, classify, compare."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .ahead import map_ahead
from .bundle import Bundle
from .closing import Closing
from .engine import Array, Engine, FloatArray, unit_length
from .errors import ConfigError, DataError, EngineError
from .monitor import Monitor, ProbeReport
from .predictions import Prediction, best_classes
from .preprocess import Pixels, Preprocess, reason
from .text import TextTower

if TYPE_CHECKING:
    from PIL.Image import Image

ImageLike: TypeAlias = "str | Path | bytes | Image | npt.NDArray[np.uint8]"
"""A file's path, a file's bytes, a PIL image, or RGB pixels uint8 `[H, W, 3]` of any size."""


class Clip(Closing):
    """A bundle in a runtime; `open` makes one. Use it as a context manager: it holds native memory.

    Threads: any number of them may call it at once, and each gets what it would get alone: to the
    bit, embeddings and classes of images depend neither on other calls nor on how images are put
    into batches. `close` waits until nobody is inside. Processes: a forked child is refused with
    EngineError; open it there.

    Args:
        bundle: an open bundle.
        engine: of that bundle, in any runtime; closed with this object.
        monitor: what the engine tells its probes' codes.
        batch_size: images of one run. More of them take more memory, and on a CPU little less time.
        workers: threads that decode a call's images while others run; 0 takes one a core.
        threads: inside a run of the text tower; None takes one per physical core.

    Attributes:
        bundle: the open bundle: its manifest, labels, preprocessing.
        preprocess: turns an image into the pixels that the encoder takes.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        *,
        monitor: Monitor | None = None,
        batch_size: int = 32,
        workers: int = 0,
        threads: int | None = None,
    ) -> None:
        if batch_size < 1 or workers < 0:
            raise ConfigError(
                f"batch_size {batch_size} must be at least 1, and workers {workers} at least 0"
            )
        self.bundle, self.preprocess = bundle, Preprocess(bundle.preprocess)
        self._engine, self._monitor = engine, monitor
        self._batch_size, self._workers, self._threads = batch_size, workers, threads
        self._text: TextTower | None = None
        # reentrant: a signal's handler may close what its own thread is opening
        self._lock, self._closed, self._pid = RLock(), False, os.getpid()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of what the encoder sees."""
        return self._engine.image_size

    @property
    def output_dim(self) -> int:
        """Length E of an embedding."""
        return self._engine.output_dim

    @property
    def labels(self) -> tuple[str, ...]:
        """Classes of the bundle's head; empty without a head or names."""
        return self.bundle.labels if self.bundle.has_text_features else ()

    @property
    def caution(self) -> str | None:
        """What has to be said beside the results, e.g. that the weights are synthetic."""
        found = (self.bundle.manifest.get("provenance") or {}).get("caution")
        return found if isinstance(found, str) and found else None

    def embed_images(
        self, images: ImageLike | Iterable[ImageLike], *, normalize: bool = True
    ) -> FloatArray:
        """Embeddings `[n, E]`, float32, in the order of the images.

        Args:
            images: one, several, or an iterator, of which a few more than a batch are in memory at
                once; an array `[n, H, W, 3]` is n images. The EXIF orientation is not followed:
                the encoder was not trained so.
            normalize: to length 1, so that a product of two is their cosine; False gives what the
                encoder gives.

        Raises:
            DataError: no image, or one that is too large or cannot be read; the message says which.
            EngineError: the runtime failed, this object is closed, or the process forked.
        """
        parts = [self._infer(batch) for batch in self._batches(images)]
        if not parts:
            raise DataError("there is no image to embed")
        features = np.concatenate(parts)
        return unit_length(features) if normalize else features

    def classify(
        self, images: ImageLike | Iterable[ImageLike], top: int = 5
    ) -> list[list[Prediction]]:
        """The likeliest classes of each image by the bundle's zero-shot head, best first.

        Args:
            images: as `embed_images` takes them.
            top: so many, or all where the head has fewer.

        Raises:
            BundleError: the bundle has no head.
            ConfigError: `top` is below 1.
            DataError, EngineError: as `embed_images`.
        """
        if top < 1:
            raise ConfigError(f"top {top} is out of range: take at least 1")
        head, scale, labels = self.bundle.text_features, self.bundle.logit_scale, self.labels
        features = self.embed_images(images, normalize=False)
        return [best_classes(row, head, scale, labels, top) for row in features]

    def embed_text(self, texts: str | Sequence[str], *, normalize: bool = True) -> FloatArray:
        """Embeddings `[n, E]` of texts, float32, in the same space as the images'.

        The first call loads the text tower.

        Args:
            texts: one, or several.
            normalize: to length 1; False gives what the tower gives.

        Raises:
            BundleError: the bundle has no text tower.
            ConfigError: `tokenizers` is not installed.
            DataError: no text, or one that is no string.
            EngineError: the runtime failed, this object is closed, or the process forked.
        """
        rows = self._tower().embed([texts] if isinstance(texts, str) else texts)
        return unit_length(rows) if normalize else rows

    def similarity(
        self, images: ImageLike | Iterable[ImageLike], texts: str | Sequence[str]
    ) -> FloatArray:
        """Cosines `[images, texts]`, float32, between -1 and 1.

        They rank images for a text, and texts for an image; they are no probabilities. For those
        over some texts, take `classify` with a head of these (`regcache head`).

        Raises:
            BundleError, ConfigError, DataError, EngineError: as `embed_images` and `embed_text`.
        """
        rows = self.embed_text(texts)  # first: a missing tower is found before any image is run
        found: FloatArray = self.embed_images(images) @ rows.T
        return found

    def warm_up(self, batch: int | None = None) -> None:
        """Run `batch` grey images through the encoder (`batch_size` of them without), unwatched.

        Everything that is made at first use is made by it: memory of that batch size, threads.

        Raises:
            ConfigError: below 1.
            EngineError: as `embed_images`.
        """
        count = self._batch_size if batch is None else batch
        if count < 1:
            raise ConfigError(f"batch {count} is out of range: take at least 1")
        pixels = np.full((count, *self.image_size, 3), 127, np.uint8)
        paused = self._monitor.paused() if self._monitor is not None else nullcontext()
        with paused:
            self._infer(pixels)

    def saturation(self) -> list[ProbeReport]:
        """What the bundle's probes have seen so far; empty where nothing watches.

        A bundle that was exported with `--probes` counts, on every image, the integer codes at the
        ends of their range. Where on 32 images or more an end is four times as full as on the
        calibration images, a warning says once that these images leave the calibrated range.
        """
        return [] if self._monitor is None else self._monitor.report()

    def close(self) -> None:
        """Release the runtime's memory once calls of other threads have ended."""
        if self._pid != os.getpid():  # another thread of the parent may hold the lock for ever
            self._engine.close()
            return
        with self._lock:
            self._closed, text = True, self._text
        self._engine.close()
        if text is not None:
            text.close()

    def _tower(self) -> TextTower:
        if self._pid != os.getpid():
            raise EngineError(
                "this object was opened before the process forked, and its runtime does not "
                "survive that; open it in the child (with gunicorn: in post_fork, not --preload)"
            )
        with self._lock:
            if self._text is None:
                if self._closed:
                    raise EngineError("this object is closed; open the bundle again")
                self._text = TextTower(self.bundle, threads=self._threads)
            return self._text

    def _infer(self, pixels: Pixels) -> FloatArray:
        return self._engine.infer(self.preprocess.in_layout(pixels, self._engine.pixels))

    def _batches(self, images: ImageLike | Iterable[ImageLike]) -> Iterator[Pixels]:
        decoded = self._decoded(_several(images))
        while batch := list(itertools.islice(decoded, self._batch_size)):
            yield np.stack(batch)

    def _decoded(self, images: Iterable[ImageLike]) -> Iterator[Pixels]:
        if isinstance(images, Sequence) and len(images) == 1:  # no threads for a single one
            yield self._pixels((0, images[0]))
            return
        for _, pixels in map_ahead(self._pixels, enumerate(images), self._workers):
            yield pixels

    def _pixels(self, numbered: tuple[int, ImageLike]) -> Pixels:
        index, image = numbered
        try:
            if isinstance(image, (str, Path, bytes)):
                return self.preprocess.read(image)
            if isinstance(image, np.ndarray):  # in memory already, so that it may be large
                return self._prepared(self.preprocess, _picture(image))
            if not hasattr(image, "getbands"):
                raise DataError(
                    f"{type(image).__name__} is no image: give a path, a file's bytes, a PIL "
                    "image, or uint8 pixels [H, W, 3]"
                )
            return self._prepared(self.preprocess.opened, image)
        except DataError as error:
            name = str(image) if isinstance(image, (str, Path)) else f"image {index}"
            raise DataError(f"{name}: {error}") from error

    def _prepared(self, prepare: Callable[[Any], Pixels], image: Any) -> Pixels:
        try:
            return prepare(image)
        except (DataError, MemoryError):
            raise
        except Exception as error:  # Pillow decodes an opened file only here
            raise DataError(reason(error, Path("the file"))) from error


def _several(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return list(images)
    if isinstance(images, (str, Path, bytes, np.ndarray)) or hasattr(images, "getbands"):
        return [images]  # type: ignore[list-item]
    if not isinstance(images, Iterable):
        raise DataError(f"{type(images).__name__} holds no images")
    return images


def _picture(pixels: Array) -> Any:
    from PIL import Image

    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise DataError(
            f"pixels are {pixels.dtype} {list(pixels.shape)}, expected uint8 [H, W, 3] in RGB"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))
