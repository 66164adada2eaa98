"""What every runtime looks like from outside, and the zero-shot head on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from .errors import EngineError

if TYPE_CHECKING:
    from typing_extensions import Self

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]

MAX_OUTPUT_DIM, MAX_SIDE, MAX_BATCH = 1 << 20, 16384, 65536
"""What an image encoder may have; libregcache has the same bounds."""

MIN_NORM = 1e-12
"""Floor of a feature's norm, as in torch's `normalize`: a zero vector stays zero."""


class Engine(Protocol):
    """A loaded encoder. Use it as a context manager; it holds native memory.

    Threads: any number of them may call `infer` at once, and each gets its own features, the same
    as alone. `close` waits until nobody is inside. Processes: in a forked child the engine refuses
    with EngineError, whatever the runtime would do; load it in the child. Spawned processes and
    pickling: pass the bundle's path.

    Attributes:
        image_size: height and width in pixels that `infer` takes.
        output_dim: length E of a feature.
        pixels: `nchw` or `nhwc` where `infer` takes raw uint8 pixels, with preprocessing's mean
            and std baked in; None where it takes normalized float32.
    """

    @property
    def image_size(self) -> tuple[int, int]: ...

    @property
    def output_dim(self) -> int: ...

    @property
    def pixels(self) -> str | None: ...

    def infer(self, images: Array) -> FloatArray:
        """Images -> features `[B, E]`, not L2-normalized.

        Args:
            images: normalized float32 `[B, 3, H, W]`, or as `pixels` says uint8 `[B, 3, H, W]` or
                `[B, H, W, 3]`.

        Raises:
            EngineError: wrong shape or type, NaN in the output, the runtime failed, the engine is
                closed, or the process forked since it was loaded.
        """
        ...

    def close(self) -> None:
        """Release the runtime's memory, once calls of other threads have ended.

        A closed engine refuses to infer; closing it again does nothing, and neither does closing it
        in a forked child.

        Raises:
            EngineError: the calling thread is inside of `infer` itself (a signal's handler).
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def input_shape(image_size: tuple[int, int], pixels: str | None) -> tuple[int, int, int]:
    """Shape of one image in the layout that an engine takes."""
    height, width = image_size
    return (height, width, 3) if pixels == "nhwc" else (3, height, width)


def read_contract(
    dtype: str, image: Sequence[Any], features: Sequence[Any]
) -> tuple[tuple[int, int], int, str | None] | None:
    """Image size, output length and pixel layout from a graph's input and output.

    Args:
        dtype: numpy name of the input's type.
        image, features: shapes; a free dimension is anything but an int.

    Returns:
        None where this is no image encoder, or one beyond all bounds.
    """
    if len(image) != 4 or len(features) != 2 or not isinstance(features[1], int):
        return None
    if not all(isinstance(size, int) for size in image[1:]):
        return None
    if isinstance(image[0], int) and not 1 <= image[0] <= MAX_BATCH:
        return None
    if (
        not 1 <= features[1] <= MAX_OUTPUT_DIM
        or not 1 <= min(image[1:]) <= max(image[1:]) <= MAX_SIDE
    ):
        return None
    if dtype == "uint8" and image[3] == 3:
        return (image[1], image[2]), features[1], "nhwc"
    if dtype in ("uint8", "float32") and image[1] == 3:
        return (image[2], image[3]), features[1], "nchw" if dtype == "uint8" else None
    return None


def check_images(images: Array, image_size: tuple[int, int], pixels: str | None = None) -> None:
    """Raise EngineError unless `images` is what the engine takes, at least one and finite.

    Args:
        images: float32 `[B, 3, H, W]`, or with `pixels` uint8 in that layout.
        image_size: height and width.
        pixels: layout of raw pixels, or None.
    """
    if not isinstance(images, np.ndarray):
        raise EngineError(f"images must be a numpy array, not {type(images).__name__}")
    wanted = "float32" if pixels is None else "uint8"
    if images.dtype != wanted:
        mend = (
            "and the encoder takes normalized float32; apply the bundle's preprocessing first"
            if pixels is None
            else "and the encoder takes raw uint8 pixels; its mean and std are baked in"
        )
        raise EngineError(f"images are {images.dtype}, {mend}")
    shape = input_shape(image_size, pixels)
    if images.ndim != 4 or images.shape[1:] != shape:
        raise EngineError(
            f"images have shape {list(images.shape)}, and the encoder takes "
            f"[batch, {', '.join(map(str, shape))}]"
        )
    if not len(images):
        raise EngineError("the batch holds no image")
    if pixels is not None:
        return
    # a quantized encoder turns NaN into an integer code and answers with plausible features, so
    # the input is the only place where it can be seen
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    if not finite.all():
        raise EngineError(
            f"image {int(np.argmin(finite))} of this batch holds NaN or infinite pixels; "
            "check how it was decoded and normalized"
        )


def check_features(features: Array, count: int, output_dim: int) -> FloatArray:
    """Return the runtime's output as float32 `[count, E]`.

    Raises:
        EngineError: another shape, or NaN or infinite values.
    """
    if features.shape != (count, output_dim):
        raise EngineError(
            f"the runtime returned features of shape {list(features.shape)}, "
            f"not {[count, output_dim]}"
        )
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise EngineError(
            f"the features of image {int(np.argmin(finite))} of this batch hold NaN or infinite "
            "values although its pixels are finite; export the bundle again"
        )
    return features.astype(np.float32, copy=False)


def unit_length(rows: Array) -> Array:
    """Rows `[n, E]` divided by their norms; a zero vector stays zero.

    To the bit the same for a row alone and among others.
    """
    exact = rows.astype(np.float64)
    # numpy sums the rows of a matrix in an order that depends on how many there are
    norms = np.sqrt([np.dot(row, row) for row in exact])
    scaled: Array = (exact / np.maximum(norms, MIN_NORM)[:, None]).astype(rows.dtype)
    return scaled


def zero_shot(features: Array, text_features: Array, logit_scale: float) -> FloatArray:
    """Class logits by cosine similarity, as CLIP computes them.

    Args:
        features: `[B, E]`; normalized here.
        text_features: `[classes, E]`, L2-normalized.
        logit_scale: factor on the similarities.

    Returns:
        Logits `[B, classes]`.

    Raises:
        EngineError: the two do not have the same E.
    """
    if features.ndim != 2 or text_features.ndim != 2 or features.shape[1] != text_features.shape[1]:
        raise EngineError(
            f"features {list(features.shape)} and text features {list(text_features.shape)} "
            "do not share their last dimension; they come from different models"
        )
    logits = logit_scale * unit_length(features) @ text_features.T
    return np.asarray(logits, dtype=np.float32)
