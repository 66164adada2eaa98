"""A bundle's two graphs with other ends: names, types, batch, length one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from regcache_engines.bundle import MODEL, Bundle
from regcache_engines.text_config import TEXT_FILES, TextConfig

from ..errors import BundleError, ConfigError

MIN_NORM = 1e-12
"""Floor of a norm, as in torch's `normalize`."""


def image_tower(bundle: Bundle) -> onnx.ModelProto:
    """The image side's graph.

    Raises:
        ConfigError: it takes raw pixels, or a fixed batch other than 1.
        BundleError: the file is damaged.
    """
    graph = bundle.manifest["graph"]
    if graph["input"]["dtype"] != "float32":
        raise ConfigError(
            f"{bundle.path} takes raw pixels (--bake-preprocess), and this layout's readers "
            "normalize themselves; export without it"
        )
    model = _parse(bundle, MODEL)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param and batch.dim_value != 1:
        raise ConfigError(
            f"{bundle.path} is for batches of {batch.dim_value}; export without --batch"
        )
    del model.graph.output[1:]  # probes
    return model


def text_tower(bundle: Bundle) -> tuple[onnx.ModelProto, TextConfig, dict[str, Any]] | None:
    """The text side's graph, its configuration and its tokenizer; None without one.

    Raises:
        BundleError: a file is damaged.
    """
    if not bundle.has_text:
        return None
    name, tokenizer, config = TEXT_FILES
    parsed = TextConfig.parse(bundle.read(config), str(bundle.path / config))
    try:
        words = json.loads(bundle.read(tokenizer))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{bundle.path / tokenizer} is not readable ({error})") from error
    if not isinstance(words, dict):
        raise BundleError(f"{bundle.path / tokenizer} holds no JSON object")
    return _parse(bundle, name), parsed, words


def rename_end(model: onnx.ModelProto, old: str, new: str) -> None:
    """Give the graph's input or output `old` another name, everywhere."""
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.name == old:
            value.name = new
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new


def one_image(model: onnx.ModelProto) -> None:
    """Fix the batch to 1."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = 1
    # shapes of inner tensors that name the batch say less than a runtime finds out itself
    del model.graph.value_info[:]


def normalize_output(model: onnx.ModelProto, name: str) -> None:
    """Put the L2 norm into the graph, under the output's new name."""
    graph, old = model.graph, model.graph.output[0].name
    inner = f"{old}/not_normalized"
    rename_end(model, old, inner)
    floor = numpy_helper.from_array(np.asarray(MIN_NORM, np.float32), "l2/floor")
    axes = numpy_helper.from_array(np.asarray([1], np.int64), "l2/axes")
    graph.initializer.extend([floor, axes])
    graph.node.extend(
        [
            helper.make_node("ReduceL2", [inner, "l2/axes"], ["l2/norm"], "l2/ReduceL2"),
            helper.make_node("Max", ["l2/norm", "l2/floor"], ["l2/length"], "l2/Max"),
            helper.make_node("Div", [inner, "l2/length"], [name], "l2/Div"),
        ]
    )
    graph.output[0].name = name


def one_text(model: onnx.ModelProto, name: str, config: TextConfig, any_length: bool) -> None:
    """Take one text as int32 ids `[1, C]`.

    Args:
        model: in place.
        name: of the new input.
        config: of the tower.
        any_length: what stands behind a text's end is cut off inside the graph, so that padding
            costs no time and, with dynamic ranges, changes no embedding.
    """
    graph = model.graph
    (ids,) = graph.input
    cast = helper.make_node("Cast", [name], ["ids/long"], "ids/Cast", to=TensorProto.INT64)
    if any_length:
        constants = {"ids/0": [0], "ids/1": [1], "ids/axis": [1]}
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value, np.int64), key)
            for key, value in constants.items()
        )
        marks, nodes = name, []
        if config.pooling == "eos":
            end = numpy_helper.from_array(np.asarray(config.eos_id, np.int32), "ids/end")
            graph.initializer.append(end)
            nodes += [
                helper.make_node("Equal", [name, "ids/end"], ["ids/is_end"], "ids/Equal"),
                helper.make_node(
                    "Cast", ["ids/is_end"], ["ids/marks"], "ids/marks/Cast", to=TensorProto.INT32
                ),
            ]
            marks = "ids/marks"
        nodes += [
            cast,
            helper.make_node("ArgMax", [marks], ["ids/last"], "ids/ArgMax", axis=1, keepdims=0),
            helper.make_node("Add", ["ids/last", "ids/1"], ["ids/length"], "ids/Add"),
            helper.make_node(
                "Slice", ["ids/long", "ids/0", "ids/length", "ids/axis"], [ids.name], "ids/Slice"
            ),
        ]
    else:
        cast.output[0] = ids.name
        nodes = [cast]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    shape = [1, config.context_length]
    graph.input[0].CopyFrom(helper.make_tensor_value_info(name, TensorProto.INT32, shape))
    del graph.value_info[:]


def special_token(words: dict[str, Any], number: int) -> str:
    """The token with an id.

    Raises:
        BundleError: the tokenizer has none.
    """
    for token in words.get("added_tokens") or ():
        if token.get("id") == number:
            return str(token["content"])
    vocabulary = words.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # a unigram model: pieces with their scores
        return str(vocabulary[number][0])
    for token, known in vocabulary.items():
        if known == number:
            return str(token)
    raise BundleError(f"the tokenizer has no token {number}")


def vocabulary_size(words: dict[str, Any]) -> int:
    """How many ids the tokenizer has."""
    vocabulary = words.get("model", {}).get("vocab", {})
    known = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
    added = (token["id"] for token in words.get("added_tokens") or ())
    return max([*known, *added], default=-1) + 1


def json_bytes(document: Any) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def _parse(bundle: Bundle, name: str) -> onnx.ModelProto:
    try:
        return onnx.load_from_string(bundle.read(name))
    except BundleError:
        raise
    except Exception as error:  # protobuf's own kinds
        raise BundleError(f"{bundle.path / name} is no ONNX file ({error})") from error
