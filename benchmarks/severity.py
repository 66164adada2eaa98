"""The severity curve: what every way to INT8 keeps, against how massive the sinks are.

    python benchmarks/plant_natural.py --data PHOTOS --output PLANTED
    python benchmarks/severity.py --data PHOTOS --encoders PLANTED/*.safetensors \
        --output benchmarks/results

Every encoder is a natural one with planted sinks, fresh or used to them (see
`benchmarks/plant_natural.py`), and `natural-vit-s14` itself. One row a way and encoder:
copy detection in its symmetric form on photographs held out from every choice, paired with the same
encoder in FP32, and the mean cosine to it. W8A8 in simulation, NNCF in OpenVINO. FP32 with RegCache
stands beside every gain: what it gains there is healing, not quantization. RegCache's numbers are
chosen among a few on the search photographs, by copy detection against a float index.

The first `--search` photographs of the folder (in the order of seed 0) plant, calibrate and choose;
the others judge. Finished rows of an earlier run into the same file are kept, so that a long run
can be interrupted.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from regcache_deploy.data.copies import with_copies
from regcache_deploy.data.folder import load_folder
from regcache_deploy.data.images import Images
from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.encoder_file import read_encoder
from regcache_deploy.encoders.load import load_model
from regcache_deploy.encoders.load_natural import NATURAL
from regcache_deploy.encoders.regcache import RegCache, RegCacheConfig
from regcache_deploy.evaluation import Score, compare_paired
from regcache_deploy.evaluation.corners import calibrate_corner
from regcache_deploy.evaluation.instances import InstanceTop1, SymmetricInstances, search_objective
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.simulate import Calibration, Quantization
from regcache_deploy.search.register.capture import capture, rank_candidates

BATCH = 16
CHOICES = ((0, 0), (4, 4), (4, 8), (4, 12))
"""(tau, k~) among which RegCache's numbers are chosen; nothing is among them."""

NONE = RegCacheConfig(0, 0, 0, 0)


