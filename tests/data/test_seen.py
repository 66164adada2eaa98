"""A data set that a bundle was made with is told when it is to judge it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regcache_deploy.contract.data import load_judge_data
from regcache_deploy.data.seen import seen_line
from regcache_deploy.errors import DataError
from regcache_engines import Bundle
from regcache_export.bundle import write_bundle
from tests.tiny_plans import tiny_plan
from tests.worker_commands import write_run


@pytest.mark.parametrize("key", ["options", "recalibrated"])
def test_the_place_counts_however_it_is_written(key: str, tmp_path: Path) -> None:
    train = tmp_path / "train"
    train.mkdir()
    (tmp_path / "link").symlink_to(train)
    made: dict[str, Any] = {key: {"data": str(train)}}
    for place in (str(train), f"{train}/../train", str(tmp_path / "link")):
        assert "flatter" in str(seen_line(made, place))
    assert seen_line(made, str(tmp_path)) is None
    chosen = {"build": {"form": "mixed", "place": str(train)}}
    again = {"recalibrated": {"data": "10 of 20 images", "place": str(train)}}
    assert all("chosen on" in str(seen_line(each, str(train))) for each in (chosen, again))
    for nothing in ({}, {key: None}, {key: {"data": None}}, {key: "x"}):
        assert seen_line(nothing, "demo") is None


def test_each_split_is_a_place() -> None:
    """`eval` takes the test split, `calibrate` the training split; digits are other ones each."""
    for data in ("torchvision:cifar10:x", "demo"):
        assert seen_line({"recalibrated": {"data": data}}, data) is None
        for key in ("recalibrated", "build"):  # by `build`, which judges on what `eval` takes
            again = {key: {"data": "10 of 20 images", "place": data}}
            assert "flatter" in str(seen_line(again, data))
    assert seen_line({"options": {"data": "demo"}}, "demo") is None
    searched = {"options": {"data": "torchvision:cifar10:x"}}
    calibrated = searched | {"recalibrated": {"data": "torchvision:cifar10:x"}}
    assert "flatter" in str(seen_line(calibrated, "torchvision:cifar10:x"))


def test_each_shard_is_a_place(tmp_path: Path) -> None:
    for name in ("0.tar", "1.tar"):
        (tmp_path / name).touch()
    made = {"options": {"data": f"{tmp_path}/{{0..1}}.tar"}}
    for place in (tmp_path, tmp_path / "1.tar"):
        assert "flatter" in str(seen_line(made, str(place)))
    assert seen_line({"options": {"data": str(tmp_path / "0.tar")}}, f"{tmp_path}/1.tar") is None
    (tmp_path / "0.tar").unlink()
    assert seen_line(made, f"{tmp_path}/1.tar") is None


def test_the_judge_of_a_contract_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_run(tmp_path)
    data = tmp_path / "data"
    plan = tiny_plan()
    plan.provenance["options"] = {"data": str(data)}
    bundle = Bundle.open(write_bundle(plan, tmp_path / "own.regcache"))
    with pytest.raises(DataError, match="too few"):  # fourteen; the line comes before
        load_judge_data(bundle, str(data), None, 0)
    assert "flatter it" in caplog.text


def test_what_a_judge_leaves_out_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path)
    (tmp_path / "data" / "cat" / "notes.txt").write_text("no image")
    bundle = Bundle.open(write_bundle(tiny_plan(), tmp_path / "own.regcache"))
    with pytest.raises(DataError, match="too few"):
        load_judge_data(bundle, str(tmp_path / "data"), None, 0)
    assert caplog.text.count("1 file is no image of a class") == 1
