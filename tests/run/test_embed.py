"""`regcache embed`: clip-retrieval's files, whole whatever happens, however they are shared."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import regcache_engines
from regcache_deploy.cli.main import main
from regcache_deploy.data.decoders import Decoders
from regcache_deploy.data.parts import Picture, open_collection
from regcache_deploy.errors import DataError
from regcache_export.bundle import write_bundle
from tests.tiny_plans import PREPROCESS, tiny_plan

pytest.importorskip("onnxruntime")

COUNT, BROKEN, PART = 14, 5, 4
AUTOFAISS = os.environ.get("REGCACHE_AUTOFAISS_PYTHON", "")


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tiny_plan(), tmp_path_factory.mktemp("bundle") / "t.regcache")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(COUNT):
        place = folder / f"{index % 2}" / f"{index:02d}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(jpeg(index) if index != BROKEN else b"no image")
    return folder


def words(bundle: Path, data: object, output: Path, *more: str) -> list[str]:
    given = ["embed", str(bundle), "--data", str(data), "--output", str(output), "--json", "-q"]
    given += ["--part-images", str(PART), "--metadata", "jsonl", "--batch-size", "3"]
    return [*given, "--decoders", "1", "--threads", "1", *more]


def run(*arguments: Any, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(words(*arguments)) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def contents(output: Path) -> dict[str, bytes]:
    """Every file that does not hold times."""
    files = [p for p in output.rglob("*") if p.is_file() and p.parent.name != "stats"]
    return {str(p.relative_to(output)): p.read_bytes() for p in sorted(files)}


def rows(output: Path) -> tuple[list[str], np.ndarray]:
    """Paths and embeddings of all parts, as autofaiss reads them: in the order of the names."""
    paths: list[str] = []
    for file in sorted((output / "metadata").iterdir()):
        paths += [json.loads(line)["image_path"] for line in file.read_text().splitlines()]
    return paths, np.concatenate([np.load(f) for f in sorted((output / "img_emb").iterdir())])


@pytest.fixture(scope="module")
def whole(bundle: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out"
    assert main(words(bundle, images, output)) == 0
    return output


def test_rows_are_the_bundles_own_embeddings(whole: Path, bundle: Path, images: Path) -> None:
    paths, found = rows(whole)
    good = [str(p) for p in sorted(images.rglob("*.png")) if p.name != f"{BROKEN:02d}.png"]
    assert paths == good
    assert (found.dtype.name, found.shape[0]) == ("float16", COUNT - 1)
    with regcache_engines.open(bundle, threads=1) as clip:
        np.testing.assert_allclose(found, clip.embed_images(paths), atol=6e-4)
    np.testing.assert_allclose(np.linalg.norm(found.astype(np.float32), axis=1), 1, atol=2e-3)


def test_another_preprocessing_is_another_job(
    bundle: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = replace(tiny_plan(), preprocess=PREPROCESS | {"resize_mode": "squash"})
    assert main(words(bundle, images, tmp_path / "out")) == 0
    assert main(words(write_bundle(other, tmp_path / "o.regcache"), images, tmp_path / "out")) == 2
    assert "embeddings of another job (other: bundle)" in capsys.readouterr().err


def test_what_cannot_be_read_is_counted_and_listed(whole: Path) -> None:
    stats = [json.loads(p.read_text()) for p in sorted((whole / "stats").iterdir())]
    assert sum(part["sample_count"] for part in stats) == COUNT - 1
    ((name, reason),) = (each.values() for part in stats for each in part["unreadable"])
    assert name.endswith(f"1/{BROKEN:02d}.png")
    assert "identify" in reason
    assert {"start_time", "end_time", "read_duration", "inference_duration"} <= stats[0].keys()


@pytest.mark.parametrize("step", [0.0, -3600.0])
def test_a_clock_that_is_set_meanwhile_harms_nothing(
    step: float, bundle: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time servers set clocks back: a part took no time, or less."""
    times = itertools.count(1.8e9, step) if step else itertools.repeat(1.8e9)
    monkeypatch.setattr("regcache_deploy.run.embed_parts.time.time", lambda: next(times))
    assert main(words(bundle, images, tmp_path / "out")) == 0
    for path in (tmp_path / "out/stats").iterdir():
        assert json.loads(path.read_text())["total_duration"] > 0


@pytest.mark.parametrize("lost", ["img_emb/img_emb_1.npy", "metadata/metadata_1.jsonl", "stats"])
def test_a_part_that_lost_a_file_is_embedded_again(
    lost: str, whole: Path, bundle: Path, images: Path, tmp_path: Path, capsys: Any
) -> None:
    """By half a copy, for example: it counted as finished, and its rows were missing for ever."""
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    if lost == "stats":
        (output / "stats/1.json").write_text("{}")
    else:
        (output / lost).unlink()
    found = run(bundle, images, output, capsys=capsys)
    assert (found["already"], found["images"]) == (3, COUNT - 1)
    assert contents(output) == contents(whole)


