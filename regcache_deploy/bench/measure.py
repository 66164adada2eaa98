"""Time files on engines in turns, and put every figure into a row."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from regcache_engines.bundle import MODEL
from regcache_engines.engine import Engine
from regcache_engines.errors import EngineError
from regcache_engines.preprocess import in_layout

from ..evaluation.engines import ON_GPU, engine_version, open_engine
from ..work.progress import Reporter
from .environment import gpu_columns, read_gpu
from .memory import peak_memory
from .subjects import Subject
from .timing import Interval, Run, Samples, interleave

log = logging.getLogger(__name__)

Opener = Callable[[str, Path, "int | None", Sequence[int], Path], Engine]


@dataclass(frozen=True)
class Settings:
    """How to time.

    Attributes:
        batches, threads: every batch size is timed with every number of threads.
        rounds: turns of each variant.
        seconds: no further round begins after so long, for each batch size and thread count.
        warmup: untimed calls before the first round.
        turn_ms, pause: of fast variants; see `interleave`.
        memory: also measure peak memory, in a process of its own for each file and batch size.
        must_run: engines that were asked for by name; they fail instead of giving a reason.
    """

    batches: tuple[int, ...] = (1, 8)
    threads: tuple[int | None, ...] = (None,)
    rounds: int = 30
    seconds: float = 30.0
    warmup: int = 3
    turn_ms: float = 30.0
    pause: float = 0.005
    memory: bool = True
    must_run: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Row:
    """One file on one engine at one batch size.

    Attributes:
        samples: None where it could not run; then `reason` says why.
        speedup: against the first precision of the same bundle on the same engine; above 1 is
            faster.
        peak_memory_mib, gpu_memory_mib: see `memory.Peak`.
        gpu: the GPU's state right behind the timing, of an engine that runs on it.
    """

    subject: Subject
    engine: str
    batch: int
    threads: int | None
    samples: Samples | None = None
    key: str = ""
    speedup: Interval | None = None
    speedup_over: str = ""
    peak_memory_mib: float | None = None
    gpu_memory_mib: float | None = None
    gpu: dict[str, Any] | None = None
    reason: str = ""

    @property
    def milliseconds(self) -> dict[str, float]:
        """p50, p90 and p99 over all calls."""
        assert self.samples is not None
        return {f"p{q}": self.samples.percentile(self.key, q) for q in (50, 90, 99)}


@dataclass
class Bench:
    """Files on engines.

    Attributes:
        subjects: what to time; the first one of each bundle is the reference of its ratios.
        engines: keys of `ENGINES`.
        pixels: uint8 `[n, H, W, 3]`, at least as many as the largest batch.
        settings: how.
        cache: folder for engines that are built.
        opener: loads a file; another one in tests.
    """

    subjects: Sequence[Subject]
    engines: Sequence[str]
    pixels: dict[str, npt.NDArray[Any]] = field(repr=False)
    settings: Settings
    cache: Path
    reporter: Reporter
    opener: Opener = open_engine

    def run(self) -> list[Row]:
        """Rows in the order threads, engine, bundle, precision, batch size.

        Raises:
            EngineError: an engine of `must_run` cannot run the first precision that has a file, or
                nothing at all.
        """
        rows: list[Row] = []
        for threads in self.settings.threads:
            with ExitStack() as stack:
                loaded, reasons = self._load(threads, stack)
                for batch in self.settings.batches:
                    rows += self._time(loaded, reasons, threads, batch)
        for engine in sorted(self.settings.must_run):
            own = [row for row in rows if row.engine == engine]
            if own and not any(row.samples for row in own):
                raise EngineError(f"nothing was timed with {engine}: {own[0].reason}")
        order = {(s.name, s.precision): i for i, s in enumerate(self.subjects)}
        rank = {name: i for i, name in enumerate(self.engines)}
        rows.sort(
            key=lambda row: (
                self.settings.threads.index(row.threads),
                rank[row.engine],
                order[row.subject.name, row.subject.precision],
                row.batch,
            )
        )
        return rows

    def _load(
        self, threads: int | None, stack: ExitStack
    ) -> tuple[dict[tuple[str, int], Engine], dict[tuple[str, int], str]]:
        """Engine and subject's index -> the loaded file, or the reason why there is none."""
        loaded: dict[tuple[str, int], Engine] = {}
        reasons: dict[tuple[str, int], str] = {}
        for engine in self.engines:
            for index, subject in enumerate(self.subjects):
                if subject.path is None:
                    reasons[engine, index] = subject.reason
                    continue
                try:
                    opened = self.opener(
                        engine, subject.path, threads, self._profile(subject), self.cache
                    )
                    loaded[engine, index] = stack.enter_context(opened)
                except EngineError as error:
                    if engine in self.settings.must_run:
                        raise
                    reasons[engine, index] = " ".join(str(error).split())
        return loaded, reasons

    def _profile(self, subject: Subject) -> tuple[int, ...]:
        """Batch sizes that an engine is built for."""
        fixed = subject.options.batch
        return (fixed,) if fixed else self.settings.batches

    def _time(
        self,
        loaded: dict[tuple[str, int], Engine],
        reasons: dict[tuple[str, int], str],
        threads: int | None,
        batch: int,
    ) -> list[Row]:
        runs: dict[str, Run] = {}
        broken = dict(reasons)
        for (engine, index), opened in loaded.items():
            subject = self.subjects[index]
            fixed = subject.options.batch
            if fixed and batch != fixed:  # an engine would fill the batch up, and take its time
                broken[engine, index] = f"the graph has a fixed batch of {fixed}, not {batch}"
                continue
            images = in_layout(self.pixels[subject.name][:batch], opened.pixels, subject.preprocess)
            try:
                opened.infer(images)
            except EngineError as error:
                if engine in self.settings.must_run:
                    raise
                broken[engine, index] = " ".join(str(error).split())
                continue
            runs[_key(engine, index)] = _call(opened, images)
        samples, gpu = None, None
        if runs:
            with self.reporter.stage(f"batch {batch}, {len(runs)} variants in turns"):
                samples = interleave(
                    runs,
                    self.settings.rounds,
                    seconds=self.settings.seconds,
                    warmup=self.settings.warmup,
                    turn_ms=self.settings.turn_ms,
                    pause=self.settings.pause,
                )
            gpu = read_gpu()[0]  # at once: an idle GPU lowers its clocks
        rows = []
        with self.reporter.stage(f"batch {batch}, peak memory", len(runs)) as advance:
            for engine in self.engines:
                for index, subject in enumerate(self.subjects):
                    if samples is None or _key(engine, index) not in runs:
                        reason = broken.get((engine, index), "")
                        rows.append(Row(subject, engine, batch, threads, reason=reason))
                        continue
                    row = self._row(samples, engine, index, threads, batch, runs)
                    rows.append(replace(row, gpu=gpu if engine in ON_GPU else None))
                    advance()
        return rows

    def _row(
        self,
        samples: Samples,
        engine: str,
        index: int,
        threads: int | None,
        batch: int,
        runs: dict[str, Run],
    ) -> Row:
        subject, key = self.subjects[index], _key(engine, index)
        first = next(i for i, s in enumerate(self.subjects) if s.name == subject.name)
        speedup, over = None, ""
        if first != index and _key(engine, first) in runs:
            speedup = samples.ratio(_key(engine, first), key)
            over = self.subjects[first].precision
        row = Row(subject, engine, batch, threads, samples, key, speedup, over)
        if self.settings.memory and subject.path is not None:
            profile = self._profile(subject)
            try:
                found = peak_memory(engine, subject.path, threads, batch, self.cache, profile)
            except EngineError as error:  # one figure is missing; the timings are there
                log.warning("no peak memory: %s", " ".join(str(error).split()))
                found = None
            if found:
                row = replace(row, peak_memory_mib=found.peak_mib, gpu_memory_mib=found.gpu_mib)
        return row


