"""Parts of embeddings: what counts as one, what is refused, and names of every kind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from regcache_deploy.data.embedding_files import Column, EmbeddingFolder
from regcache_deploy.errors import DataError


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        '{"sample_count": "4", "unreadable": []}',
        '{"sample_count": 4}',
        '{"sample_count": 4, "unreadable": [{"image_path": "a"}]}',
        '{"sample_count": 4, "unreadable": [{"image_path": "a", "reason": null}]}',
    ],
)
def test_stats_that_are_not_ours_are_no_part(text: str, tmp_path: Path) -> None:
    folder = EmbeddingFolder(tmp_path, 1, "jsonl")
    folder.begin({})
    folder.write(0, np.ones((4, 2), np.float32), {}, {"sample_count": 4, "unreadable": []})
    assert folder.finished(0) is not None
    (tmp_path / "stats/0.json").write_text(text)
    assert folder.finished(0) is None


def test_two_runs_that_write_one_part_at_once_both_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler starts a task again whose first process goes on."""
    one, other = (EmbeddingFolder(tmp_path, 1, "jsonl") for _ in range(2))
    one.begin({})
    columns: dict[str, Column] = {"image_path": ["a", "b"]}
    part = (0, np.ones((2, 2), np.float32), columns, {"sample_count": 2, "unreadable": []})
    rename, between = os.replace, [other]

    def replace_late(source: str, target: Path) -> None:
        if between:
            between.pop().write(*part)
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace_late)
    one.write(*part)
    assert one.finished(0) is not None
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("text", ["[]", "{", "null"])
def test_a_damaged_job_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(DataError, match="take another --output"):
        EmbeddingFolder(tmp_path, 1).begin({})


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_file_name_that_is_no_utf8_has_its_row(form: str, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    folder = EmbeddingFolder(tmp_path, 1, form)
    folder.begin({})
    columns: dict[str, Column] = {"image_path": ["a.png", name], "caption": [None, "é"]}
    if form == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        folder.write(0, np.ones((2, 2), np.float32), columns, {})
        found = parquet.read_table(tmp_path / "metadata/metadata_0.parquet").to_pydict()
        assert found == {"image_path": ["a.png", r"caf\udce9.png"], "caption": [None, "é"]}
        return
    folder.write(0, np.ones((2, 2), np.float32), columns, {})
    lines = (tmp_path / "metadata/metadata_0.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["image_path"] for line in lines] == ["a.png", name]
    assert rb"caf\udce9.png" in lines[1]
