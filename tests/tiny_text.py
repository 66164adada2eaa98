"""A text tower so small that it is written by hand: the mean of word vectors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from regcache_engines.text_config import INPUT, OUTPUT, TEXT_FORMAT

WORDS = ("[PAD]", "[UNK]", "a", "photo", "of", "cat", "dog", "beach", "the", "on")
CONTEXT = 6


def tower_files(dim: int, seed: int = 0) -> dict[str, bytes]:
    """The three files of a bundle's folder `text`, for embeddings of length `dim`."""
    draw = np.random.default_rng(seed)
    table = draw.normal(size=(len(WORDS), dim)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", INPUT], ["rows"]),
            helper.make_node("ReduceMean", ["rows", "axes"], [OUTPUT], keepdims=0),
        ],
        "text",
        [helper.make_tensor_value_info(INPUT, TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", dim])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([1], np.int64), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: index for index, word in enumerate(WORDS)},
            "unk_token": "[UNK]",
        },
    }
    settings = {
        "format": TEXT_FORMAT,
        "embedding": dim,
        "context_length": CONTEXT,
        "padding": "context_length",
        "pad_id": 0,
        "eos_id": None,
        "pooling": "last",
        "lower_case": True,
        "html_unescape": False,
        "precision": "float32",
        "cosine": {"mean": 1.0, "lowest": 1.0, "texts": 1},
        "logit_scale": 100.0,
        "logit_bias": None,
        "weights_sha256": hashlib.sha256(table.tobytes()).hexdigest(),
        "templates": ["a photo of a {}"],
        "l2_normalized": False,
    }
    return {
        "text/model.onnx": model.SerializeToString(),
        "text/tokenizer.json": json.dumps(tokenizer).encode(),
        "text/text.json": json.dumps(settings).encode(),
    }


def with_text(bundle: Path, dim: int) -> Path:
    """Put a text tower into a bundle."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "text").mkdir()
    for name, data in tower_files(dim).items():
        (bundle / name).write_bytes(data)
        entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        manifest["files"][name] = entry
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle
