"""From a bundle's folder to a `Clip` in the runtime that was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from .bundle import Bundle, unless_replaced
from .clip import Clip
from .errors import ConfigError
from .load import load_engine
from .monitor import Monitor
from .providers import load_provider_engine


def open(
    bundle: Bundle | Path | str,
    *,
    threads: int | None = None,
    runtime: str = "onnxruntime",
    provider: str = "cpu",
    device_id: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    pieces: bool | None = None,
    mmap_folder: Path | str | None = None,
    saturation_warning: float = 4.0,
    warn: Callable[[str], None] | None = None,
) -> Clip:
    """Open a bundle for photographs.

        with regcache_engines.open("clip.regcache") as clip:
            for best, *_ in clip.classify(["cat.jpg", "dog.png"]):
                print(best.label, best.score)

    Args:
        bundle: the folder `NAME.regcache`, or an open bundle.
        threads: inside one run; None takes one per physical core.
        runtime: `onnxruntime`, or `openvino` for the CPU (extra `openvino`), where nothing watches
            the probes.
        provider: of ONNX Runtime: `cpu`, or on an NVIDIA GPU `cuda`, `tensorrt`, `tensorrt_rtx`.
        device_id: which GPU, with `cuda` and `tensorrt`.
        batch_size: images of one run.
        workers: threads that decode; 0 takes one a core.
        pieces: a second copy of the model, with which each of several threads runs images of its
            own: None loads it with the first batch, True at once, False never, which saves the
            model's memory and takes longer for batches. On the CPU, in ONNX Runtime.
        mmap_folder: a folder of your own, where the optimized model is kept and mapped into memory
            from: processes share the weights, and a call takes longer (docs/serving.md). On the
            CPU, in ONNX Runtime.
        saturation_warning: how many times its calibrated rate is too much for the end of a range,
            see `Clip.saturation`; 0 never warns.
        warn: called with that warning; None logs it as `regcache_engines.monitor`.

    Raises:
        BundleError: no bundle, or a damaged one.
        ConfigError: a number out of range.
        EngineError: the runtime or its device is missing, or refuses the model.
    """
    if not (math.isfinite(saturation_warning) and saturation_warning >= 0):
        raise ConfigError(f"saturation_warning {saturation_warning}: take 0 or more")

    folder = None if mmap_folder is None else Path(mmap_folder)

    def opened(found: Bundle) -> Clip:
        watched = runtime == "onnxruntime" and found.manifest["graph"].get("probes")
        monitor = Monitor(found.manifest, saturation_warning, warn) if watched else None
        if runtime != "onnxruntime" and (provider != "cpu" or device_id is not None):
            raise ConfigError(f"runtime {runtime} runs on the CPU alone; leave provider out")
        if runtime == "onnxruntime":
            engine = load_provider_engine(
                found,
                provider,
                threads,
                device_id=device_id,
                monitor=monitor,
                pieces=pieces,
                mmap_folder=folder,
            )
        else:
            engine = load_engine(
                found, threads=threads, runtime=runtime, pieces=pieces, mmap_folder=folder
            )
        try:
            return Clip(
                found,
                engine,
                monitor=monitor,
                batch_size=batch_size,
                workers=workers,
                threads=threads,
            )
        except BaseException:
            engine.close()
            raise

    if isinstance(bundle, Bundle):
        return opened(bundle)
    return unless_replaced(Path(bundle), lambda folder: opened(Bundle.open(folder)))
