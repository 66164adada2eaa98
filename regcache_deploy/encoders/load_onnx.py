"""`--model onnx:FILE`: a float ViT from an ONNX export, described by the `config.json` beside it.

That the weights were understood is not believed but tried: the file itself runs on one image.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

from regcache_engines.onnxruntime_session import import_onnxruntime

from ..errors import ConfigError, EngineError, ModelError
from .canonical import Encoder
from .checkpoint import explain
from .load_transformers import load_transformers
from .model import LoadedModel
from .model_files import Folder
from .names import ONNX
from .onnx_weights import read_onnx
from .source import CONFIG

MAX_ERROR = 1e-2
"""Relative difference of the embedding; files in half precision have rounded weights."""

log = logging.getLogger(__name__)


def load_onnx(
    name: str, pretrained: str | None, image_size: tuple[int, int] | None = None
) -> LoadedModel:
    """Load the image tower of an ONNX file.

    Args:
        name: `onnx:FILE`.
        pretrained: must be None.
        image_size: another input size, if the file takes it.

    Raises:
        ConfigError: weights beside those of the file.
        ModelError: no description beside it, a file that is quantized or of another kind, or
            an encoder that does not compute what the file computes.
        UnsupportedEncoderError: as in `load_model`.
    """
    if pretrained is not None:
        raise ConfigError(f"{name} brings its own weights; leave --pretrained out")
    path = Path(name.removeprefix(ONNX))
    tensors = read_onnx(path)
    model = load_transformers(name, folder_of(path), None, image_size, weights=(tensors, str(path)))
    compare(path, model.encoder)
    return model


def folder_of(path: Path) -> Folder:
    """The folder with the file's description: its own, or the one above (`onnx/FILE`).

    Raises:
        ModelError: neither has one.
    """
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    for folder in (path.parent, path.parent.parent):
        if (folder / CONFIG).is_file():
            return Folder(folder)
    raise ModelError(
        f"there is no {CONFIG} beside {path} or in the folder above: a graph says neither the "
        "number of heads nor the preprocessing; place the model's own there"
    )


@torch.no_grad()
def compare(path: Path, encoder: Encoder) -> None:
    """Run the file on one random image, and compare its embedding with the encoder's.

    Raises:
        ModelError: they differ, or no output has the embedding's shape.
    """
    try:
        onnxruntime = import_onnxruntime()
    except EngineError as error:
        log.warning("%s: its output was not compared: %s", path, error)
        return
    images = torch.randn(1, 3, *encoder.spec.image_size, generator=torch.Generator().manual_seed(0))
    expected = encoder(images).numpy()
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        inputs = {i.name: i for i in session.get_inputs()}
        if set(inputs) != {"pixel_values"}:
            raise ModelError(
                f"{path} takes {', '.join(inputs)}; an image tower takes pixel_values alone"
            )
        kind = np.float16 if inputs["pixel_values"].type == "tensor(float16)" else np.float32
        outputs = session.run(None, {"pixel_values": images.numpy().astype(kind)})
    except ModelError:
        raise
    except Exception as error:  # onnxruntime raises kinds of its own
        raise ModelError(f"{path} does not run: {explain(error)}") from error
    same = [out.astype(np.float32) for out in outputs if out.shape == expected.shape]
    if not same:
        raise ModelError(
            f"no output of {path} has the shape {expected.shape} of an embedding; it has "
            f"{', '.join(str(out.shape) for out in outputs)}"
        )
    far = min(float(np.abs(out - expected).max()) for out in same)
    far /= float(np.abs(expected).max())
    if not far <= MAX_ERROR:
        raise ModelError(
            f"{path} computes something else than its {CONFIG} says: embeddings of one image "
            f"differ by {far:.1e} of their largest number"
        )
    log.info("%s: its own embedding of one image differs by %.1e", path, far)
