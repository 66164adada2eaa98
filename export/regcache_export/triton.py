"""A bundle as a model repository of NVIDIA Triton Inference Server.

    DIR/NAME/config.pbtxt
    DIR/NAME/1/model.onnx

The configuration follows the fields of Triton's `model_config.proto`. The graph's first dimension
is Triton's batch where it is free; a graph of fixed batch size is served whole (`max_batch_size:
0`), because Triton would add a dimension of its own.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from regcache_engines.bundle import MODEL, Bundle

from .errors import BundleError, ConfigError
from .files import atomic_write_bytes

TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}
MAX_BATCH = 32
QUEUE_US = 500
"""How long Triton may wait for more images to fill a batch, in microseconds."""


def model_name(bundle: Bundle) -> str:
    """The bundle's name in letters that a repository folder may have."""
    name = bundle.path.resolve().name.removesuffix(".regcache")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def triton_config(bundle: Bundle, name: str, max_batch: int = MAX_BATCH, gpu: bool = False) -> str:
    """The text of `config.pbtxt`.

    Args:
        bundle: open.
        name: of the model; Triton wants it to be the folder's.
        max_batch: largest batch that Triton may form.
        gpu: run on GPUs, with the TensorRT accelerator for a bundle of `--target tensorrt`.

    Raises:
        BundleError: the manifest describes no graph.
        ConfigError: `max_batch` is below 1.
    """
    if max_batch < 1:
        raise ConfigError(f"a batch of {max_batch} is out of range: take at least 1")
    try:
        graph = bundle.manifest["graph"]
        source, result, target = graph["input"], graph["output"], graph["target"]
        fixed = isinstance(source["shape"][0], int)
        tensors = [_tensor(kind, fixed) for kind in (source, result)]
    except (KeyError, IndexError, TypeError) as error:
        raise BundleError(
            f"the manifest of {bundle.path} describes no graph ({error!r}); export it again"
        ) from error
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {0 if fixed else max_batch}",
        f"input [\n{tensors[0]}\n]",
        f"output [\n{tensors[1]}\n]",
        f"instance_group [\n  {{ count: 1 kind: {'KIND_GPU' if gpu else 'KIND_CPU'} }}\n]",
    ]
    if not fixed:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_US} }}")
    if gpu and target == "tensorrt":
        lines.append(
            "optimization {\n  execution_accelerators {\n    gpu_execution_accelerator [ { name: "
            '"tensorrt" } ]\n  }\n}'
        )
    return "\n".join(lines) + "\n"


def write_model_repository(
    bundle: Bundle, folder: Path, max_batch: int = MAX_BATCH, gpu: bool = False
) -> Path:
    """Write `NAME/config.pbtxt` and `NAME/1/model.onnx` into `folder`.

    Put together beside its place and renamed, so that a running server never sees half of it.

    Returns:
        `folder/NAME`.

    Raises:
        BundleError: as `triton_config`; or NAME is there already and is no model of Triton.
    """
    name = model_name(bundle)
    config = triton_config(bundle, name, max_batch, gpu)
    place = folder / name
    if place.exists() and not (place / "config.pbtxt").is_file():
        raise BundleError(f"{place} exists and is no model of Triton; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder))
    try:
        staging.chmod(0o755)  # the server runs as another user
        (staging / "1").mkdir()
        shutil.copyfile(bundle.model_path, staging / "1" / MODEL)
        atomic_write_bytes(staging / "config.pbtxt", config.encode())
        if place.exists():
            shutil.rmtree(place)
        staging.rename(place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return place


def _tensor(description: dict[str, Any], fixed: bool) -> str:
    shape = description["shape"] if fixed else description["shape"][1:]
    dims = ", ".join(str(int(size)) for size in shape)
    kind = TYPES[description["dtype"]]
    return f'  {{ name: "{description["name"]}" data_type: {kind} dims: [ {dims} ] }}'
