"""The folder that transformers.js reads: two towers of a CLIP.

`onnx/vision_model_quantized.onnx`: `pixel_values` `[b, 3, H, W]` -> `image_embeds` `[b, E]`;
`onnx/text_model_quantized.onnx` (`text_model.onnx` where the text tower's weights are not INT8):
`input_ids` int64 `[b, L]` -> `text_embeds`. Neither output is of length one, as with the files of
others. Every encoder goes by CLIP's name, whatever it is: the library chooses its classes by it,
and all that they do is run the files.
"""

from __future__ import annotations

from typing import Any

from regcache_engines.bundle import Bundle
from regcache_engines.preprocess import MEAN, STD, resizing
from regcache_engines.preprocess_config import output_size
from regcache_engines.text_config import INPUT, OUTPUT

from ..errors import ConfigError
from ..graph import INPUT_NAME, OUTPUT_NAME, serialize
from .towers import (
    image_tower,
    json_bytes,
    rename_end,
    special_token,
    text_tower,
    vocabulary_size,
)

PIXELS, IMAGE_EMBEDS = "pixel_values", "image_embeds"
RESAMPLE = {"bilinear": 2, "bicubic": 3, "random": 3}
"""Pillow's numbers, which the files of image processors have."""

assert (INPUT, OUTPUT) == ("input_ids", "text_embeds"), "the library's names of the text tower"


def transformers_files(bundle: Bundle) -> dict[str, bytes]:
    """Files by name.

    Raises:
        ConfigError: the preprocessing or the form of the graph is one that the library lacks.
        BundleError: the bundle is damaged.
    """
    processor = _processor(bundle)
    vision = image_tower(bundle)
    rename_end(vision, INPUT_NAME, PIXELS)
    rename_end(vision, OUTPUT_NAME, IMAGE_EMBEDS)
    height, width = output_size(bundle.preprocess)
    dim = bundle.manifest["graph"]["output"]["shape"][-1]
    config: dict[str, Any] = {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": dim,
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": max(height, width),
            "projection_dim": dim,
        },
    }
    files = {
        "preprocessor_config.json": json_bytes(processor),
        "onnx/vision_model_quantized.onnx": serialize(vision),
    }
    found = text_tower(bundle)
    if found is not None:
        textual, text, words = found
        suffix = "_quantized" if text.precision == "int8" else ""
        config["text_config"] = {
            "model_type": "clip_text_model",
            "max_position_embeddings": text.context_length,
            "vocab_size": vocabulary_size(words),
            "pad_token_id": text.pad_id,
            "eos_token_id": text.eos_id,
            "projection_dim": dim,
        }
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": text.context_length,
            "pad_token": special_token(words, text.pad_id),
        }
        files |= {
            f"onnx/text_model{suffix}.onnx": serialize(textual),
            "tokenizer.json": json_bytes(words),
            "tokenizer_config.json": json_bytes(settings),
        }
    return {"config.json": json_bytes(config), **files}


def _processor(bundle: Bundle) -> dict[str, Any]:
    """The image processor's file, in the words of transformers."""
    config = bundle.preprocess
    height, width = output_size(config)
    mode, crop, share = resizing(config)
    if mode == "shortest" and height == width and crop == "center":
        size: dict[str, int] = {"shortest_edge": int(height / share)}
    elif mode == "squash" and share == 1:
        size = {"height": height, "width": width}
    else:
        raise ConfigError(
            f"transformers has no resizing '{mode}' to {height}x{width} with crop '{crop}'"
        )
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": RESAMPLE[config.get("interpolation", "bicubic")],
        "do_center_crop": mode == "shortest",
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.get("mean", MEAN)),
        "image_std": list(config.get("std", STD)),
    }
