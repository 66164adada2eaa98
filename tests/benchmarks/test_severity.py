"""The severity curve on a tiny encoder: rows, resumption, picture. No figure is judged."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import severity
import severity_plot
import torch
from PIL import Image

from regcache_deploy.bench.results import write_rows
from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders.load_natural import preprocess_cfg
from regcache_deploy.encoders.model import LoadedModel
from regcache_deploy.encoders.timm_vit import from_timm
from regcache_deploy.errors import ConfigError
from regcache_deploy.run.options import ExportOptions


def subject(folder: Path) -> severity.Subject:
    import_open_clip()
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(
            "vit_small_patch14_dinov2",
            img_size=56,
            embed_dim=64,
            depth=4,
            num_heads=2,
            num_classes=0,
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.2)
    generator = torch.Generator().manual_seed(0)
    photos = folder / "photos"
    photos.mkdir()
    for index in range(14):
        small = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
        pixels = small.repeat_interleave(14, 0).repeat_interleave(14, 1).numpy()
        Image.fromarray(pixels).save(photos / f"{index:02}.png")
    loaded = LoadedModel("tiny", None, from_timm(model.eval()), preprocess_cfg((56, 56)))
    options = ExportOptions(
        data=photos,
        search_images=8,
        calibration_images=4,
        limit=6,
        batch_size=4,
        prefix_count=2,
        delete_count=2,
        recipe="auto",
    )
    return severity.Subject(loaded, 36, "planted", 0, options, folder / "parts", None)


@pytest.mark.slow
def test_rows_are_paired_with_fp32_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = subject(tmp_path)
    wanted = ("fp32", "fp32_regcache", "naive", "nncf", "delete", "saturate", "auto")
    ways = [w for w in severity.WAYS if w.name in wanted]
    rows = {row["way"]: row for row in severity.measure(tiny, ways, set())}
    assert set(rows) == set(wanted) - {"nncf"}
    assert "NNCF: not run" in capsys.readouterr().out
    first = rows["fp32"]
    assert (first["difference"], first["lost"], first["won"]) == (0, 0, 0)
    assert first["cosine"] == 1
    assert first["n"] == 6
    assert rows["naive"]["cosine"] < 1
    assert rows["delete"]["choice"].endswith("k~ 2 -> 2")
    assert rows["saturate"]["choice"].endswith("k~ 2 -> 0")
    assert rows["fp32_regcache"]["choice"] == rows["delete"]["choice"]
    assert rows["auto"]["choice"]

    path = tmp_path / "severity.csv"
    write_rows(path, list(rows.values()), {})
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert all(tiny.has(row) for row in read)
    assert not tiny.has(read[0] | {"seed": "1"})
    before = {name: value for name, value in read[0].items() if name not in tiny.made_of}
    assert tiny.has(before)  # a file from before does not say it
    for name in ("n", "search_images", *tiny.made_of):
        with pytest.raises(ConfigError, match=f"36.0, 0 with {name} 7, and"):
            tiny.has(read[0] | {name: "7"})
    done = {row["way"] for row in read}
    assert not list(severity.measure(tiny, [way for way in ways if way.name in done], done))
    picture = severity_plot.draw(read, [way.name for way in severity.WAYS])
    assert b"<svg" in picture
    assert picture != severity_plot.draw([], [way.name for way in severity.WAYS])


def test_no_photograph_judges_that_made_the_encoder() -> None:
    severity.require_held_out(Path("x"), {"photographs": 100}, 100)
    severity.require_held_out(Path("x"), {}, 100)
    for facts in ({"photographs": 150}, {}):
        seen = facts.get("photographs", 100)
        with pytest.raises(ConfigError, match=f"made with {seen} photographs.*--search {seen}"):
            severity.require_held_out(Path("x"), facts, 99)