@dataclass
class Subject:
    """One encoder with the photographs.

    Attributes:
        encoder: in floating point.
        ratio: planted; 1 where nothing is.
        kind: `healthy`, `planted` or `adapted`.
        seed: of the planting.
        block: k.
        search, judge: photographs; those to judge with their altered copies behind them.
        calibration_count: of the search photographs, the first ones.
        nncf_python: an interpreter that has nncf and openvino, or None.
        preprocess: open_clip's preprocess_cfg.
        caution: what its figures must be read with.
    """

    encoder: Encoder
    ratio: float
    kind: str
    seed: int
    block: int
    search: Images
    judge: Images
    calibration_count: int
    nncf_python: str | None
    preprocess: Mapping[str, Any] = field(repr=False)
    caution: str = ""

    @property
    def key(self) -> dict[str, Any]:
        """Columns that say which measurement a row is of."""
        return {
            "kind": self.kind,
            "ratio": float(self.ratio),
            "seed": self.seed,
            "search_images": len(self.search),
            "calibration_images": self.calibration_count,
            "n": len(self.judge) // 2,
        }

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of the CSV is of this subject on these photographs."""
        return all(str(row.get(name)) == str(value) for name, value in self.key.items())

    @cached_property
    def tokens(self) -> Tensor:
        """Of the calibration photographs, at the input of block 0."""
        some = self.search.subset(slice(0, self.calibration_count))
        return torch.cat([self.encoder.embed(b) for b in some.batches(BATCH)])

    @cached_property
    def register(self) -> dict[int, Tensor]:
        k = self.block
        ranking = rank_candidates(self.encoder, self.search.batches(BATCH), [k], k)

        def images(rows: Tensor) -> Tensor:
            return self.search.normalized(self.search.pixels[rows])

        return capture(self.encoder, images, {k: ranking.by_input[k]}, BATCH)[k].register()

    @cached_property
    def objective(self) -> InstanceTop1:
        reference = self.run(Calibration(self.encoder, Quantization()), self.search)
        return search_objective(self.encoder, self.search, reference, batch_size=BATCH)

    def config(self, choice: tuple[int, int]) -> RegCacheConfig:
        return RegCacheConfig(self.block, choice[0], self.block, choice[1])

    def run(self, calibration: Calibration, images: Images) -> Tensor:
        """Features `[n, E]` of the simulation."""
        numerics = calibration.numerics()
        batches = images.batches(BATCH)
        return torch.cat([calibration.encoder(b, numerics, calibration.regcache) for b in batches])

    def calibrate(self, quantizer: str | None, choice: tuple[int, int]) -> Calibration:
        """A quantizer, or float for None, with one choice of RegCache."""
        config = self.config(choice)
        register = self.register if config.has_prefix else {}
        if quantizer is None:
            regcache = None if config.is_empty else RegCache(config, register)
            return Calibration(self.encoder, Quantization(), regcache)
        return calibrate_corner(
            make_baseline(quantizer), self.encoder, self.tokens, config, register
        )


@dataclass(frozen=True)
class Outcome:
    """Features of the photographs that judge, `[2n, E]`, and what was chosen, in words."""

    features: Tensor
    choice: str = ""


Run = Callable[[Subject], Outcome]


def fixed(quantizer: str | None) -> Run:
    """A quantizer as it is."""
    return lambda s: Outcome(s.run(s.calibrate(quantizer, (0, 0)), s.judge))


def chosen(quantizer: str | None) -> Run:
    """RegCache on top, its numbers chosen on the search photographs."""

    def run(subject: Subject) -> Outcome:
        best: tuple[tuple[float, float], tuple[int, int], Calibration] | None = None
        for choice in CHOICES:
            calibration = subject.calibrate(quantizer, choice)
            key = subject.objective.score(subject.run(calibration, subject.search)).key
            if best is None or key > best[0]:
                best = (key, choice, calibration)
        assert best is not None
        return Outcome(subject.run(best[2], subject.judge), f"tau {best[1][0]}, k~ {best[1][1]}")

    return run


def nncf(smooth: bool) -> Run:
    return lambda s: Outcome(
        nncf_features(
            s.encoder, s.preprocess, s.search, s.calibration_count, s.judge, smooth, s.nncf_python
        )
    )


@dataclass(frozen=True)
class Way:
    """One curve."""

    name: str
    title: str
    run: Run


WAYS = (
    Way("fp32", "FP32", fixed(None)),
    Way("fp32_regcache", "FP32 + RegCache", chosen(None)),
    Way("naive", "min-max", fixed("naive")),
    Way("repqvit", "RepQ-ViT", fixed("repqvit")),
    Way("ptq4vit", "PTQ4ViT", fixed("ptq4vit")),
    Way("nncf", "NNCF", nncf(smooth=True)),
    Way("nncf_plain", "NNCF without SmoothQuant", nncf(smooth=False)),
    Way("naive_regcache", "min-max + RegCache", chosen("naive")),
    Way("repqvit_regcache", "RepQ-ViT + RegCache", chosen("repqvit")),
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
        "caution": subject.caution,
    }


@torch.no_grad()
def measure(subject: Subject, ways: Sequence[Way], done: set[str]) -> list[dict[str, Any]]:
    """Rows of the ways that are not `done`."""
    if all(way.name in done for way in ways):
        return []
    reference = WAYS[0].run(subject)
    judge = SymmetricInstances(reference.features)
    base = judge.score(reference.features)
    rows = []
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
        rows.append(row | {"seconds": round(time.monotonic() - began, 1)})
        print(
            f"  {way.title}: {row['copy_detection']:.1f} (cosine {row['cosine']:.4f})", flush=True
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    machine = describe_machine()
    path = args.output / f"severity-{environment_name(machine)}.csv"
    rows = read_rows(path)
    ways = [way for way in WAYS if not args.only or way.name in args.only]
    for subject in subjects(args):
        done = {row["way"] for row in rows if subject.has(row)}
        print(f"{subject.kind}, ratio {subject.ratio:g}, seed {subject.seed}", flush=True)
        found = measure(subject, ways, done)
        if found:
            columns = environment_columns(machine, describe_machine())
            day = {"measured_at": time.strftime("%Y-%m-%d", time.gmtime())}
            rows += [row | columns | day | {"note": args.note} for row in found]
            write_rows(path, rows, {})
    path.with_suffix(".svg").write_bytes(severity_plot.draw(rows, [w.name for w in WAYS]))
    print(path)
    return 0


def subjects(args: argparse.Namespace) -> list[Subject]:
    """The healthy encoder, then the files, mildest first."""
    model = load_model(NATURAL)
    images = load_folder(args.data, model.preprocess, None, 0)
    judged = images.subset(
        slice(args.search, None if args.judge is None else args.search + args.judge)
    )
    common: dict[str, Any] = {
        "search": images.subset(slice(0, args.search)),
        "judge": with_copies(judged),
        "calibration_count": args.calibration_images,
        "nncf_python": args.nncf_python,
        "preprocess": model.preprocess,
    }
    found = [Subject(model.encoder, 1.0, "healthy", 0, args.block, **common)]
    for path in args.encoders:
        content = read_encoder(path)
        plant, kind = content.facts["planting"], content.facts["adaptation"]
        found.append(
            Subject(
                content.encoder,
                plant["ratio"],
                "planted" if kind is None else "adapted",
                plant["seed"],
                plant["block"],
                **common,
                caution=content.caution,
            )
        )
    return sorted(found, key=lambda s: (s.kind, s.ratio, s.seed))


def read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--encoders", type=Path, nargs="*", default=[], help="of plant_natural")
    parser.add_argument("--search", type=int, default=100, help="photographs to choose on")
    parser.add_argument("--judge", type=int, help="photographs to judge on (default: the others)")
    parser.add_argument("--calibration-images", type=int, default=32)
    parser.add_argument("--block", type=int, default=3, help="RegCache's, of the healthy encoder")
    parser.add_argument("--only", nargs="+", default=[], choices=[w.name for w in WAYS])
    parser.add_argument("--nncf-python", help="interpreter with nncf and openvino")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--note", default="", help="e.g. that the machine was shared")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
