"""The JSON beside an engine: what it was built from, with and for. Read before the engine is.

It tells a mistake from the right file. It is no signature: who can write the engine can write it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..documents import read_json
from ..errors import EngineError
from ..files import atomic_write_bytes, sha256_bytes
from .probe import Gpu, Probe

SCHEMA = 1
AGAIN = "build it again on this machine (regcache build)"


@dataclass(frozen=True)
class Profile:
    """Batch sizes that an engine takes; tuned for `opt`.

    Raises:
        EngineError: not `1 <= min <= opt <= max`.
    """

    min: int = 1
    opt: int = 8
    max: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise EngineError(
                f"batch profile {self.min},{self.opt},{self.max}: needs 1 <= min <= opt <= max"
            )


@dataclass(frozen=True)
class Sidecar:
    """What an engine file cannot say of itself before it is deserialized.

    Attributes:
        key: name of the engine, a hash of everything that went into it.
        engine: `tensorrt` or `tensorrt_rtx`.
        version: of the runtime that built it.
        sms: compute capabilities it was built for, as `90`; empty means those that the runtime
            chooses by default (TensorRT-RTX).
        hardware: `none`, `ampere_plus` or `same_compute_capability`.
        version_compatible: newer runtimes may load it.
        onnx_sha256, engine_sha256: of the two files.
        image_shape: `[3, H, W]` or `[H, W, 3]`.
        output_dim: E.
        input_name, output_name: of the graph.
        input_dtype: `float32` or `uint8`.
        profile: batch sizes.
        options: everything else the builder was told.
        layers: kinds of layers and their counts.
        products: ONNX node of a matrix product -> kinds of the layers that hold it; a promise that
            is made after the build is held against them.
        broken_promises: ONNX node -> layer kinds that hold it instead of the one that was promised
            for the build.
        gpu: name of the GPU that built it, if one did.
    """

    key: str
    engine: str
    version: str
    onnx_sha256: str
    engine_sha256: str
    engine_bytes: int
    image_shape: tuple[int, ...]
    output_dim: int
    input_name: str
    output_name: str
    profile: Profile
    input_dtype: str = "float32"
    sms: tuple[int, ...] = ()
    hardware: str = "none"
    version_compatible: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    products: dict[str, list[str]] = field(default_factory=dict)
    broken_promises: dict[str, str] = field(default_factory=dict)
    gpu: str | None = None
    build_seconds: float = 0.0
    schema: int = SCHEMA

    def write(self, path: Path) -> None:
        text = json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"
        atomic_write_bytes(path, text.encode())

    @classmethod
    def read(cls, path: Path) -> Sidecar:
        """Read a sidecar.

        Raises:
            EngineError: missing, damaged, or of another schema.
        """
        try:
            document = read_json(path)
            if document["schema"] != SCHEMA:
                raise EngineError(
                    f"{path} has schema {document['schema']}, this version reads {SCHEMA}; {AGAIN}"
                )
            lists = {name: tuple(document[name]) for name in ("image_shape", "sms")}
            return cls(**document | lists | {"profile": Profile(**document["profile"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(f"{path} is no readable engine description; {AGAIN}") from error

    def read_engine(self, engine_path: Path, probe: Probe) -> bytes:
        """The engine's bytes, refused before anything deserializes them.

        Raises:
            EngineError: it does not belong to this runtime, GPU or description.
        """
        if self.engine != probe.engine:
            raise EngineError(f"{engine_path} was built by {self.engine}, not {probe.engine}")
        self.require_weights(engine_path)
        probe.require_run()
        assert probe.version is not None
        assert probe.gpu is not None
        if not self._same_version(probe.version):
            raise EngineError(
                f"{engine_path} was built by {self.engine} {self.version}, and this is "
                f"{probe.version}; {AGAIN}"
            )
        if not self._runs_on(probe.gpu):
            built = ", ".join(map(str, self.sms))
            raise EngineError(
                f"{engine_path} was built for SM {built}, and {probe.gpu.name} is SM "
                f"{probe.gpu.sm}; {AGAIN}"
            )
        if self._needs_own_model() and self.gpu not in (None, probe.gpu.name):
            raise EngineError(
                f"{engine_path} was built and timed on {self.gpu}, and this is {probe.gpu.name}, "
                f"which TensorRT does not support; {AGAIN}, or with --hardware "
                "same_compute_capability"
            )
        if not engine_path.is_file():
            raise EngineError(f"no engine at {engine_path}; {AGAIN}")
        data = engine_path.read_bytes()
        if sha256_bytes(data) != self.engine_sha256:
            raise EngineError(f"{engine_path} is not the file that was built (SHA-256); {AGAIN}")
        return data

    def require_weights(self, engine_path: Path) -> None:
        """Raise EngineError for an engine that computes nothing useful before a refit."""
        if self.options.get("strip_weights"):
            raise EngineError(
                f"{engine_path} has no weights (--strip-weights), and nothing here refits it; "
                "build it without"
            )

    def _same_version(self, version: str) -> bool:
        if not self.version_compatible:
            return version == self.version
        return _numbers(version) >= _numbers(self.version)

    def _needs_own_model(self) -> bool:
        """Whether it is for the kind of GPU that it was built on, not for all of its SM."""
        return self.engine == "tensorrt" and self.hardware == "none"

    def _runs_on(self, gpu: Gpu) -> bool:
        if self.hardware == "ampere_plus":
            return gpu.sm >= 80
        return not self.sms or gpu.sm in self.sms


def cache_key(parts: dict[str, Any]) -> str:
    """Name of an engine: a hash of all that decides its content."""
    return sha256_bytes(json.dumps(parts, sort_keys=True).encode())[:32]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
