"""The severity curve: what every way to INT8 keeps, against how massive the sinks are.

    python benchmarks/plant_natural.py --data PHOTOS --output PLANTED
    python benchmarks/severity.py --data PHOTOS --encoders PLANTED/*.safetensors \
        --output benchmarks/results

Every encoder is a natural one with planted sinks, fresh or used to them (see
`benchmarks/plant_natural.py`), and `natural-vit-s14` itself. One row a way and encoder:
copy detection in its symmetric form on photographs held out from every choice, paired with the same
encoder in FP32, and the mean cosine to it. W8A8 in simulation, NNCF in OpenVINO. FP32 with RegCache
stands beside every gain: what it gains there is healing, not quantization.

`auto` is what `regcache export` ships: the search and the race of the ways on the search
photographs, by copy detection against a float index. `delete` and `saturate` are RegCache with the
numbers that the same search found, on the same quantizer, with all sinks deleted or none.

The first `--search` photographs of the folder, in the order of the encoder's seed, plant, calibrate
and choose; the others judge. Finished rows of an earlier run into the same file are kept, and so
are finished parts in `--parts`, so that a long run can be interrupted. Rows of the same point with
other weights, photographs or options end the run.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import severity_plot
import torch
from severity_nncf import NncfFailed, nncf_features
from torch import Tensor

from regcache_deploy.bench.environment import (
    describe_machine,
    environment_columns,
    environment_name,
)
from regcache_deploy.bench.results import write_rows
from regcache_deploy.encoders.encoder_file import read_encoder
from regcache_deploy.encoders.load import load_model
from regcache_deploy.encoders.model import LoadedModel
from regcache_deploy.encoders.names import NATURAL
from regcache_deploy.encoders.regcache import RegCache, RegCacheConfig
from regcache_deploy.errors import ConfigError, RegCacheError
from regcache_deploy.evaluation import Score, compare_paired
from regcache_deploy.evaluation.corners import corner_configs, simulate
from regcache_deploy.evaluation.image_sets import ImageSets, load_image_sets
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.simulate import Calibration, Quantization
from regcache_deploy.run.options import ExportOptions
from regcache_deploy.run.study import Study, decide_study
from regcache_deploy.search.embedder import Embedder
from regcache_deploy.search.ways import TITLES
from regcache_deploy.work.progress import Reporter

POINT = ("kind", "ratio", "seed")
"""Columns of a point of the curve."""

BATCH = 16
NOTHING = RegCacheConfig(0, 0, 0, 0)
QUIET = Reporter(quiet=True)


@dataclass
class Subject:
    """One encoder with the photographs.

    Attributes:
        model: in floating point.
        ratio: planted; 1 where nothing is.
        kind: `healthy`, `planted` or `adapted`.
        seed: of the planting, the order of photographs and their altered copies.
        options: of the search; its images are those of every row.
        parts: folder of finished parts.
        nncf_python: an interpreter that has nncf and openvino, or None.
    """

    model: LoadedModel
    ratio: float
    kind: str
    seed: int
    options: ExportOptions
    parts: Path
    nncf_python: str | None

    @property
    def key(self) -> dict[str, Any]:
        """Columns that say which measurement a row is of: a point of the curve, and made how."""
        return {
            "kind": self.kind,
            "ratio": float(self.ratio),
            "seed": self.seed,
            "search_images": len(self.sets.search),
            "calibration_images": self.options.calibration_images,
            "n": self.sets.judged,
            **self.made_of,
        }

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """The part of the key that files from before do not have."""
        return {
            "weights": self.model.weights_sha256()[:16],
            "photographs": self.sets.search.fingerprint()[:16],
            "budget_fraction": self.options.budget_fraction,
        }

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of the CSV is of this point of the curve.

        Raises:
            ConfigError: it is, but of other weights, photographs or options: the table and the
                picture would take the mean of both.
        """
        own = self.key
        if any(str(row.get(name)) != str(own[name]) for name in POINT):
            return False
        for name in own.keys() - self.made_of.keys():
            if str(row.get(name)) != str(own[name]):
                raise ConfigError(_other(row, name, own[name]))
        for name, value in self.made_of.items():
            if (row.get(name) or str(value)) != str(value):
                raise ConfigError(_other(row, name, value))
        return True

    @cached_property
    def sets(self) -> ImageSets:
        with torch.no_grad():
            return load_image_sets(self.options, self.model, QUIET, self.parts)

    @cached_property
    def held_out(self) -> Embedder:
        sets, size = self.sets, self.options.batch_size
        return Embedder(
            "held-out images",
            self.model.encoder,
            sets.evaluation,
            sets.calibration_tokens,
            sets.cache,
            size,
            QUIET,
        )

    @cached_property
    def study(self) -> Study:
        """What the search and the race of the ways chose."""
        return decide_study(self.options, QUIET, self.parts, self.model)


