"""From an ONNX file to an engine: one builder for TensorRT 10, 11 and TensorRT-RTX.

Versions differ in what they offer, never in what it is called; so every option is guarded by the
presence of its name, not by a version string.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import EngineError
from ..files import atomic_write_bytes, sha256_bytes
from ..onnx_wire import has_external_data
from .build_options import BuildOptions, OnProgress
from .layers import Layer, count_kinds, layers_from_log, missing_promises, product_kinds
from .lock import build_lock
from .probe import EngineName, Probe, import_runtime, probe
from .sidecar import Sidecar, cache_key
from .trt_api import configure, create, make_logger, parse, read_contract

MOST_WARNINGS = 5
"""Of the builder's own that are passed on: weights beyond float16, for example."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildResult:
    """A built engine.

    Attributes:
        path: `KEY.engine`; its sidecar `KEY.json` lies beside it.
        sidecar: its content.
        reused: it was there already.
    """

    path: Path
    sidecar: Sidecar
    reused: bool


class EngineBuilder:
    """Builds engines with one runtime.

    Args:
        engine: `tensorrt` or `tensorrt_rtx`.

    Raises:
        EngineError: the runtime is missing, or needs a GPU that is not there.
    """

    def __init__(self, engine: EngineName) -> None:
        self.engine = engine
        self.probe: Probe = probe(engine)
        self.probe.require_build()
        self._trt = import_runtime(engine)

    def build(
        self,
        model: bytes,
        folder: Path,
        options: BuildOptions | None = None,
        promise: Mapping[str, str] | None = None,
        strict: bool = True,
        on_progress: OnProgress | None = None,
    ) -> BuildResult:
        """Build an engine, or find the one of the same key in `folder`.

        Args:
            model: an ONNX file.
            folder: where engine and sidecar go.
            options: see there.
            promise: ONNX node -> layer kind, from the static check; held against an engine that is
                found, too, whatever was promised when it was built.
            strict: a layer that is not of the promised kind fails the build, and nothing is
                written; else the sidecar lists it.
            on_progress: told of the builder's phases.

        Raises:
            EngineError: the graph keeps weights in other files, the parser refuses it, the build
                fails or breaks the promise, or the disk refuses.
        """
        options = options or BuildOptions()
        _require_whole(model)
        if options.hardware != "none" and self.engine == "tensorrt_rtx":
            raise EngineError(
                "TensorRT-RTX ignores hardware compatibility: its engines run on all GPUs that "
                "they are built for; name those with --sm"
            )
        parts: dict[str, Any] = {
            "onnx": sha256_bytes(model),
            "engine": self.engine,
            "version": self.probe.version,
            "sm": self.probe.gpu.sm if self.probe.gpu else None,
            "options": options.to_json(),
        }
        if self.engine == "tensorrt" and options.hardware == "none" and self.probe.gpu:
            parts["gpu"] = self.probe.gpu.name  # two of one SM are timed each
        key = cache_key(parts)
        path, description = folder / f"{key}.engine", folder / f"{key}.json"

        def found() -> BuildResult | None:
            known = _reusable(path, description, key, parts, promise or {})
            if known is None:
                return None
            if strict and known.broken_promises:
                raise EngineError(_promise_message(known.broken_promises, known.layers))
            return BuildResult(path, known, reused=True)

        if (before := found()) is not None:  # also in a folder that nobody may write to
            return before
        with build_lock(folder / f".{key}.lock"):
            if (meanwhile := found()) is not None:
                return meanwhile
            began = time.monotonic()
            data, layers, contract, timings = self._compile(model, options, on_progress)
            products = product_kinds(layers)
            broken = missing_promises(products, promise or {})
            if strict and broken:
                raise EngineError(_promise_message(broken, count_kinds(layers)))
            sidecar = Sidecar(
                key=key,
                engine=self.engine,
                version=str(self.probe.version),
                onnx_sha256=parts["onnx"],
                engine_sha256=sha256_bytes(data),
                engine_bytes=len(data),
                profile=options.profile,
                sms=options.sms or self._own_sm(),
                hardware=options.hardware,
                version_compatible=options.version_compatible,
                options=options.to_json(),
                layers=count_kinds(layers),
                products=products,
                broken_promises=broken,
                gpu=self.probe.gpu.name if self.probe.gpu else None,
                build_seconds=round(time.monotonic() - began, 2),
                **contract,
            )
            try:
                atomic_write_bytes(path, data)
                sidecar.write(description)
            except OSError as error:
                path.unlink(missing_ok=True)
                raise EngineError(f"cannot write {path}: {error}; choose another folder") from error
        if options.timing_cache is not None and timings is not None:
            try:
                atomic_write_bytes(options.timing_cache, timings)
            except OSError as error:  # the next build takes longer, this one is done
                log.warning("cannot write the timing cache %s: %s", options.timing_cache, error)
        return BuildResult(path, sidecar, reused=False)

    def layers(self, model: bytes, options: BuildOptions | None = None) -> list[Layer]:
        """Layers of a build that is not kept.

        Raises:
            EngineError: as in `build`.
        """
        _require_whole(model)
        return self._compile(model, options or BuildOptions(), None)[1]

    def _own_sm(self) -> tuple[int, ...]:
        """Full TensorRT builds for the GPU it times on; TensorRT-RTX for all that it knows."""
        if self.engine == "tensorrt_rtx" or self.probe.gpu is None:
            return ()
        return (self.probe.gpu.sm,)

    def _compile(
        self, model: bytes, options: BuildOptions, on_progress: OnProgress | None
    ) -> tuple[bytes, list[Layer], dict[str, Any], bytes | None]:
        """Engine, layers, contract, and timings where some are kept."""
        trt = self._trt
        logger = make_logger(trt)
        builder = create(trt, "Builder", logger)
        network, parser = parse(trt, builder, logger, model)
        contract = read_contract(trt, network)
        config, cache = configure(trt, builder, network, options, on_progress)
        try:
            plan = builder.build_serialized_network(network, config)
        except Exception as error:  # pybind11 turns C++ exceptions into RuntimeError and others
            reason = f"{type(error).__name__}: {error}"
            raise EngineError(_build_message(self.engine, [*logger.errors, reason])) from error
        if plan is None:
            raise EngineError(_build_message(self.engine, logger.errors))
        for message in list(dict.fromkeys(logger.warnings))[:MOST_WARNINGS]:
            log.warning("%s: %s", self.engine, message.strip())
        data = bytes(plan)
        timings = bytes(cache.serialize()) if cache is not None else None
        layers = layers_from_log(logger.messages)
        if not layers:
            raise EngineError(f"{self.engine} {self.probe.version} dumps no layers in its log")
        del parser, network, config, builder  # in this order: each refers to the next
        return data, layers, contract, timings


