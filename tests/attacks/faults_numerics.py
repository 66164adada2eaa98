"""Weights, images and graphs whose figures are not figures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from PIL import Image

from regcache_deploy.errors import (
    ConfigError,
    DataError,
    EngineError,
    VerificationError,
)
from tests.attacks.fault import Act, Fault, Place
from tests.attacks.faults_bundles import MODEL, evaluate, model, verify
from tests.attacks.faults_images import every, images
from tests.attacks.faults_weights import damaged, ignore, weights
from tests.cpp.damaging import replace_file

QKV, FC2 = "blocks.1.attn.qkv.weight", "blocks.1.mlp.fc2.weight"


def all_of(name: str, number: float) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: ignore(tensors[name].fill_(number))


def times(name: str, factor: float) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: ignore(tensors[name].mul_(factor))


def paint(colour: int) -> Callable[[Path], None]:
    return lambda path: Image.new("RGB", (40, 36), (colour,) * 3).save(path)


def constant(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[onnx.ModelProto], None]:
    def apply(graph: onnx.ModelProto) -> None:
        tensor = next(t for t in graph.graph.initializer if name in t.name)
        value = numpy_helper.to_array(tensor).copy()
        change(value)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

    return apply


def fill(number: float) -> Callable[[np.ndarray], None]:
    return lambda value: value.fill(number)


def built(*more: str) -> Act:
    """A decision about a bundle, on images of which `build` holds some back."""

    def act(place: Place) -> list[str]:
        words = ["build", str(place.bundle()), "--engine", "onnxruntime", "--data"]
        words += [str(place.images()), "--output", str(place.out), "--threads", "1"]
        return [*words, *more]

    return act


def other_codes(bundle: Path, place: Place) -> None:
    """A weight's code of one linear, with the right hash."""
    graph = onnx.load(bundle / MODEL)
    kind = onnx.TensorProto.INT8
    tensor = max(
        (t for t in graph.graph.initializer if t.data_type == kind), key=lambda t: len(t.raw_data)
    )
    data = bytearray(tensor.raw_data)
    data[0] = (data[0] + 1) % 128
    tensor.raw_data = bytes(data)
    replace_file(bundle, MODEL, graph.SerializeToString())


fault = partial(Fault, "numerics", seconds=120)

FAULTS = [
    fault("code", "one weight's code", verify(other_codes), error=VerificationError),
    fault("bias-nan", "a NaN in a bias of the graph", verify(
        model(constant("fc2.bias", fill(float("nan"))))), error=EngineError),
    fault("output-nan", "a graph that answers NaN", evaluate(
        model(constant("fc2.bias", fill(float("nan"))))), error=EngineError),
    fault("overflow", "weights whose products overflow", damaged(weights(times(FC2, 1e38))),
          error=DataError),
    fault("dead-linear", "a linear of zeros: scales of 0", damaged(weights(all_of(FC2, 0.0))),
          error=None, quick=False),
    fault("dead-keys", "queries, keys and values of zeros", damaged(weights(all_of(QKV, 0.0))),
          error=None, quick=False),
    fault("tiny", "weights of 1e-38", damaged(weights(times(FC2, 1e-38))), error=None,
          quick=False),
    fault("black", "black images alone", images(every(paint(0))), error=None, quick=False),
    fault("equal", "one image, 64 times", images(every(paint(90))), error=None, quick=False),
    fault("budget-nan", "a budget of NaN points", built("--max-drop", "nan"), error=ConfigError),
    fault("budget-negative", "a budget of -1 points", built("--max-drop", "-1"),
          error=ConfigError),
    fault("speed-infinite", "a speed-up of infinity", built("--min-speedup", "inf"),
          error=ConfigError),
]  # fmt: skip
