"""What a tool leaves open is chosen on the search images: NNCF's smoothing, and our own way."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import peer_nncf
import peer_table
import peers
import pytest
from peer_list import peers as all_peers
from peer_work import Work


def demo_work(folder, **changes):
    sizes = {"calibration_images": 4, "images": 2, "search_images": 8} | changes
    return Work("demo", None, folder, "naive", threads=1, **sizes)


def test_nncf_is_taken_at_its_best(tmp_path, monkeypatch):
    """The tool is not installed here; the choice and what the row says of it are ours."""
    work, saved = demo_work(tmp_path), []
    openvino = SimpleNamespace(save_model=lambda model, path, **keywords: saved.append(path))
    monkeypatch.setitem(sys.modules, "openvino", openvino)
    monkeypatch.setattr(peer_nncf, "_quantize", lambda work, alpha: alpha)
    reference = work.sets.reference
    signs = {-1.0: -1.0, 0.5: -1.0, 0.75: 1.0, 0.95: -1.0}  # the others point the other way
    monkeypatch.setattr(peer_nncf, "_features", lambda work, model: signs[model] * reference)
    path = peer_nncf.best_nncf(work)
    assert path.name == "nncf_0.75.xml"
    assert len(saved) == len(peer_nncf.SMOOTHING)
    assert work.notes["nncf"].startswith("SmoothQuant alpha 0.75, by top1 on 8 images")
    assert peer_nncf.best_nncf(work) == path  # the row with the other hint runs the same file
    assert len(saved) == len(peer_nncf.SMOOTHING)


def test_choices_see_no_held_out_image(tmp_path):
    work = demo_work(tmp_path)
    assert len(work.sets.search) == 8
    assert len(work.calibration) == 4
    assert "search" in work.sets.search.source
    assert "heldout" in work.held_out.source
    random = Work("ViT-B-32", "random:0", tmp_path, "naive", 3, 2, 1, search_images=100)
    assert random.options.search_images == 3


def test_auto_row_names_its_way(tmp_path):
    work = demo_work(tmp_path, search_images=6)
    plan = work.plan("auto")
    assert plan.linears
    assert "by top1 on 6 images; " in work.raced_words
    assert work.seconds["choice_auto"] > 0
    with pytest.raises(KeyError):
        work.notes["nncf"]  # nobody asked for it


def test_a_model_with_a_slash_has_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "compare", lambda *_: [{"peer": "x"}])
    words = ["--model", "timm/vit_tiny_patch16_224", "--output", str(tmp_path)]
    assert peers.main(words) == 0
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("peers-timm-vit-tiny-patch16-224-")


def test_on_a_busy_machine_nothing_is_timed(tmp_path):
    """Accuracy does not hang on the load; a file without times is not one of `peers-*`."""
    only = ["--only", "dynamic_quint8", "--images", "6", "--search-images", "6"]
    words = [*only, "--calibration-images", "4", "--threads", "1", "--baseline", "naive"]
    assert peers.main([*words, "--output", str(tmp_path), "--batches"]) == 0
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("peer_accuracy-demo-")
    rows = peer_table.read(path)
    known = {peer.name: peer for peer in all_peers()}
    assert [row["peer"] for row in rows] == ["torch_eager", "onnxruntime_fp32", "dynamic_quint8"]
    assert not any("step_time" in column for column in rows[0])
    assert rows[2]["settings"] == known["dynamic_quint8"].settings
    text = peer_table.table(path.name, rows)
    assert "Nothing was timed." in text
    assert "minutes" not in text
