"""The ablation table, on a random ViT with planted sinks."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import planted_vit
import pytest
import torch

from regcache_deploy.evaluation.image_sets import load_image_sets
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.quantizers import Bits
from regcache_deploy.run.options import ExportOptions
from regcache_deploy.search.ablation import VARIANTS, random_sink, run_ablation, write_ablation
from regcache_deploy.search.embedder import Embedder
from regcache_deploy.search.find import find_choice
from regcache_deploy.search.register.capture import capture, rank_candidates
from regcache_deploy.search.settings import SearchSettings
from regcache_deploy.work.cache import PartCache
from regcache_deploy.work.count import Work
from regcache_deploy.work.progress import Reporter
from tests.search.search_helpers import encoder_and_images


@torch.no_grad()
def test_every_corner_has_a_figure_with_paired_statistics_or_a_reason(tmp_path: Path) -> None:
    model, quiet = planted_vit.load(planted_vit.small(), 0), Reporter(quiet=True)
    options = ExportOptions(
        baseline="naive", search_images=48, calibration_images=8, limit=24, batch_size=48
    )
    sets = load_image_sets(options, model, quiet, tmp_path)
    cache, tokens = PartCache(None, {}, Work()), sets.calibration_tokens
    held_out = Embedder("held-out", model.encoder, sets.evaluation, tokens, cache, 48, quiet)
    judge = sets.judge(held_out.float_features)
    rows = run_ablation(options, sets, held_out, judge, quiet, ["naive"], ["W8A8", "W6A6"])
    assert [(row.baseline, row.bits) for row in rows] == [("naive", "W8A8"), ("naive", "W6A6")]
    for row in rows:
        assert tuple(row.cells) == VARIANTS
        for cell in row.cells.values():
            assert (cell.value is None) == bool(cell.reason)
    alone = replace(options, bits="W6A6")
    second = find_choice(
        alone,
        make_baseline("naive", Bits(6, 6)),
        model.encoder,
        load_image_sets(alone, model, quiet),
        quiet,
    )
    assert not second.result.best.is_empty
    assert second.result.best.to_json().items() <= rows[1].choice.items()
    cells = rows[0].cells
    assert rows[0].choice["delete_count"] == 4
    assert cells["fp32"].value == 1.0
    assert cells["both"].value > cells["baseline"].value  # type: ignore[operator]
    against = cells["both"].against_baseline
    assert against is not None
    assert against["low"] <= against["difference"] <= against["high"]
    assert cells["baseline"].against_baseline is None
    assert cells["random_sink"].value != cells["prefix_only"].value

    write_ablation(tmp_path / "ablation.csv", rows, {"model": "planted", "n": 24})
    with (tmp_path / "ablation.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * len(VARIANTS)
    both = next(r for r in table if (r["bits"], r["row"]) == ("W8A8", "both"))
    assert both["model"] == "planted"
    assert int(both["delete_count"]) == 4
    assert float(both["value"]) == pytest.approx(cells["both"].value, rel=1e-5)
    assert float(both["difference_to_baseline"]) == pytest.approx(against["difference"], rel=1e-5)
    baseline = next(r for r in table if r["row"] == "baseline")
    assert baseline["difference_to_baseline"] == ""
    assert float(baseline["difference_to_fp32"]) < 0


def test_the_random_sink_is_read_like_the_register() -> None:
    """One of the candidates, captured or sent through the blocks alone as the settings say."""
    encoder, images = encoder_and_images()
    ranking = rank_candidates(encoder, [images], [1], 1, size=5).by_input
    found = capture(encoder, lambda rows: images[rows], ranking)[1]
    for reading, of in (
        ("in_context", found.register),
        ("solo", lambda one: found.solo_register(encoder, one)),
    ):
        random = random_sink(found, encoder, SearchSettings(register=reading), 0)
        singles = [of(slice(i, i + 1)) for i in range(5)]
        assert sum(all(one[i].equal(random[i]) for i in random) for one in singles) == 1