@dataclass(frozen=True)
class Outcome:
    """Features of the photographs that judge, `[2n, E]`, and what was chosen, in words."""

    features: Tensor
    choice: str = ""


def _other(row: Mapping[str, Any], name: str, value: Any) -> str:
    point = ", ".join(str(row[part]) for part in POINT)
    return (
        f"the file has rows of {point} with {name} {row.get(name)}, and this run has {value}; "
        "choose another --output"
    )


Run = Callable[[Subject], Outcome]


def alone(quantizer: str) -> Run:
    """A quantizer as it is."""

    def run(subject: Subject) -> Outcome:
        baseline = make_baseline(quantizer).fast()
        return Outcome(subject.held_out.features(quantizer, baseline, NOTHING, {}))

    return run


def corner(name: str) -> Run:
    """RegCache as searched, on the quantizer of the search."""

    def run(subject: Subject) -> Outcome:
        study = subject.study
        config = corner_configs(study.found.result.best)[name]
        features = subject.held_out.features(name, study.published, config, study.found.register)
        return Outcome(features, numbers(config))

    return run


def healed(subject: Subject) -> Outcome:
    """RegCache as searched, on the float encoder."""
    found = subject.study.found
    config, sets = found.result.best, subject.sets
    regcache = None if config.is_empty else RegCache(config, found.register)
    calibration = Calibration(subject.model.encoder, Quantization(), regcache)
    features = simulate(calibration, sets.evaluation.batches(BATCH), lambda n: None)
    return Outcome(features, numbers(config))


def auto(subject: Subject) -> Outcome:
    """The way that won the race."""
    study = subject.study
    found = subject.held_out.features("auto", study.baseline, study.config, study.found.register)
    words = TITLES[study.recipe]
    if not study.config.is_empty:
        words += f": {numbers(study.config)}"
    return Outcome(found, words)


def numbers(config: RegCacheConfig) -> str:
    if config.is_empty:
        return "no gain found"
    return (
        f"t {config.prefix_block}, tau {config.prefix_count}, block {config.delete_block}, "
        f"k~ {config.range_delete_count} -> {config.delete_count}"
    )


def nncf(smooth: bool) -> Run:
    return lambda s: Outcome(
        nncf_features(
            s.model.encoder,
            s.model.preprocess,
            s.sets.search,
            s.options.calibration_images,
            s.sets.evaluation,
            smooth,
            s.nncf_python,
        )
    )


@dataclass(frozen=True)
class Way:
    """One curve."""

    name: str
    title: str
    run: Run


WAYS = (
    Way("fp32", "FP32", lambda s: Outcome(s.held_out.float_features)),
    Way("fp32_regcache", "FP32 + RegCache", healed),
    Way("naive", "min-max", alone("naive")),
    Way("repqvit", "RepQ-ViT", alone("repqvit")),
    Way("ptq4vit", "PTQ4ViT (20 candidates, one round)", alone("ptq4vit")),
    Way("nncf", "NNCF", nncf(smooth=True)),
    Way("nncf_plain", "NNCF without SmoothQuant", nncf(smooth=False)),
    Way("delete", "RepQ-ViT + RegCache, deletion", corner("delete")),
    Way("saturate", "RepQ-ViT + RegCache, saturation", corner("saturate")),
    Way("auto", "auto", auto),
)
"""One line a way; the first is the reference of the paired statistics."""


def row_of(
    subject: Subject, way: Way, outcome: Outcome, score: Score, base: Score
) -> dict[str, Any]:
    pair = compare_paired(base.per_image.numpy(), score.per_image.numpy())
    return {
        "encoder": f"{NATURAL} {subject.kind}",
        **subject.key,
        "way": way.name,
        "title": way.title,
        "choice": outcome.choice,
        "copy_detection": round(100 * score.value, 3),
        "difference": round(pair.difference, 3),
        "low": round(pair.low, 3),
        "high": round(pair.high, 3),
        "lost": pair.lost,
        "won": pair.won,
        "p_value": f"{pair.p_value:.2g}",
        "cosine": round(score.fidelity, 6),
        "caution": subject.model.caution or "",
    }


