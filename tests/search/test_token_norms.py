"""How massive tokens are at the sensitive layer, before and after, and where it is told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from regcache_deploy.cli.main import main
from regcache_deploy.data.images import Images
from regcache_deploy.encoders.regcache import RegCache, RegCacheConfig
from regcache_deploy.search.token_norms import largest_norms, measure_norms
from regcache_deploy.work.cache import PartCache
from regcache_deploy.work.count import Work
from regcache_deploy.work.format import norms_rows
from tests.tiny_plans import CHOICE, tiny_encoder, tiny_regcache


def image_sets(count: int = 5) -> Any:
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randint(0, 256, (count, 32, 24, 3), dtype=torch.uint8, generator=generator)
    search = Images(pixels=pixels, mean=(0.5,) * 3, std=(0.25,) * 3, source="noise", tried=count)
    return SimpleNamespace(search=search)


@torch.no_grad()
def test_norms_are_those_of_the_layers_own_input() -> None:
    encoder, sets = tiny_encoder(), image_sets()
    tokens = encoder.embed(sets.search.normalized(sets.search.pixels))
    want = encoder.norm("blocks.0.norm1", tokens).abs().amax(dim=(1, 2))
    torch.testing.assert_close(largest_norms(encoder, sets, "blocks.0.attn.qkv", None, 2), want)
    behind = encoder.run_blocks(tokens, 0, 2)
    want = encoder.norm("blocks.2.norm1", behind).abs().amax(dim=(1, 2))
    torch.testing.assert_close(largest_norms(encoder, sets, "blocks.2.attn.qkv", None, 3), want)


@torch.no_grad()
def test_after_is_what_the_ranges_see(tmp_path: Path) -> None:
    """Tokens that the graph keeps and saturates are absent from the measure, and it says so."""
    encoder, sets = tiny_encoder(), image_sets()
    register = tiny_regcache(encoder).register
    cache = PartCache(tmp_path, {}, Work())

    def measured(config: RegCacheConfig) -> Any:
        layer = "blocks.1.mlp.fc2"
        return measure_norms(encoder, sets, layer, config, register, cache, 4).to_json()

    deleting, saturating = measured(CHOICE), measured(CHOICE.deleting(0, 4))
    assert deleting["before"] == saturating["before"]
    assert deleting["after"] == saturating["after"] != deleting["before"]
    assert "saturate" not in deleting["after_means"]
    assert saturating["after_means"].endswith("the graph keeps 4 of them, which saturate")
    regcache = RegCache(CHOICE, register)
    want = largest_norms(encoder, sets, "blocks.1.mlp.fc2", regcache, 5)
    assert deleting["after"]["largest"] == pytest.approx(float(want.max()))
    assert deleting["after"]["mean"] == pytest.approx(float(want.mean()))
    nothing = measured(RegCacheConfig(1, 0, 1, 0))
    assert nothing["after"] is None
    assert norms_rows(nothing).keys() == {
        "largest token norm there",
        "mean of each image's largest",
    }
    assert norms_rows(None) == {}


def test_planted_sinks_shrink_in_terminal_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", "--baseline", "naive", "--output", str(tmp_path), "-q"]
    words += ["--search-images", "24", "--calibration-images", "8", "--limit", "4"]
    words += ["--prefix-block", "2", "--prefix-count", "4", "--delete-count", "6"]
    assert main([*words, "--json"]) == 0
    norms = json.loads(capsys.readouterr().out)["token_norms"]
    assert norms["images"] == 24
    for name in ("largest", "mean"):
        assert norms["after"][name] < 0.2 * norms["before"][name], name
    assert main(words) == 0
    text = capsys.readouterr().out
    before, after = (f"{norms[side]['largest']:.2f}" for side in ("before", "after"))
    assert f"{before} -> {after}" in text
    assert "token_norms" in json.loads((tmp_path / "search.json").read_text())
