"""Every table reads well at 80, 100 and 140 columns, as the snapshots in `widths/` show.

After a wanted change: REGCACHE_SNAPSHOTS=write pytest tests/report/test_widths.py, then look at
the difference.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regcache_deploy.bench.results import print_table
from regcache_deploy.cli.calibrate import print_ranges
from regcache_deploy.cli.models import print_table as print_models
from regcache_deploy.encoders.catalogue import Entry
from regcache_deploy.encoders.regcache import RegCacheConfig
from regcache_deploy.evaluation import PairedComparison
from regcache_deploy.evaluation.records import Record
from regcache_deploy.report.contract import print_contract
from regcache_deploy.report.evaluation import print_records
from regcache_deploy.report.result import ExportResult
from regcache_deploy.report.terminal import print_result, print_search

FOLDER = Path(__file__).with_name("widths")
BUNDLE = "runs/ViT-B-16-SigLIP2-256-repqvit/ViT-B-16-SigLIP2-256-repqvit.regcache"
PAIR = PairedComparison(1000, -47.1, -50.5, -44.0, 482, 11, 7.5e-127)
SMALL = PairedComparison(1000, 0.4, 0.0, 0.8, 0, 4, 0.12)


def a_way(title: str, value: float, **more: Any) -> dict[str, Any]:
    return {
        "title": title,
        "value": value,
        "fidelity": 0.9,
        "cost": 1.1,
        "tied": 0,
        "chosen": 0,
    } | more


def an_export() -> ExportResult:
    return ExportResult(
        model="ViT-B-16-SigLIP2-256",
        baseline="repqvit",
        bits="W8A8",
        sensitive_layer="blocks.11.mlp.fc2",
        prefix_block_candidates=(9, 10, 11),
        config=RegCacheConfig(11, 12, 11, 0, range_delete_count=8),
        depth=12,
        search_accuracy=0.916,
        search_metric="top1",
        metric="top1",
        n_search=512,
        n_eval=1000,
        accuracy={"fp32": 0.936, "baseline": 0.465, "delete": 0.803, "recipe": 0.94}
        | {"deployed": 0.94},
        fidelity={"fp32": 1.0, "baseline": 0.73749, "delete": 0.92888, "recipe": 0.99914}
        | {"deployed": 0.99914},
        paired={"baseline": PAIR, "delete": PAIR, "recipe": SMALL, "deployed": SMALL},
        agreement={"top1": 1.0, "mean_cosine": 0.999998, "min_cosine": 0.999935},
        paper_form={"baseline": 0.457, "regcache": 0.937},
        differences=("weights: asymmetric -> symmetric, both per output channel",),
        results_csv=Path("runs/ViT-B-16-SigLIP2-256-repqvit/results.csv"),
        bundle=Path(BUNDLE),
        caution="synthetic demo model with planted sinks; says nothing about natural models",
        seconds=37.2,
        ways=(
            a_way("quantizer alone", 0.375),
            a_way("the sensitive block's fc2 in float", 0.91),
            a_way("RegCache", 0.916, chosen=1, tied=1),
            a_way("RegCache with smoothing and outlier channels", 0.916, tied=1),
        ),
        reason="RegCache: the cheapest graph of those that cannot be told apart by top-1 on the "
        "search images (1 other: RegCache with smoothing and outlier channels)",
        fidelity_way="smoothing and outlier channels",
        token_norms={
            "images": 512,
            "before": {"largest": 2035.45, "mean": 1839.27},
            "after": {"largest": 7.05, "mean": 4.92},
            "after_means": "prefix in place, 8 tokens an image absent, as ranges are set; the "
            "graph keeps 8 of them, which saturate",
        },
        speed={"value": 2.92, "low": 2.85, "high": 3.01, "rounds": 20, "batch": 1},
        warnings=("/data/imagenet/val/n01440764/ILSVRC2012_val_00000293.JPEG was left out",),
    )


def export() -> None:
    print_result(an_export())


def export_verbose() -> None:
    print_result(an_export(), verbose=True)


def search() -> None:
    cell = {"value": 0.375, "against_baseline": None, "reason": ""}
    better = {"value": 0.916, "against_baseline": PAIR.to_json(), "reason": ""}
    gone = {"value": None, "against_baseline": None, "reason": "no prefix was chosen"}
    choice = {"prefix_count": 7, "prefix_block": 2, "delete_count": 0, "range_delete_count": 8}
    row = {"baseline": "repqvit", "bits": "W8A8", "choice": choice}
    cells = {"baseline": cell, "both": better, "prefix_only": gone}
    details: dict[str, Any] = {
        "sensitivity": {"proxy": {"block": 11}},
        "ranking_recall": {"9": 0.97, "10": 0.99, "11": 1.0},
        "ablation": [row | {"cells": cells}],
    }
    cost = {"block_forwards": 123456, "exhaustive_block_forwards": 5678901}
    found = replace(an_export(), ways=(), bundle=None, details=details, search_cost=cost)
    print_search(found)


def bench_row(precision: str, batch: int, **more: Any) -> dict[str, Any]:
    row = {
        "bundle": "ViT-B-16-SigLIP2-256-repqvit",
        "engine": "onnxruntime",
        "threads": "default",
        "reason": "",
        "caution": "",
        "precision": precision,
        "infer_batch_size": batch,
        "infer_step_time": 1787.25,
        "p90_ms": 1903.5,
        "p99_ms": 2012.75,
        "infer_samples_per_sec": 4.5,
        "file_mib": 351.2,
        "peak_memory_mib": 1234.0,
    }
    return row | more


def bench() -> None:
    faster = {"speedup": 12.92, "speedup_low": 12.85, "speedup_high": 13.01}
    faster["speedup_over"] = "fp32"  # type: ignore[assignment]
    reason = "needs an NVIDIA GPU: no NVIDIA driver (libcuda.so.1 does not load)"
    print_table(
        {
            "environment": {
                "cpu": "AMD EPYC 7763 64-Core Processor",
                "cpu_flags": ["avx2", "avx512_vnni"],
                "cores": 2,
                "load": 3.75,
                "gpu": None,
            },
            "settings": {"images": "the 32 calibration images in the bundle", "fp32": "the plan's"},
            "rows": [
                bench_row("fp32", 1),
                bench_row("fp32", 8),
                bench_row("int8", 1, **faster),
                bench_row("int8", 8, **faster),
                bench_row("int8", 1, engine="tensorrt", reason=reason),
            ],
        }
    )


def evaluation() -> None:
    session: Any = SimpleNamespace(
        path=Path(BUNDLE),
        on=("fp32", "onnxruntime"),
        provenance={"caution": "random weights (seed 0): structure and speed only"},
        notes=["baseline: calibrated again on the certificate's images"],
        warnings=["2 images of /data/imagenet/val could not be read"],
    )
    data = "/data/imagenet/validation-with-class-folders"
    zero_shot = "zeroshot_classification"
    line = "half a point is 250 images; 21 of 50000 changed their class"
    records = [
        Record(data, zero_shot, "fp32", {"acc1": 0.6834}, 50000),
        Record(
            data, "zeroshot_classification", "onnxruntime", {"acc1": 0.6789}, 50000, SMALL, line
        ),
        Record(data, "fidelity", "onnxruntime", {"mean_cosine": 0.99912}, 50000),
    ]
    print_records(session, records, as_json=False)


def models() -> None:
    entry = Entry(
        name="timm/vit_so400m_patch14_reg4_siglip_gap_378.v2_webli",
        image_size=(378, 378),
        tokens=733,
        special_tokens=4,
        head_dim=72,
        pool="avg",
        gflops=1234.5,
        parameters=412_345_678,
        fuses_int8_attention=False,
    )
    small = replace(entry, name="ViT-B-32", image_size=(224, 192), tokens=50, gflops=8.7)
    refused = replace(small, name="ViT-X", refusal="windowed attention")
    print_models([entry, small, refused])


def build() -> None:
    drop = {"value": 2.3, "low": 1.2, "high": 3.54, "n": 1000, "metric": "top1"}
    ratio = {"value": 2.92, "low": 2.85, "high": 3.01, "rounds": 40}
    tried = {"form": "int8", "drop": drop, "speedup": ratio, "keep": False}
    mixed = tried | {"form": "mixed", "keep": True, "reasons": ["loses 0.20 points, of 0.5: kept"]}
    layers = ["blocks.2.mlp.fc2", "blocks.3.mlp.fc2", "blocks.4.attn.out_proj"]
    print_contract(
        {
            "kept": "mixed",
            "proven": False,
            "path": "runs/ViT-B-16-SigLIP2-256-repqvit/ViT-B-16-SigLIP2-256-repqvit-mixed/"
            "ViT-B-16-SigLIP2-256-repqvit-mixed.regcache",
            "contract": {"max_drop": 0.5, "min_speedup": 1.02, "strict": False},
            "tried": [
                tried | {"reasons": ["loses 2.30 points [1.20, 3.54], of at most 0.5: not kept"]},
                {"form": "unmerged", "keep": False, "reasons": ["no token is merged"]},
                mixed | {"float_layers": layers},
            ],
            "images": {"judged_on": 1000, "chosen_on": 1000},
            "drop_metric": "top-1",
            "drop_measured_on": "2000 images (demo digits, split heldout, seed 0)",
            "interval": "95 % bootstrap over paired images",
            "speed_measured_at": {
                "engine": "onnxruntime 1.23.0",
                "batch": 1,
                "threads": "default",
                "control": ratio | {"value": 1.0, "low": 0.99, "high": 1.01},
            },
            "warning": "the load was 3.75 on 2 cores",
            "caution": None,
        }
    )


def calibrate() -> None:
    layers = {
        f"blocks.{i}.{role}": {"before": 0.0117, "after": 0.0116, "kept_of_largest": 0.875}
        for i in (2, 11)
        for role in ("attn.out_proj", "mlp.fc2")
    }
    print_ranges(
        {
            "bundle": BUNDLE,
            "images": 5000,
            "kept_images": None,
            "observer": "percentile",
            "observer_bytes": 18.38 * 2**20,
            "layers": layers,
        }
    )


SCREENS: list[Callable[[], None]] = [
    export,
    export_verbose,
    search,
    bench,
    evaluation,
    models,
    build,
    calibrate,
]


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("screen", SCREENS, ids=lambda f: f.__name__)
def test_screens(
    screen: Callable[[], None],
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    screen()
    found = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"
    path = FOLDER / f"{screen.__name__}-{width}.txt"
    if os.environ.get("REGCACHE_SNAPSHOTS") == "write":
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")
    assert "…" not in found  # nothing is cut
    for line in found.splitlines():  # only paths, commands and refusals stand on long lines
        whole = line.startswith(("file: ", "next: ", "every ", BUNDLE, "ViT-X: "))
        assert len(line) <= width or whole, line