@torch.no_grad()
def measure(subject: Subject, ways: Sequence[Way], done: set[str]) -> Iterator[dict[str, Any]]:
    """Rows of the ways that are not `done`."""
    if all(way.name in done for way in ways):
        return
    reference = WAYS[0].run(subject)
    judge = subject.sets.judge(reference.features)
    base = judge.score(reference.features)
    for way in ways:
        if way.name in done:
            continue
        began = time.monotonic()
        try:
            outcome = reference if way is WAYS[0] else way.run(subject)
        except NncfFailed as error:
            print(f"  {way.title}: not run: {error}", flush=True)
            continue
        row = row_of(subject, way, outcome, judge.score(outcome.features), base)
        print(
            f"  {way.title}: {row['copy_detection']:.1f} (cosine {row['cosine']:.4f})", flush=True
        )
        yield row | {"seconds": round(time.monotonic() - began, 1)}


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    try:
        return run(args)
    except RegCacheError as error:
        print(f"severity: error: {error}", file=sys.stderr)
        return error.exit_code


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    machine = describe_machine()
    path = args.output / f"severity-{environment_name(machine)}.csv"
    rows = read_rows(path)
    ways = [way for way in WAYS if not args.only or way.name in args.only]
    for subject in subjects(args):
        done = {row["way"] for row in rows if subject.has(row)}
        print(f"{subject.kind}, ratio {subject.ratio:g}, seed {subject.seed}", flush=True)
        for row in measure(subject, ways, done):
            columns = environment_columns(machine, describe_machine())
            day = {"measured_at": time.strftime("%Y-%m-%d", time.gmtime())}
            rows.append(row | columns | day | {"note": args.note})
            write_rows(path, rows, {})
    path.with_suffix(".svg").write_bytes(severity_plot.draw(rows, [w.name for w in WAYS]))
    print(path)
    return 0


def subjects(args: argparse.Namespace) -> list[Subject]:
    """The healthy encoder and the files, mildest first, each with the photographs of its seed."""
    options = ExportOptions(
        model=NATURAL,
        data=args.data,
        limit=args.judge,
        search_images=args.search,
        calibration_images=args.calibration_images,
        batch_size=BATCH,
        budget_fraction=args.budget_fraction,
    )
    common = {"parts": args.parts, "nncf_python": args.nncf_python}
    healthy = load_model(NATURAL)
    found = [
        Subject(healthy, 1.0, "healthy", seed, replace(options, seed=seed), **common)
        for seed in args.healthy
    ]
    for path in args.encoders:
        content = read_encoder(path)
        plant, kind = content.facts["planting"], content.facts["adaptation"]
        require_held_out(path, content.facts, args.search)
        model = replace(
            healthy,
            pretrained=str(path),
            encoder=content.encoder,
            preprocess=content.preprocess,
            caution=content.caution,
        )
        name, seed = "planted" if kind is None else "adapted", plant["seed"]
        own = replace(options, seed=seed)
        found.append(Subject(model, plant["ratio"], name, seed, own, **common))
    return sorted(found, key=lambda s: (s.kind, s.ratio, s.seed))


def require_held_out(path: Path, facts: Mapping[str, Any], search: int) -> None:
    """Raise ConfigError where an encoder was made with photographs that would judge it.

    A file from before does not say with how many; it was made with 100.
    """
    seen = facts.get("photographs", 100)
    if seen > search:
        raise ConfigError(
            f"{path} was made with {seen} photographs, and behind the first {search} they judge; "
            f"take --search {seen}"
        )


def read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--encoders", type=Path, nargs="*", default=[], help="of plant_natural")
    parser.add_argument(
        "--healthy",
        type=int,
        nargs="*",
        default=[0],
        metavar="SEED",
        help="seeds of the encoder as it is; none: leave it out",
    )
    parser.add_argument("--search", type=int, default=100, help="photographs to choose on")
    parser.add_argument("--judge", type=int, help="photographs to judge on (default: the others)")
    parser.add_argument("--calibration-images", type=int, default=32)
    parser.add_argument("--budget-fraction", type=float, default=0.02, help="of the search")
    parser.add_argument("--parts", type=Path, default=Path("runs/severity"), help="finished parts")
    parser.add_argument("--only", nargs="+", default=[], choices=[w.name for w in WAYS])
    parser.add_argument("--nncf-python", help="interpreter with nncf and openvino")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--note", default="", help="e.g. that the machine was shared")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