def row_columns(row: Row) -> dict[str, Any]:
    """A row under the names that timm's and clip_benchmark's result files use, where they have one.

    `infer_step_time` is the median of a call in ms, `infer_samples_per_sec` the images a second at
    that time. A row that could not run has `reason` and no figures.
    """
    subject, manifest = row.subject, row.subject.manifest
    provenance = manifest.get("provenance") or {}
    size = manifest["graph"]["input"]["shape"]
    height, width = size[1:3] if size[3] == 3 else size[2:4]
    columns: dict[str, Any] = {
        "bundle": subject.name,
        "model_sha256": manifest["files"][MODEL]["sha256"],
        "model": manifest.get("model", ""),
        "pretrained": provenance.get("pretrained") or "",
        "precision": subject.precision,
        "baseline": manifest.get("baseline", "") if subject.precision == "int8" else "",
        "bits": manifest.get("bits", "") if subject.precision == "int8" else subject.precision,
        "regcache": bool(manifest.get("regcache")) and subject.precision == "int8",
        "target": subject.options.target,
        "engine": row.engine,
        "engine_version": engine_version(row.engine),
        "threads": row.threads or "default",
        "infer_batch_size": row.batch,
        "infer_img_size": height if height == width else f"{height}x{width}",
    }
    if row.samples is not None:
        times = row.milliseconds
        columns |= {
            "infer_step_time": round(times["p50"], 4),
            "infer_samples_per_sec": round(row.batch / times["p50"] * 1e3, 3),
            "p90_ms": round(times["p90"], 4),
            "p99_ms": round(times["p99"], 4),
            "rounds": len(row.samples.rounds(row.key)),
            "calls": len(row.samples.calls(row.key)),
        }
    if row.speedup is not None:
        columns |= {
            "speedup": round(row.speedup.value, 4),
            "speedup_low": round(row.speedup.low, 4),
            "speedup_high": round(row.speedup.high, 4),
            "speedup_over": row.speedup_over,
        }
    if subject.path is not None:
        columns["file_mib"] = round(subject.path.stat().st_size / 2**20, 3)
    if row.peak_memory_mib is not None:
        columns["peak_memory_mib"] = row.peak_memory_mib
    if row.gpu_memory_mib is not None:
        columns["gpu_memory_mib"] = row.gpu_memory_mib
    if row.gpu is not None:
        columns |= gpu_columns(row.gpu)
    columns["caution"] = provenance.get("caution") or ""
    columns["reason"] = row.reason
    return columns


def _key(engine: str, index: int) -> str:
    return f"{engine}/{index}"


def _call(engine: Engine, images: npt.NDArray[Any]) -> Run:
    return lambda: engine.infer(images)
