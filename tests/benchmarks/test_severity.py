"""The severity curve on a tiny planted encoder: rows, resumption, picture. No figure is judged."""

from __future__ import annotations

import csv

import severity
import severity_plot
import torch

from regcache_deploy.bench.results import write_rows
from regcache_deploy.compat import import_open_clip
from regcache_deploy.data.copies import with_copies
from regcache_deploy.data.images import Images
from regcache_deploy.encoders.timm_vit import from_timm


def subject() -> severity.Subject:
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
    small = torch.randint(0, 256, (14, 4, 4, 3), generator=generator, dtype=torch.uint8)
    pixels = small.repeat_interleave(14, 1).repeat_interleave(14, 2)
    images = Images(pixels, (0.5,) * 3, (0.5,) * 3, "squares")
    return severity.Subject(
        from_timm(model.eval()),
        36,
        "planted",
        0,
        2,
        search=images.subset(slice(0, 8)),
        judge=with_copies(images.subset(slice(8, None))),
        calibration_count=4,
        nncf_python=None,
        preprocess={},
    )


def test_rows_are_paired_with_fp32_and_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(severity, "CHOICES", ((0, 0), (2, 2)))
    tiny = subject()
    ways = [w for w in severity.WAYS if w.name in ("fp32", "naive", "naive_regcache", "nncf")]
    rows = severity.measure(tiny, ways, set())
    assert [row["way"] for row in rows] == ["fp32", "naive", "naive_regcache"]
    assert "NNCF: not run" in capsys.readouterr().out
    first = rows[0]
    assert (first["difference"], first["lost"], first["won"]) == (0, 0, 0)
    assert first["cosine"] == 1
    assert first["n"] == 6
    assert rows[1]["cosine"] < 1
    assert rows[2]["choice"].startswith("tau ")

    path = tmp_path / "severity.csv"
    write_rows(path, rows, {})
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert all(tiny.has(row) for row in read)
    assert not tiny.has(read[0] | {"n": "400"})
    done = {row["way"] for row in read}
    assert severity.measure(tiny, [way for way in ways if way.name in done], done) == []
    picture = severity_plot.draw(read, [way.name for way in severity.WAYS])
    assert b"<svg" in picture
    assert picture != severity_plot.draw([], [way.name for way in severity.WAYS])
