"""The engines of a contract's candidates on TensorRT: refused early, built once, kept alone.

Written against the same documented API as the builder; it was never run on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regcache_engines.bundle import MODEL, Bundle
from regcache_engines.engine import Engine
from regcache_engines.files import atomic_write_bytes
from regcache_engines.tensorrt.build_options import BuildOptions
from regcache_engines.tensorrt.builder import BuildResult, EngineBuilder
from regcache_engines.tensorrt.engine import TensorRTEngine
from regcache_engines.tensorrt.probe import EngineName, Gpu, probe
from regcache_engines.tensorrt.sidecar import Profile
from regcache_export.bundle_graph import graph_options
from regcache_export.targets import find_target

from ..errors import BundleError, ConfigError, EngineError
from ..work.progress import Reporter

if TYPE_CHECKING:
    from .options import ContractOptions

ENGINES: tuple[EngineName, ...] = ("tensorrt", "tensorrt_rtx")


def runs_here(engine: EngineName) -> Gpu:
    """The GPU that candidates are judged on. Asked before anything is read, built or written.

    Raises:
        EngineError: no runtime or no GPU.
    """
    found = probe(engine)
    found.require_build()
    found.require_run()
    assert found.gpu is not None
    return found.gpu


@dataclass
class Builds:
    """The engines of one contract.

    Attributes:
        engine: runtime.
        folder: where all are built; only the kept one leaves it.
        options: of every build.
        strict: an engine that breaks the static check's promise is refused.
        results: ONNX file -> its engine, in the order of the builds.
        forms: ONNX file -> form of the candidate.
    """

    engine: EngineName
    folder: Path
    options: BuildOptions
    strict: bool
    reporter: Reporter
    results: dict[Path, BuildResult] = field(default_factory=dict)
    forms: dict[Path, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, bundle: Bundle, options: ContractOptions, gpu: Gpu, folder: Path, reporter: Reporter
    ) -> Builds:
        """Hold bundle and options against each other, before anything is built.

        Raises:
            BundleError: the bundle is for another target.
            ConfigError: what the options build could not be judged on this GPU.
        """
        graph = graph_options(bundle)
        if find_target(graph.target).form != "tensorrt":
            raise BundleError(
                f"{bundle.path} was exported for {graph.target}; export it with --target tensorrt"
            )
        build = options.build or BuildOptions()
        if graph.batch:
            build = replace(build, profile=Profile(graph.batch, graph.batch, graph.batch))
        elif not build.profile.min <= options.batch <= build.profile.max:
            raise ConfigError(
                f"--batch {options.batch} is outside of the engine's profile {build.profile.min} "
                f"to {build.profile.max}; set --min-batch and --max-batch"
            )
        if build.strip_weights:
            raise ConfigError(
                "--strip-weights makes engines that do not run before a refit, so there is nothing "
                "to judge; decide without it, then build the kept bundle with it"
            )
        if build.sms and gpu.sm not in build.sms:
            raise ConfigError(
                f"--sm leaves out {gpu.name}, on which the engines are judged; add --sm {gpu.sm}"
            )
        name: EngineName = "tensorrt_rtx" if options.engine == "tensorrt_rtx" else "tensorrt"
        return cls(name, folder, build, options.strict_layers, reporter)

    @property
    def step(self) -> int | None:
        """Images of one call: all batches of exactly this size, or None for any."""
        profile = self.options.profile
        return profile.opt if profile.min > 1 else None

    def build(self, form: str, model: Path) -> str:
        """Build an engine unless it is there. Returns why it is no candidate, or nothing.

        Raises:
            BundleError: the graph breaks a rule of TensorRT.
            EngineError: the build fails.
        """
        from regcache_export.checks import check_file

        if model not in self.results:
            self.forms[model] = form
            report = check_file(model)
            report.require_ok()
            builder = EngineBuilder(self.engine)
            self.folder.mkdir(parents=True, exist_ok=True)
            title = f"{form}: build with {self.engine} {builder.probe.version}"
            with self.reporter.stage(title) as advance:
                self.results[model] = builder.build(
                    model.read_bytes(),
                    self.folder,
                    self.options,
                    promise=report.promise,
                    strict=False,  # judged here: a broken promise ends one candidate, not all
                    on_progress=lambda phase, done, steps: advance(1),
                )
        broken = self.results[model].sidecar.broken_promises
        if not broken or not self.strict:
            return ""
        node, found = next(iter(broken.items()))
        return (
            f"the engine breaks the static check's promise for {len(broken)} products, first "
            f"{node}: found {found} (--layer-check warn judges it all the same)"
        )

    def open(
        self, name: str, model: Path, threads: int | None, batches: Sequence[int], cache: Path
    ) -> Engine:
        """An opener as `bench.engines.open_engine`; the engine has been built."""
        built = self.results[model]
        # its own build, so that its code may run
        return TensorRTEngine(built.path, host_code=built.sidecar.version_compatible)

    def keep(self, model: Path, bundle: Path, folder: Path) -> Path:
        """Copy the engine of a kept file and its sidecar to `folder`.

        Args:
            model: what it was built from.
            bundle: the kept bundle; its graph must be that file.
            folder: of the result; it exists.

        Raises:
            EngineError: the bundle's graph is another one; or the disk refuses.
        """
        built = self.results[model]
        if Bundle.open(bundle).manifest["files"][MODEL]["sha256"] != built.sidecar.onnx_sha256:
            raise EngineError(f"{bundle} is not what the engine was built from; decide again")
        path = folder / built.path.name
        try:
            atomic_write_bytes(path, built.path.read_bytes())
            built.sidecar.write(path.with_suffix(".json"))
        except OSError as error:
            path.unlink(missing_ok=True)
            raise EngineError(f"cannot write {path}: {error}; choose another --output") from error
        return path

    def to_json(self) -> dict[str, Any]:
        """Every engine that was built, in their order."""
        return {
            self.forms[model]: {
                "layers": built.sidecar.layers,
                "broken_promises": built.sidecar.broken_promises,
                "mib": round(built.sidecar.engine_bytes / 2**20, 3),
                "build_seconds": built.sidecar.build_seconds,
            }
            for model, built in self.results.items()
        }
