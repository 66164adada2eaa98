"""CLIP's and SigLIP's text towers as transformers names their parameters, and their tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regcache_engines.documents import read_document
from regcache_export.text_spec import TextSpec

from ..compat import require
from ..errors import ModelError, UnsupportedEncoderError
from .model_files import ModelFiles, read_json
from .parameters import Parameters
from .reading import Weights, contiguous
from .text_encoder import TextEncoder
from .text_tokenizer import TextTokenizer, byte_pairs, lowered
from .transformers_blocks import read_blocks
from .transformers_clip import NAMES
from .transformers_config import Fields

CLIP_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}
SIGLIP_TEXT = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}
TEXT_DEFAULTS = {"clip": CLIP_TEXT, "metaclip_2": CLIP_TEXT, "siglip": SIGLIP_TEXT}
"""Of the configuration classes, by `model_type` of the whole model."""

ANCHOR = "embeddings.token_embedding.weight"
LEGACY_EOS = 2
"""Written by old releases for CLIP whatever the end token is; transformers then takes the token of
the highest id."""

POSITION_IDS = r"(?:.*\.)?text_model\..*position_ids$"


def read_text(
    config: Mapping[str, Any], parameters: Parameters, where: str
) -> tuple[TextEncoder, Fields] | None:
    """The text tower of a whole model, and its fields; None where the file holds no tower.

    Args:
        config: of the whole model.
        parameters: its weights; those of the tower are taken.
        where: the configuration's file, for messages.

    Raises:
        ModelError: a weight is missing, or a field is none.
        UnsupportedEncoderError: the tower does not fit; the message names the feature.
    """
    kind = str(config.get("model_type"))
    if kind not in TEXT_DEFAULTS or not parameters.has(ANCHOR):
        return None
    values = config.get("text_config_dict") or config.get("text_config") or {}
    if not isinstance(values, Mapping):
        raise ModelError(f"{where}: text_config is no JSON object")
    fields = Fields(values, TEXT_DEFAULTS[kind], f"text_config of {where}")
    top = parameters.prefix((ANCHOR,))
    parameters.leave_out(POSITION_IDS)
    head = _head(parameters, kind, top)
    width, eos = fields.count("hidden_size"), fields.count("eos_token_id")
    pooling = "last" if kind == "siglip" else "eos"
    if kind == "clip" and eos == LEGACY_EOS:
        pooling = "argmax"
    spec = TextSpec(
        vocab_size=fields.count("vocab_size"),
        context_length=fields.count("max_position_embeddings"),
        width=width,
        depth=fields.count("num_hidden_layers"),
        heads=fields.count("num_attention_heads"),
        mlp_width=fields.count("intermediate_size"),
        output_dim=len(head["proj.weight"]),
        activation=fields.activation(),
        norm_eps=fields.number("layer_norm_eps"),
        causal=kind != "siglip",
        pooling=pooling,
        eos_id=eos if pooling == "eos" else None,
    )
    weights = {
        "token_embed.weight": parameters.take(f"{top}{ANCHOR}"),
        "pos_embed": parameters.take(f"{top}embeddings.position_embedding.weight"),
        **parameters.affine("norm", f"{top}final_layer_norm"),
        **read_blocks(parameters, f"{top}encoder.layers.", spec, NAMES),
        **head,
    }
    for name, shape in spec.weight_shapes().items():
        if weights[name].shape != shape:
            raise ModelError(
                f"{parameters.where}: {name} of the text tower has shape "
                f"{list(weights[name].shape)}, and {fields.where} says {list(shape)}"
            )
    return TextEncoder(spec, contiguous(weights)), fields


def _head(parameters: Parameters, kind: str, top: str) -> Weights:
    if kind == "siglip":
        return parameters.affine("proj", f"{top}head")
    name = "text_projection"
    return parameters.affine("proj", parameters.prefix((f"{name}.weight",)) + name, bias=False)


def has_tokenizer(files: ModelFiles) -> bool:
    """Whether there are files to make the tokenizer from."""
    return files.find("tokenizer.json") is not None or (
        files.find("vocab.json") is not None and files.find("merges.txt") is not None
    )


def read_tokenizer(files: ModelFiles, encoder: TextEncoder, fields: Fields) -> TextTokenizer:
    """The tokenizer beside a model: `tokenizer.json`, or CLIP's vocabulary and merges.

    Raises:
        ConfigError: `tokenizers` is not installed.
        ModelError: neither is there, or a file cannot be read.
        UnsupportedEncoderError: it pads on the left.
    """
    library = require("tokenizers", "text")
    path = files.find("tokenizer.json")
    if path is not None:
        try:
            made = library.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise ModelError(f"{path} is no tokenizer: {error}") from error
        made.no_truncation()
        made.no_padding()
    else:
        made = _from_merges(files)
    found = files.find("tokenizer_config.json")
    settings = read_json(found) if found is not None else {}
    if settings.get("padding_side", "right") != "right":
        raise UnsupportedEncoderError("a tokenizer that pads on the left")
    pad = settings.get("pad_token")
    token = pad.get("content") if isinstance(pad, Mapping) else pad
    number = made.token_to_id(token) if isinstance(token, str) else None
    if number is None:
        number = fields.identifier("pad_token_id")
    return TextTokenizer(made, encoder.spec.context_length, number, html_unescape=False)


def _from_merges(files: ModelFiles) -> Any:
    vocabulary, merges = files.find("vocab.json"), files.find("merges.txt")
    if vocabulary is None or merges is None:
        raise ModelError(f"{files.absence('tokenizer.json')}, nor vocab.json with merges.txt")
    ids = read_json(vocabulary)
    start, end = "<|startoftext|>", "<|endoftext|>"
    if not {start, end} <= ids.keys():
        raise ModelError(f"{vocabulary} is not CLIP's vocabulary: it lacks {start} or {end}")
    try:
        lines = read_document(merges).split("\n")
    except (OSError, ValueError) as error:
        raise ModelError(f"{merges} cannot be read as UTF-8 text: {error}") from error
    made = byte_pairs(ids, [line for line in lines[1:] if line.count(" ") == 1], start, end)
    made.normalizer = lowered()
    return made
