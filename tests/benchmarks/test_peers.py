"""`benchmarks/peers.py`: rows with figures or reasons, and the table made of them."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import peer_readme
import peer_table
import peers
import pytest
from peer_list import peers as all_peers
from peer_tools import Peer, PeerError
from peer_work import Work

from regcache_deploy.bench.timing import Samples
from regcache_engines.tensorrt.probe import find_gpu
from regcache_export.checks import check_file


def demo_work(folder: Path, images: int = 12) -> Work:
    return Work(
        "demo",
        None,
        folder,
        "naive",
        calibration_images=4,
        images=images,
        threads=1,
        search_images=8,
    )


def refuse(work):
    raise PeerError("needs a machine\nthat is not here")


def crash(work):
    raise RuntimeError("foreign trouble")


def test_every_row_has_figures_or_a_reason(tmp_path):
    """The real tools that need nothing installed, one that refuses and one that crashes."""
    known = {peer.name: peer for peer in all_peers()}
    chosen = [known[name] for name in ("torch_eager", "onnxruntime_fp32", "static_linears")]
    chosen += [known["portable_plain"]]
    chosen.append(Peer("gone", "gone", "nothing", "none", refuse, chosen[0].open))
    chosen.append(Peer("crashed", "crashed", "nothing", "none", crash, chosen[0].open))
    output = ["--output", str(tmp_path / "out"), "--batches", "1", "5", "--rounds", "2"]
    args = peers.arguments([*output, "--images", "12"])
    rows = peers.compare(demo_work(tmp_path), chosen, args)
    by = {row["peer"]: row for row in rows}
    assert list(by) == [peer.name for peer in chosen]
    assert by["gone"]["reason"] == "needs a machine that is not here"
    assert by["crashed"]["reason"] == "RuntimeError: foreign trouble"
    assert "b1_infer_step_time" not in by["gone"]
    for name in ("torch_eager", "onnxruntime_fp32", "static_linears", "portable_plain"):
        assert by[name]["reason"] == ""
        assert by[name]["b5_infer_step_time"] > 0
        assert by[name]["n"] == 12
    # the float file is the same encoder, and the quantized ones are not
    assert by["onnxruntime_fp32"]["min_cosine"] > 0.99999
    assert by["onnxruntime_fp32"]["acc1_difference"] == 0
    assert by["portable_plain"]["mean_cosine"] < 0.999
    assert by["portable_plain"]["file_mib"] < 0.5 * by["onnxruntime_fp32"]["file_mib"]
    assert "b1_speedup" not in by["onnxruntime_fp32"]
    assert by["static_linears"]["calibration_images"] == 4
    assert "synthetic" in by["torch_eager"]["caution"]


def test_every_row_is_paired_with_nncf_too(tmp_path):
    known = {peer.name: peer for peer in all_peers()}
    stand_in = replace(known["static_linears"], name="nncf")
    chosen = [known["torch_eager"], known["onnxruntime_fp32"], stand_in]
    args = peers.arguments(["--output", str(tmp_path), "--batches", "--images", "12"])
    by = {row["peer"]: row for row in peers.compare(demo_work(tmp_path), chosen, args)}
    assert by["nncf"]["acc1_difference"] < 0
    assert by["onnxruntime_fp32"]["nncf_acc1_difference"] == -by["nncf"]["acc1_difference"]
    assert by["onnxruntime_fp32"]["nncf_won"] == by["nncf"]["lost"]
    assert "nncf_acc1_difference" not in by["nncf"]


def test_no_image_is_judged_by_those_beside_it(tmp_path):
    """`quantize_dynamic` has one range for a batch: features are those of each image alone."""
    peer = {peer.name: peer for peer in all_peers()}["dynamic"]
    work = demo_work(tmp_path)
    path = peer.make(work)
    features, _ = peers.embed(work, peer, path)
    alone = [peer.open(work, path, image.numpy())() for image in work.held_out.batches(1)]
    assert np.array_equal(features, np.concatenate(alone))


def test_our_own_failure_is_no_reason(tmp_path):
    known = {peer.name: peer for peer in all_peers()}
    broken = Peer("ours", "ours", "regcache-deploy", "none", crash, known["torch_eager"].open)
    args = peers.arguments(["--images", "2"])
    with pytest.raises(RuntimeError, match="foreign trouble"):
        peers.compare(demo_work(tmp_path, images=2), [broken], args)


def test_peers_are_those_of_the_issue():
    names = [peer.name for peer in all_peers()]
    assert len(set(names)) == len(names)
    assert {"torch_compile", "static_default", "dynamic", "nncf", "modelopt_int8"} <= set(names)
    assert {"dynamic_quint8", "openvino_default", "nncf_default", "tuned_auto"} <= set(names)
    assert {"tensorrt_fp16", "modelopt_fp8_tensorrt", "tensorrt_regcache"} <= set(names)
    assert all(peer.settings for peer in all_peers())


def test_our_file_for_tensorrt(tmp_path):
    """What TensorRT would get, held against its rules; without a GPU the row has its reason."""
    work = demo_work(tmp_path)
    report = check_file(work.ours("tensorrt", "plain"))
    report.require_ok()
    assert [block.int8_linears for block in report.blocks] == [6] * 6  # q, k and v apart
    assert work.seconds["tensorrt_plain"] > 0
    if find_gpu()[0] is None:
        known = {peer.name: peer for peer in all_peers()}
        with pytest.raises(PeerError, match="needs an NVIDIA GPU"):
            known["tensorrt_regcache"].make(work)


def test_speedup_is_against_onnxruntime_fp32():
    samples = Samples({"onnxruntime_fp32": [[4.0], [8.0]], "x": [[2.0], [4.0]]})
    columns = peers.timing_columns(samples, "x", 8)
    assert columns["b8_speedup"] == columns["b8_speedup_low"] == 2.0
    assert columns["b8_infer_samples_per_sec"] == pytest.approx(8e3 / 3, abs=0.01)


def row(**changes):
    return {
        "title": "tool",
        "model": "demo",
        "pretrained": "",
        "infer_img_size": "48",
        "reason": "",
        "caution": "planted model",
        "n": "50",
        "dataset": "some digits",
        "calibration_images": "4",
        "threads": "2",
        "cpu": "Fast CPU",
        "cpu_flags": "avx2",
        "cores": "2",
        "load": "0.1",
        "note": "shared machine",
        "acc1": "0.5",
        "acc1_difference": "-2.5",
        "acc1_low": "-4",
        "acc1_high": "-1",
        "b1_infer_step_time": "2.0",
        "b1_speedup": "2.5",
        "file_mib": "3.14",
        "minutes": "1.25",
    } | changes


def test_table_shows_cells_and_reasons(tmp_path):
    empty = dict.fromkeys(row(), "") | {"title": "other", "reason": "no GPU here"}
    rows = [row(acc1_difference="", b1_speedup="", title="first"), row(), empty]
    path = tmp_path / "peers-x.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row()))
        writer.writeheader()
        writer.writerows({k: r.get(k, "") for k in row()} for r in rows)
    assert peer_table.main([str(path), "--output", str(tmp_path / "t.md")]) == 0
    text = (tmp_path / "t.md").read_text()
    assert "| first | 50.0 % | 2.0 | 3.1 | 1.2 |" in text
    assert "| tool | 50.0 %, -2.5 [-4.0, -1.0] | 2.0 (×2.50) | 3.1 | 1.2 |" in text
    assert "| other |  |  |  |  |" in text
    assert "- other: no GPU here." in text
    assert "**Planted model.**" in text
    assert "shared machine." in text


def readme_rows(model, **changes):
    """Three peers of one model: the reference, ours, and one that did not run."""
    timed = {"b8_infer_step_time": "9.0", "b8_speedup": "2.1", "gpu": "", "model": model}
    timed |= {"measured_at": "2026-01-02", "cpu_flags": "avx2"} | changes
    reference = row(**timed, title="reference", peer="onnxruntime_fp32") | {
        "b1_speedup": "",
        "b8_speedup": "",
    }
    gone = dict.fromkeys(reference, "") | {
        "peer": "tensorrt_fp16",
        "title": "TRT",
        "reason": "no GPU",
    }
    return [reference, row(**timed, title="ours", peer="tuned_regcache"), gone | {"model": model}]


def test_readme_table_is_of_the_last_machine(tmp_path):
    random = {name: "" for name in row() if name.startswith("acc1")}
    tables = [
        readme_rows("vit", caution="random weights", **random),
        readme_rows("demo"),
        readme_rows("demo", cpu="Old CPU", measured_at="2025-01-01", acc1_difference="-9"),
    ]
    files = []
    for index, rows in enumerate(tables):
        files.append(tmp_path / f"peers-{index}.csv")
        with files[-1].open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{peer_readme.BEGIN}\nold\n{peer_readme.END}\nbelow\n")
    for _ in range(2):  # again over itself
        assert peer_readme.main([*map(str, files), "--readme", str(readme)]) == 0
        text = readme.read_text()
        assert text.startswith("above\n")
        assert text.endswith("\nbelow\n")
        assert (
            "| ours | -2.5 [-4.0, -1.0] | 2.0 (×2.5), 9.0 (×2.1) | 2.0 (×2.5), 9.0 (×2.1) |" in text
        )
        assert "| reference | -2.5 [-4.0, -1.0] | 2.0, 9.0 | 2.0, 9.0 |" in text
        assert "**planted model**; 50 held-out images" in text
        assert "**random weights**; 2 threads" in text
        assert "- Not run: TRT (no GPU)." in text
        assert "-9" not in text
        assert "old" not in text
    readme.write_text("no markers")
    with pytest.raises(SystemExit):
        peer_readme.main([str(files[0]), "--readme", str(readme)])
    assert readme.read_text() == "no markers"


def test_readme_table_says_why_a_cell_is_empty():
    demo, vit = readme_rows("demo"), readme_rows("vit")
    failed = dict.fromkeys(vit[1], "") | {"peer": "tuned_regcache", "title": "ours"}
    lines = peer_readme.lines([demo, [vit[0], failed | {"reason": "no memory"}]])
    assert "| ours | -2.5 [-4.0, -1.0] | 2.0 (×2.5), 9.0 (×2.1) |  |  |" in lines
    assert lines[-1] == "- Not run: ours with vit, 48 pixels (no memory); TRT (no GPU)."
    lines = peer_readme.lines([demo, vit[:1]])
    assert "ours with vit, 48 pixels (not asked for)" in lines[-1]


def test_cosine_where_there_is_no_top1():
    cells = peer_table.accuracy(
        row(acc1="", mean_cosine="0.98765", mean_cosine_low="0.98", mean_cosine_high="0.99")
    )
    assert cells == "0.9877 [0.9800, 0.9900]"
    assert peer_table.accuracy(row(acc1="", mean_cosine="")) == "reference"


def test_accuracy_of_identical_features(tmp_path):
    work = demo_work(tmp_path, images=3)
    features = np.random.default_rng(0).standard_normal((3, 128)).astype(np.float32)
    columns = peers.accuracy(work, features, features, first=False)
    assert columns["acc1_difference"] == 0
    assert columns["mean_cosine"] == columns["mean_cosine_low"] == 1