def test_what_is_left_out_of_a_folder_is_counted(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        place.mkdir()
        (place / "a.png").write_bytes(jpeg(1))
    (folder / "b.heic").write_bytes(jpeg(2))
    (folder / "more").symlink_to(elsewhere)
    assert main(words(bundle, folder, tmp_path / "out")) == 0
    printed = capsys.readouterr()
    assert "2 files are no images by their name, or folders behind links; left out" in printed.err
    found = json.loads(printed.out)
    assert (found["images"], found["ignored"]) == (1, 2)
    (folder / "more").unlink()
    (folder / "c.png").write_bytes(b"none")
    assert main(words(bundle, folder, tmp_path / "again")) == 0
    said = capsys.readouterr().err
    assert "1 file is no image by its name" in said
    assert "1 image could not be read" in said


def test_partitions_give_the_same_files(
    whole: Path, bundle: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        run(bundle, images, tmp_path / "o", "--partition", f"{i}/3", capsys=capsys)
        for i in (2, 0, 1)
    ]
    assert [each["parts"] for each in found] == [1, 2, 1]
    assert sum(each["images"] for each in found) == COUNT - 1
    assert contents(tmp_path / "o") == contents(whole)


def test_a_run_goes_on_with_what_is_missing(
    whole: Path, bundle: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o"
    shutil.copytree(whole, output)
    (output / "stats/1.json").unlink()
    (output / "img_emb/img_emb_1.npy").write_bytes(b"half")
    for name in ("img_emb/.img_emb_1.npy.draft", "stats/.1.json.draft"):
        (output / name).write_bytes(b"of a killed run")
    kept = (output / "img_emb/img_emb_0.npy").stat().st_ino
    found = run(bundle, images, output, capsys=capsys)
    assert (found["parts"], found["already"], found["images"]) == (4, 3, COUNT - 1)
    assert (output / "img_emb/img_emb_0.npy").stat().st_ino == kept
    assert contents(output) == contents(whole)
    assert not list(output.rglob(".*"))
    again = run(bundle, images, output, capsys=capsys)
    assert (again["already"], again["images_per_second"]) == (4, None)


@pytest.mark.slow
def test_killed_ten_times_the_union_is_complete(
    whole: Path, bundle: Path, images: Path, tmp_path: Path
) -> None:
    output, draw = tmp_path / "o", random.Random(0)
    command = [sys.executable, "-m", "regcache_deploy", *words(bundle, images, output)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(10):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.5, 5))
        process.send_signal(draw.choice([signal.SIGKILL, signal.SIGTERM]))
        process.wait()
    assert subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode == 0
    found = {k: v for k, v in contents(output).items() if not Path(k).name.startswith(".")}
    assert found == contents(whole)


def test_another_job_is_refused(
    whole: Path, bundle: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(whole)
    assert main(words(bundle, images / "0", whole)) == 2
    assert "embeddings of another job (other: parts, files)" in capsys.readouterr().err
    other = write_bundle(tiny_plan(seed=7), tmp_path / "t.regcache")
    assert main(words(other, images, whole)) == 2
    assert "(other: bundle)" in capsys.readouterr().err
    assert main(words(bundle, images, whole, "--engine", "openvino")) == 2
    assert "(other: engine)" in capsys.readouterr().err
    assert contents(whole) == before


def test_a_job_of_before_says_how_it_goes_on(
    whole: Path, bundle: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = Path(shutil.copytree(whole, tmp_path / "begun"))
    job = json.loads((begun / "job.json").read_text())
    older = {name: value for name, value in job.items() if name != "engine"}
    older["bundle"] = {"model.onnx": job["bundle"]["model.onnx"]}
    (begun / "job.json").write_text(json.dumps(older))
    assert main(words(bundle, images, begun)) == 2
    said = capsys.readouterr().err
    assert "of an older release, does not say with which bundle and engine it began" in said
    put = json.loads("{" + said.partition(", put ")[2].partition(" into it")[0] + "}")
    (begun / "job.json").write_text(json.dumps(older | put))
    assert main(words(bundle, images, begun)) == 0


def shard(path: Path, numbers: range) -> Path:
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            for suffix, data in (("png", jpeg(number)), ("txt", f"number {number}".encode())):
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def test_shards_are_parts_and_bring_captions(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(3):
        shard(tmp_path / f"{index}.tar", range(2 * index, 2 * index + 2))
    found = run(bundle, tmp_path / "{0..2}.tar", tmp_path / "o", capsys=capsys)
    assert (found["parts"], found["images"], found["unreadable"]) == (3, 6, 0)
    last = (tmp_path / "o/metadata/metadata_2.jsonl").read_text().splitlines()
    assert json.loads(last[1]) == {
        "image_path": f"{tmp_path}/2.tar/0005",
        "caption": "number 5",
    }


def test_shards_behind_a_url(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fsspec")
    (tmp_path / "s").mkdir()
    shard(tmp_path / "s/0.tar", range(3))
    data = shard(tmp_path / "s/1.tar", range(3, 6)).read_bytes()
    found = run(bundle, f"file://{tmp_path}/s", tmp_path / "o", capsys=capsys)
    assert (found["parts"], found["images"]) == (2, 6)
    whole = -(-len(data.rstrip(b"\0")) // 512) * 512
    (tmp_path / "s/1.tar").write_bytes(data[:whole])  # without the blocks of zeros at its end
    assert main(words(bundle, f"file://{tmp_path}/s/{{0..1}}.tar", tmp_path / "p")) == 4
    assert "1.tar is cut" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "p/stats").iterdir()] == ["0.json"]


def test_a_list_names_its_files(images: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{images}/0/00.png\n\n{images}/1/01.png\n")
    found = open_collection(str(tmp_path / "list.txt"), 1)
    assert [part.files[0] for part in found.parts] == [f"{images}/0/00.png", f"{images}/1/01.png"]


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--partition", "3/3"], 2, "0 <= I < N"),
        (["--partition", "a"], 2, "0 <= I < N"),
        (["--metadata", "csv"], 2, "take one of parquet, jsonl"),
        (["--decoders", "-1"], 2, "--decoders -1 is out of range"),
        (["--engine", "tflite"], 2, "take one of onnxruntime"),
        (["--data", "nowhere"], 4, "nowhere: no folder"),
        (["--data", "EMPTY"], 4, "holds no images"),
    ],
)
def test_mistakes_end_in_one_line(
    more: list[str],
    code: int,
    said: str,
    bundle: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    more = [str(tmp_path / "empty") if word == "EMPTY" else word for word in more]
    assert main(words(bundle, images, tmp_path / "o", *more)) == code
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_a_part_without_a_readable_image_is_an_error(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.png").write_bytes(b"nothing")
    assert main(words(bundle, tmp_path / "d", tmp_path / "o")) == 4
    assert "none of the 1 images of part 0" in capsys.readouterr().err


def test_without_pyarrow_one_line_says_what_to_do(
    bundle: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert main(words(bundle, images, tmp_path / "o", "--metadata", "parquet")) == 2
    error = capsys.readouterr().err
    assert "pyarrow" in error
    assert "--metadata jsonl" in error


def test_parquet_holds_the_rows_in_order(
    whole: Path, bundle: Path, images: Path, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert main(words(bundle, images, tmp_path / "o", "--metadata", "parquet")) == 0
    files = sorted((tmp_path / "o/metadata").iterdir())
    paths = [p for f in files for p in parquet.read_table(f)["image_path"].to_pylist()]
    assert paths == rows(whole)[0]


@pytest.mark.skipif(not AUTOFAISS, reason="REGCACHE_AUTOFAISS_PYTHON names no interpreter with it")
def test_autofaiss_finds_every_image_by_its_row(whole: Path, tmp_path: Path) -> None:
    code = (
        "import sys; import numpy as np; from autofaiss import build_index;"
        "folder, index, infos = sys.argv[1:];"
        "found, _ = build_index(folder, index, infos, metric_type='ip', index_key='Flat');"
        "from pathlib import Path;"
        "rows = np.concatenate([np.load(p) for p in sorted(Path(folder).iterdir())]);"
        "best = found.search(rows.astype(np.float32), 1)[1][:, 0];"
        "sys.exit(not (best == np.arange(len(rows))).all() or not len(rows))"
    )
    words = [str(whole / "img_emb"), str(tmp_path / "knn.index"), str(tmp_path / "infos.json")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([AUTOFAISS, "-c", code, *words], env=environment, check=True)


class Bomb:
    """Unpickled in a worker, it ends the worker."""

    def __reduce__(self) -> Any:
        return os._exit, (9,)


def test_a_worker_that_dies_is_no_hang() -> None:
    with (
        pytest.raises(DataError, match="a process that decodes images died"),
        Decoders(PREPROCESS, 1) as decoders,
    ):
        list(decoders.batches([Picture("x", Bomb())], 1))  # type: ignore[arg-type]


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None;"
        "import regcache_deploy.run.embed, regcache_deploy.cli.embed"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
