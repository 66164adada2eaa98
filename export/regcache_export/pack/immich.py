"""The folder that immich's machine learning server reads (layout of its `ml-models` repository).

`visual/model.onnx`: `image` float32 `[1, 3, H, W]` -> `embedding` `[1, E]`, of length one;
`textual/model.onnx`: `text` int32 `[1, C]` -> `embedding`. The server resizes so that the short
side fits, crops the centre, and normalizes; it pads texts with `pad_token` to the context length.
"""

from __future__ import annotations

from typing import Any

from regcache_engines.bundle import PREPROCESS, Bundle
from regcache_engines.preprocess import MEAN, STD, resizing
from regcache_engines.preprocess_config import output_size
from regcache_engines.text_config import LONGEST

from ..errors import ConfigError
from ..graph import INPUT_NAME, serialize
from .towers import (
    image_tower,
    json_bytes,
    normalize_output,
    one_image,
    one_text,
    rename_end,
    special_token,
    text_tower,
    vocabulary_size,
)

IMAGE, TEXT, EMBEDDING = "image", "text", "embedding"

DEFAULTS: dict[str, Any] = {
    "mode": "RGB",
    "mean": list(MEAN),
    "std": list(STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
"""Of open_clip, which the server does not know."""


def immich_files(bundle: Bundle) -> dict[str, bytes]:
    """Files by name.

    Raises:
        ConfigError: the preprocessing or the form of the graph is one that the server lacks.
        BundleError: the bundle is damaged.
    """
    _check(bundle)
    visual = image_tower(bundle)
    one_image(visual)
    rename_end(visual, INPUT_NAME, IMAGE)
    normalize_output(visual, EMBEDDING)
    size = list(output_size(bundle.preprocess))
    preprocess = DEFAULTS | bundle.preprocess | {"size": size}
    dim = bundle.manifest["graph"]["output"]["shape"][-1]
    config: dict[str, Any] = {"embed_dim": dim, "vision_cfg": {"image_size": size}}
    files = {
        "visual/model.onnx": serialize(visual),
        f"visual/{PREPROCESS}": json_bytes(preprocess),
    }
    found = text_tower(bundle)
    if found is not None:
        textual, text, words = found
        one_image(textual)
        one_text(textual, TEXT, text, text.padding == LONGEST and text.pooling != "mean")
        normalize_output(textual, EMBEDDING)
        pad = special_token(words, text.pad_id)
        config["text_cfg"] = {
            "context_length": text.context_length,
            "vocab_size": vocabulary_size(words),
        }
        files |= {
            "textual/model.onnx": serialize(textual),
            "textual/tokenizer.json": json_bytes(words),
            "textual/tokenizer_config.json": json_bytes(
                {"pad_token": pad, "model_max_length": text.context_length}
            ),
        }
    return {"config.json": json_bytes(config), **files}


def _check(bundle: Bundle) -> None:
    config = bundle.preprocess
    height, width = output_size(config)
    if height != width:
        raise ConfigError(
            f"immich takes square images, and {bundle.path} those of {height}x{width}"
        )
    mode, crop, share = resizing(config)
    if mode not in ("shortest", "squash") or crop not in ("center", "squash"):
        raise ConfigError(f"immich has no resizing '{mode}' with crop '{crop}'")
    if share != 1:
        raise ConfigError(
            f"immich resizes to the size itself, and {bundle.path} to its "
            f"{1 / share:.3f}-fold before the crop"
        )
