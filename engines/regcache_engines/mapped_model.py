"""A model in ONNX Runtime's own format, mapped into memory, so that processes share its weights."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .cpu_flags import may_saturate
from .errors import ConfigError, EngineError
from .files import atomic_write_bytes, held, sha256_bytes, sha256_file
from .onnx_wire import has_external_data
from .onnxruntime_session import OWN_FORMAT, import_onnxruntime, open_session

if TYPE_CHECKING:
    from .model_file import ModelFile


def mapped_model(file: ModelFile, folder: Path) -> Path:
    """The model of `file` in ONNX Runtime's format, made where `folder` does not hold it yet.

    It is already optimized, for this release of ONNX Runtime and for CPUs that need u8s8 products
    mended, or do not, as this one; machines may share the folder. Its name is a hash of these and
    of the model, and one of its bytes, which are held against it. Processes that ask for it at once
    wait for the one that makes it. Sums in float are made in another order than those of repacked
    weights, so that features differ in their last bits.

    Args:
        folder: one's own: what lies there under that name is run, and must not be changed while it
            is mapped.

    Raises:
        ConfigError: the folder cannot be read or written.
        EngineError: the model does not load, or keeps weights in files beside it; or what the
            folder holds is damaged.
    """
    source = file.source()
    data = source if isinstance(source, bytes) else source.read_bytes()
    if has_external_data(data):
        raise EngineError(f"{file.path} keeps weights in other files, and cannot be mapped")
    made = import_onnxruntime().__version__, platform.machine(), str(may_saturate())
    key = sha256_bytes(" ".join((sha256_bytes(data), *made)).encode())
    found = _found(folder, key)
    if found is None:
        with held(folder):  # no two files are alike, and whoever starts at once shares one
            found = _found(folder, key) or _made(data, file.path, folder, key)
    return found


def _found(folder: Path, key: str) -> Path | None:
    try:
        for place in sorted(folder.glob(f"{key}-*{OWN_FORMAT}")):
            if sha256_file(place) != place.stem.removeprefix(f"{key}-"):
                raise EngineError(f"{place} is damaged. Remove it, and it is made again")
            return place
    except OSError as error:
        raise ConfigError(f"mmap_folder {folder} cannot be read: {error}") from error
    return None


def _made(data: bytes, name: Path, folder: Path, key: str) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            draft = Path(scratch) / f"model{OWN_FORMAT}"
            open_session(data, threads=1, optimized_model=draft, name=name)
            place = folder / f"{key}-{sha256_file(draft)}{OWN_FORMAT}"
            atomic_write_bytes(place, draft.read_bytes())
    except OSError as error:
        raise ConfigError(f"mmap_folder {folder} cannot be written: {error}") from error
    return place
