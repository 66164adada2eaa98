"""A bundle as a model repository of NVIDIA Triton Inference Server.

    DIR/NAME/config.pbtxt
    DIR/NAME/1/model.onnx      # or model.plan: an engine that `regcache build` made from the bundle

The configuration follows the fields of Triton's `model_config.proto`. The graph's first dimension
is Triton's batch where it is free; a graph of fixed batch size is served whole (`max_batch_size:
0`), because Triton would add a dimension of its own. The ONNX file is served on the CPU: on a GPU,
Triton's ONNX Runtime would take its kernels in one precision, and the engine has its own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from regcache_engines.bundle import MODEL, Bundle
from regcache_engines.files import sha256_bytes
from regcache_engines.tensorrt.sidecar import Sidecar

from .errors import BundleError, ConfigError, EngineError
from .files import atomic_write_bytes, staged_folder

TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}
MAX_BATCH = 32
QUEUE_US = 500
"""How long Triton may wait for more images to fill a batch, in microseconds."""


def model_name(bundle: Bundle) -> str:
    """The bundle's name in letters that a repository folder may have."""
    name = bundle.path.resolve().name.removesuffix(".regcache")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def triton_config(bundle: Bundle, name: str, max_batch: int = MAX_BATCH) -> str:
    """The text of `config.pbtxt` for the ONNX file, on the CPU.

    Args:
        bundle: open.
        name: of the model; Triton wants it to be the folder's.
        max_batch: largest batch that Triton may form.

    Raises:
        BundleError: the manifest describes no graph.
        ConfigError: `max_batch` is below 1.
    """
    if max_batch < 1:
        raise ConfigError(f"a batch of {max_batch} is out of range: take at least 1")
    try:
        graph = bundle.manifest["graph"]
        source, result = graph["input"], graph["output"]
        fixed = isinstance(source["shape"][0], int)
        tensors = [_tensor(kind, fixed) for kind in (source, result)]
    except (KeyError, IndexError, TypeError) as error:
        raise BundleError(
            f"the manifest of {bundle.path} describes no graph ({error!r}); export it again"
        ) from error
    largest = 0 if fixed else max_batch
    lines = _head(name, 'backend: "onnxruntime"', largest, tensors, "KIND_CPU")
    if not fixed:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_US} }}")
    return "\n".join(lines) + "\n"


def engine_config(sidecar: Sidecar, name: str) -> str:
    """The text of `config.pbtxt` for an engine; CUDA graphs on, as our own runtime has them.

    Raises:
        ConfigError: the engine takes no batch below its smallest one, and Triton may send any.
    """
    profile = sidecar.profile
    fixed = profile.min == profile.max
    if profile.min > 1 and not fixed:
        raise ConfigError(
            f"the engine takes {profile.min} to {profile.max} images and Triton may send fewer; "
            "build it with --min-batch 1"
        )
    source = {
        "name": sidecar.input_name,
        "dtype": sidecar.input_dtype,
        "shape": [profile.max, *sidecar.image_shape],
    }
    result = {
        "name": sidecar.output_name,
        "dtype": "float32",
        "shape": [profile.max, sidecar.output_dim],
    }
    tensors = [_tensor(kind, fixed) for kind in (source, result)]
    largest = 0 if fixed else profile.max
    lines = _head(name, 'platform: "tensorrt_plan"', largest, tensors, "KIND_GPU")
    if not fixed:
        lines.append(
            f"dynamic_batching {{ preferred_batch_size: [ {profile.opt} ] "
            f"max_queue_delay_microseconds: {QUEUE_US} }}"
        )
    lines.append("optimization { cuda { graphs: true } }")
    return "\n".join(lines) + "\n"


def write_model_repository(
    bundle: Bundle, folder: Path, max_batch: int = MAX_BATCH, engine: Path | None = None
) -> Path:
    """Write `NAME/config.pbtxt` and `NAME/1/model.onnx`, or `model.plan`, into `folder`.

    Put together beside its place and renamed, so that a running server never sees half of it.

    Args:
        bundle: open.
        folder: the repository.
        max_batch: as `triton_config`; an engine has its own.
        engine: `KEY.engine` with its sidecar, built from this bundle; Triton must have the same
            TensorRT version.

    Returns:
        `folder/NAME`.

    Raises:
        BundleError: as `triton_config`; or NAME is there already and is no model of Triton.
        ConfigError: as `triton_config` and `engine_config`.
        EngineError: the engine is not whole, has no weights, or was built from another file.
    """
    name = model_name(bundle)
    if engine is None:
        data, target = bundle.read(MODEL), MODEL
        config = triton_config(bundle, name, max_batch)
    else:
        target = "model.plan"
        sidecar, data = _engine_of(engine, bundle)
        config = engine_config(sidecar, name)
    place = folder / name
    if place.exists() and not (place / "config.pbtxt").is_file():
        raise BundleError(f"{place} exists and is no model of Triton; choose another folder")
    with staged_folder(place) as staging:
        (staging / "1").mkdir()
        atomic_write_bytes(staging / "1" / target, data)
        atomic_write_bytes(staging / "config.pbtxt", config.encode())
    place.chmod(0o755)  # the server runs as another user
    return place


def _engine_of(engine: Path, bundle: Bundle) -> tuple[Sidecar, bytes]:
    sidecar = Sidecar.read(engine.with_suffix(".json"))
    if sidecar.engine != "tensorrt":
        raise EngineError(f"{engine} is for {sidecar.engine}, which Triton does not serve")
    sidecar.require_weights(engine)
    data = engine.read_bytes() if engine.is_file() else b""
    if sha256_bytes(data) != sidecar.engine_sha256:
        raise EngineError(f"{engine} is not the file that was built; run: regcache build")
    if sha256_bytes(bundle.read(MODEL)) != sidecar.onnx_sha256:
        raise EngineError(
            f"{engine} was built from another file than {bundle.path}; build it again"
        )
    return sidecar, data


def _head(name: str, runs: str, max_batch: int, tensors: list[str], kind: str) -> list[str]:
    return [
        f'name: "{name}"',
        runs,
        f"max_batch_size: {max_batch}",
        f"input [\n{tensors[0]}\n]",
        f"output [\n{tensors[1]}\n]",
        f"instance_group [\n  {{ count: 1 kind: {kind} }}\n]",
    ]


def _tensor(description: dict[str, Any], fixed: bool) -> str:
    shape = description["shape"] if fixed else description["shape"][1:]
    dims = ", ".join(str(int(size)) for size in shape)
    kind, name = TYPES[description["dtype"]], description["name"]
    if not re.fullmatch(r"[A-Za-z0-9_./:-]{1,200}", name):
        raise BundleError(f"a tensor of the bundle is called {name!r}, which Triton cannot be told")
    return f'  {{ name: "{name}" data_type: {kind} dims: [ {dims} ] }}'
