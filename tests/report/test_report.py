"""The pictures and the page of a search: complete, self-contained, and honest about the model."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regcache_deploy.cli.main import main
from regcache_deploy.encoders.regcache import RegCache, RegCacheConfig
from regcache_deploy.errors import DataError
from regcache_deploy.report.html import write_page
from regcache_deploy.report.plots import PICTURES, write_plots
from regcache_deploy.report.search_sections import decision
from regcache_deploy.search.ablation import TITLES, VARIANTS
from regcache_deploy.search.pictures import kept_positions, token_norms
from regcache_deploy.work.json_file import write_json
from tests.search.search_helpers import encoder_and_images

DEPTH = 4
SECTIONS = ("answer", "accuracy", "decision", "tokens", "layers", "cost", "ablation", "settings")
"""Of a search alone; a bundle and a benchmark add more (test_report_bundle.py)."""


def a_document() -> dict[str, Any]:
    layers = {
        f"blocks.{i}.{role}": {"drop": 0.1, "cosine": 1 - 10.0 ** -(i + 2)}
        for i in range(DEPTH)
        for role in ("attn.qkv", "attn.out_proj", "mlp.fc1", "mlp.fc2")
    }
    trial = {"stage": "screen", "prefix_block": 1, "prefix_count": 2, "delete_block": 2}
    trials = [
        trial
        | {"delete_count": d, "images": n, "value": 0.5 + d / 10, "block_forwards": 99 * n + d}
        for n in (4, 12)
        for d in range(3)
    ]
    pair = {"difference": -1.5, "low": -3.0, "high": 0.0, "p_value": 0.04}
    cells = {
        name: {"value": 0.5, "reason": "", "against_fp32": pair, "against_baseline": pair}
        for name in VARIANTS
    }
    cells["prefix_only"] = {
        "value": None,
        "reason": "the search chose no prefix",
        "against_fp32": None,
        "against_baseline": None,
    }
    return {
        "model": "<b>tiny</b>",
        "baseline": "naive",
        "bits": "W4A4",
        "caution": "random weights & planted sinks",
        "sensitive_block": 2,
        "sensitive_layer": "blocks.2.mlp.fc2",
        "prefix_count": 2,
        "prefix_add_blocks": [1, 2, 3],
        "delete_block": 2,
        "delete_count": 2,
        "search_accuracy": 0.7,
        "search_metric": "top1",
        "metric": "top1",
        "n_search": 12,
        "n_eval": 34,
        "accuracy": {"fp32": 0.9, "baseline": 0.1, "regcache": 0.8125, "deployed": None},
        "paired": {"baseline": pair, "regcache": pair},
        "gain": {"found": True, "p_value": 0.001, "undecided": 3},
        "search_cost": {
            "block_forwards": 1234,
            "exhaustive_block_forwards": 56780,
            "seconds": 7.0,
            "peak_memory_bytes": 2**30,
        },
        "sensitivity": {
            "images": 16,
            "layers": layers,
            "proxy": {"block": 2, "fc2_input": [1, 2, 50, 3], "block_input": [1, 1, 2, 40]},
        },
        "ranking_recall": {"1": 0.25, "2": 1.0},
        "trials": trials,
        "ablation": [
            {
                "baseline": "naive",
                "bits": "W4A4",
                "choice": {
                    "prefix_count": 2,
                    "prefix_block": 1,
                    "delete_count": 2,
                    "delete_block": 2,
                },
                "cells": cells,
            }
        ],
        "options": {"model": "tiny", "limit": None},
        "readings": {"strategy": "default"},
        "warnings": ["one image could not be read"],
    }


def some_arrays() -> dict[str, Any]:
    norms = np.linspace(1, 100, DEPTH * 5).reshape(DEPTH, 5)
    after = norms.copy()
    after[2:, 3] = np.nan
    deleted = np.zeros((3, 2, 2), dtype=bool)
    deleted[:, 1, 0] = True
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    return {
        "largest_before": norms,
        "largest_after": after,
        "deleted": deleted,
        "thumbnails": images,
    }


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    document = a_document()
    document["plots"] = write_plots(folder / "plots", document, some_arrays())
    write_json(folder / "search.json", document)
    return folder


class Page(HTMLParser):
    """What the page refers to, and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def test_page_is_one_file_with_everything_in_it(run_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "page.html"
    assert main(["report", str(run_folder), "--output", str(output), "-q"]) == 0
    text = output.read_text(encoding="utf-8")
    page = Page(text)
    images = [a for tag, a in page.tags if tag == "img"]
    assert len(images) == len(PICTURES) == 5
    assert all(
        (a["src"] or "").startswith("data:image/svg+xml;base64,") and a["alt"] for a in images
    )
    assert not [a for tag, a in page.tags if tag in ("script", "link", "iframe")]
    links = [a["href"] or "" for tag, a in page.tags if tag == "a"]
    anchors = {f"#{a['id']}" for tag, a in page.tags if tag == "section"}
    assert set(links) == anchors == {f"#{name}" for name in SECTIONS}
    assert not re.search(r"(src|href)=\"https?:|url\(", text)


def test_page_says_what_it_is_and_escapes(run_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    assert main(["report", str(run_folder), "--output", str(output)]) == 0
    text = output.read_text(encoding="utf-8")
    assert "<b>tiny" not in text
    assert "random weights &amp; planted sinks" in text
    words = " ".join(Page(text).words)
    for expected in ("81.25 %", "-1.50 [-3.00, +0.00]", "the search chose no prefix", "3 choices"):
        assert expected in words
    for title in TITLES.values():
        assert title in words


def test_no_gain_is_said(run_folder: Path, tmp_path: Path) -> None:
    document = a_document() | {"delete_count": 0, "prefix_count": 0, "prefix_add_blocks": []}
    document["gain"] = {"found": False, "p_value": 1.0, "undecided": 0}
    document["plots"] = {name: f"plots/{name}.svg" for name in PICTURES}
    document["ablation"] = []
    write_page(run_folder, document, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "No gain" in text
    assert "#ablation" not in text


def test_no_gain_is_said_of_what_was_tried(tmp_path: Path) -> None:
    document = a_document() | {"delete_count": 0, "prefix_count": 0, "prefix_add_blocks": []}
    document["gain"] = {"found": False, "p_value": 1.0, "undecided": 0}
    nothing = {"stage": "fixed", "prefix_count": 0, "delete_count": 0}
    for trials, words in (
        ([nothing], "No prefix and no deletion: neither was asked for."),
        ([nothing, nothing | {"delete_count": 2}], "No gain: no deletion beat the baseline alone"),
        (document["trials"], "No gain: no prefix and no deletion beat the baseline alone"),
    ):
        made = decision(tmp_path, document | {"trials": trials})
        assert made is not None
        assert made.text[0].startswith(words)


def test_a_file_name_that_is_no_utf8_is_named(run_folder: Path, tmp_path: Path) -> None:
    document = a_document() | {"warnings": ["caf\udce9.jpg could not be read"]}
    document["plots"] = {name: f"plots/{name}.svg" for name in PICTURES}
    write_page(run_folder, document, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "caf\\udce9.jpg could not be read" in text


def test_same_search_gives_the_same_pictures(run_folder: Path, tmp_path: Path) -> None:
    files = write_plots(tmp_path / "plots", a_document(), some_arrays())
    for name in files.values():
        assert (tmp_path / name).read_bytes() == (run_folder / name).read_bytes()


def test_a_run_that_is_not_there_ends_in_one_line(tmp_path: Path, capsys: Any) -> None:
    assert main(["report", str(tmp_path)]) == 4
    assert "regcache search" in capsys.readouterr().err
    (tmp_path / "search.json").write_text("{")
    assert main(["report", str(tmp_path)]) == 4
    document = a_document() | {"plots": dict.fromkeys(PICTURES, "plots/none.svg")}
    with pytest.raises(DataError, match="run `regcache search` again"):
        write_page(tmp_path, document, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("place", ["block_input", "mlp_input"])
def test_deleted_tokens_are_those_that_the_encoder_deletes(place: Any) -> None:
    encoder, images = encoder_and_images(3)
    config = RegCacheConfig(1, 0, 2, 4, place)
    regcache = RegCache(config)
    with torch.no_grad():
        tokens = encoder.embed(images)
        before = encoder.run_blocks(tokens, 0, 2)
        # what leaves block 2 in which order, told by a mark that no block mixes between tokens
        marked = before.clone()
        positions = torch.arange(before.shape[1]).expand(3, -1)
        kept = kept_positions(encoder, marked, regcache, positions)
        whole = encoder.block(2, before, regcache=regcache)
        if place == "block_input":
            alone = encoder.block(2, before.gather(1, kept[..., None].expand(-1, -1, 64)))
        else:
            everything = encoder.block(2, before)
            alone = everything.gather(1, kept[..., None].expand(-1, -1, 64))
        assert torch.allclose(whole, alone, atol=1e-5)
        means, largest = token_norms(encoder, tokens, regcache)
    assert not means[:3].isnan().any()
    for row in range(3):
        gone = set(range(before.shape[1])) - set(kept[row].tolist())
        assert len(gone) == 4
    everywhere = set.intersection(
        *(set(range(before.shape[1])) - set(kept[row].tolist()) for row in range(3))
    )
    assert set(torch.where(largest[3].isnan())[0].tolist()) == everywhere