def _require_whole(model: bytes) -> None:
    """The parser would look for other files in the working folder, and no key names them."""
    if has_external_data(model):
        raise EngineError(
            "the graph keeps weights in other files, or hides whether it does; an engine is built "
            "from one file: save it with its weights inside"
        )


def _reusable(
    path: Path,
    description: Path,
    key: str,
    parts: Mapping[str, Any],
    promise: Mapping[str, str],
) -> Sidecar | None:
    """The sidecar with this promise held against it, if it is of what is asked for."""
    if not path.is_file() or not description.is_file():
        return None
    try:
        known = Sidecar.read(description)
    except EngineError:
        return None
    asked = key, parts["onnx"], parts["engine"], parts["options"]
    if (known.key, known.onnx_sha256, known.engine, known.options) != asked:
        return None
    if sha256_bytes(path.read_bytes()) != known.engine_sha256:
        return None
    if not promise:
        return known
    if not known.products:  # of an older version: it does not say what became of them
        return None
    return replace(known, broken_promises=missing_promises(known.products, promise))


def _promise_message(broken: dict[str, str], layers: dict[str, int]) -> str:
    node, found = next(iter(broken.items()))
    return (
        f"the build breaks the check's promise for {len(broken)} products, first {node}: found "
        f"{found}. Layers: {layers}. Build with --layer-check warn to keep the engine"
    )


def _build_message(engine: str, errors: list[str]) -> str:
    text = "; ".join(errors[-3:]) or "no reason given"
    if any("memory" in error.lower() for error in errors):
        text += ". Lower --workspace or the largest batch"
    return f"{engine} failed to build: {text}"
