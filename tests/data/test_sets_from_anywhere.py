"""`--data` of search and export: only what is taken is decoded, whatever it comes from."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regcache_deploy.data import folder, sets, torchvision_sets
from regcache_deploy.data.scan import scan_folder
from regcache_deploy.data.settings import ImageSettings
from regcache_deploy.data.sources import open_data
from regcache_deploy.errors import ConfigError, DataError
from regcache_deploy.work.progress import Reporter
from regcache_engines.preprocess import Preprocess

CONFIG = {"size": [16, 16], "mean": [0.5] * 3, "std": [0.5] * 3}
QUIET = Reporter(quiet=True)


def png(number: int) -> bytes:
    pixels = np.full((16, 16, 3), number, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for number in range(60):
        place = tmp_path / "photographs" / f"class{number % 3}" / f"{number:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(png(number))
    return tmp_path / "photographs"


def shards(folder: Path, classes: bool) -> Path:
    folder.mkdir()
    for index in range(2):
        with tarfile.open(folder / f"{index}.tar", "w") as archive:
            for number in range(20 * index, 20 * index + 20):
                members = {"png": png(number)}
                if classes:
                    members["cls"] = str(number % 2).encode()
                for suffix, data in members.items():
                    member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    if classes:
        (folder / "classnames.txt").write_text("cat\ndog\n")
    return folder


def settings(data: Path, **more: object) -> ImageSettings:
    numbers = {"search_images": 10, "calibration_images": 4}
    return ImageSettings(data=data, **(numbers | more))  # type: ignore[arg-type]


def numbers(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_a_large_folder_is_not_decoded_whole(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    original = Preprocess.read

    def noted(self: Preprocess, source: Path) -> np.ndarray:
        read.append(source)
        return original(self, source)

    monkeypatch.setattr(Preprocess, "read", noted)
    monkeypatch.setattr(sets, "HELD_OUT", 15)
    search, evaluation = sets.load_sets(settings(photographs), CONFIG, QUIET)
    assert (len(search), len(evaluation), len(read)) == (10, 15, 25)
    assert not set(numbers(search.pixels)) & set(numbers(evaluation.pixels))


def test_labelled_shards_give_both_sets_drawn_from_all(tmp_path: Path) -> None:
    data = shards(tmp_path / "s", classes=True)
    search, evaluation = sets.load_sets(settings(data, limit=12), CONFIG, QUIET)
    found = numbers(search.pixels) + numbers(evaluation.pixels)
    assert len(set(found)) == len(found) == 22
    for one in (search, evaluation):
        assert {number // 20 for number in numbers(one.pixels)} == {0, 1}
        assert one.class_names == ("cat", "dog")
        assert one.labels is not None
        assert one.labels.tolist() == [number % 2 for number in numbers(one.pixels)]


def test_shards_without_classes_have_no_labels(tmp_path: Path) -> None:
    data = shards(tmp_path / "s", classes=False)
    pattern = Path(f"{data}/{{0..1}}.tar")
    settings(pattern).check_folders()
    search, evaluation = sets.load_sets(settings(pattern), CONFIG, QUIET)
    assert search.labels is None
    assert len(search) + len(evaluation) == 40


def test_a_draw_from_shards_is_a_stage_of_its_own(tmp_path: Path) -> None:
    """It reads the headers of all of them, for minutes on a slow disk."""
    data, said = shards(tmp_path / "s", classes=True), io.StringIO()
    sets.load_sets(settings(data), CONFIG, Reporter(stream=said))
    assert f"opening {data} ...\nopening {data}: done in" in said.getvalue()


def test_a_missing_shard_is_found_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="shards are missing"):
        settings(tmp_path / "{0..1}.tar").check_folders()


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_both_sets_share_one_memory(
    kind: str, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shards(tmp_path / "s", classes=False)
    data, held_out = (photographs, other) if kind == "shards" else (other, photographs)
    image = 16 * 16 * 3
    for module in (sets, folder):
        monkeypatch.setattr(module, "image_memory", lambda: 30 * image)
    wanted = settings(data, eval_data=held_out, limit=20)
    assert [len(s) for s in sets.load_sets(wanted, CONFIG, QUIET)] == [10, 20]
    for module in (sets, folder):
        monkeypatch.setattr(module, "image_memory", lambda: 30 * image - 1)
    with pytest.raises(DataError, match=r"take fewer with --search-images and --limit"):
        sets.load_sets(wanted, CONFIG, QUIET)


@pytest.mark.parametrize("form", ["list.txt", "metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize("labels", [True, False])
def test_a_table_names_files_and_classes(form: str, labels: bool, photographs: Path) -> None:
    files = sorted(p.relative_to(photographs.parent) for p in photographs.rglob("*.png"))
    names = [(str(file), "cat" if index % 3 else "dog") for index, file in enumerate(files)]
    if form == "list.txt":
        lines = ["\t".join(row[: 1 + labels]) for row in names]
    elif form == "metadata.csv":
        columns = ["file_name", "label"][: 1 + labels]
        lines = [",".join(columns), *(",".join(row[: 1 + labels]) for row in names)]
    else:
        keys = ("file_name", "label")[: 1 + labels]
        lines = [json.dumps(dict(zip(keys, row, strict=False))) for row in names]
    table = photographs.parent / form
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = table if form == "list.txt" else table.parent
    settings(data).check_folders()
    search, evaluation = sets.load_sets(settings(data, limit=6), CONFIG, QUIET)
    assert (len(search), len(evaluation)) == (10, 6)
    assert (search.labels is not None) == labels
    if labels:
        assert search.class_names == ("cat", "dog")
        assert search.labels is not None
        assert sorted(search.labels.tolist()) == [0] * 5 + [1] * 5, "balanced from the front"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("list.txt", "a.png\tcat\nb.png\n", "1 of 2 rows have a class"),
        ("metadata.csv", "path,label\na.png,cat\n", "no column 'file_name'"),
        ("metadata.jsonl", '{"file_name": "a.png"}\nnonsense\n', "line 2 is no JSON"),
        ("metadata.jsonl", "[" * 200_000 + "\n", "line 1 is no JSON"),
        ("list.txt", "a.png\nb\0.png\n", r"names the file 'b\\x00.png'"),
        ("metadata.jsonl", '{"file_name": "\\ud800.png"}\n', r"names the file '\\ud800.png'"),
        ("metadata.csv", "file_name\n/etc/a.png\n", "'/etc/a.png', which is outside"),
        ("metadata.jsonl", '{"file_name": "x/../../a.png"}\n', "which is outside of its data set"),
        ("metadata.jsonl", '{"file_name": "../a\\u0000.png"}\n', "which is outside"),
        ("list.txt", "\n", "holds no images"),
    ],
)
def test_a_damaged_table_is_refused(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        scan_folder(tmp_path / name if name == "list.txt" else tmp_path)


@pytest.mark.parametrize(("data", "named"), [("link", "real"), ("real", "link"), (".", "real")])
def test_metadata_may_spell_their_folder_in_another_way(
    data: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With whole paths, made where the folder has another name."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    names = [f"{tmp_path}/{named}/{index}.png" for index in range(2)]
    for index, name in enumerate(names):
        Path(name).write_bytes(png(index))
    (tmp_path / "real" / "metadata.csv").write_text("\n".join(["file_name", *names]))
    monkeypatch.chdir(tmp_path / "real")
    listing = scan_folder(Path(".") if data == "." else tmp_path / data)
    assert (len(listing), listing.warnings) == (2, ())


class Ordered:
    """A data set of torchvision, class by class, as most of them come."""

    classes = tuple("abcdefgh")
    targets = tuple(index // 40 for index in range(320))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.open(io.BytesIO(png(index % 250))), self.targets[index]


def test_a_torchvision_set_calibrates_on_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_sets, "open_torchvision", lambda text, train: Ordered())
    drawn = settings(
        Path("torchvision:food101:x"), search_images=80, calibration_images=40, limit=80
    )
    search, held_out = sets.load_sets(drawn, CONFIG, QUIET)
    assert search.labels is not None
    assert held_out.labels is not None
    for labels in (search.labels[:40], search.labels, held_out.labels):
        assert set(labels.tolist()) == set(range(8))


@pytest.mark.parametrize("form", ["list", "folder", "link"])
def test_no_image_is_in_both_sets(form: str, photographs: Path, tmp_path: Path) -> None:
    """Two places, the same files."""
    data = tmp_path / "data.txt"
    if form == "list":
        names = sorted(str(file) for file in photographs.rglob("*.png"))
        data.write_text("\n".join(names))
    elif form == "folder":
        data = photographs / "class1"
    else:
        data = tmp_path / "linked"
        data.mkdir()
        for number in range(20):
            (data / f"{number}.png").symlink_to(
                photographs / "class2" / f"{3 * number + 2:03d}.png"
            )
    with pytest.raises(ConfigError, match=r"10 of the 10 images .* are also in --eval-data"):
        sets.load_sets(settings(data, eval_data=photographs), CONFIG, QUIET)


@pytest.mark.parametrize("form", ["folder and shard", "patterns", "link", "torchvision"])
def test_no_shard_is_in_both_sets(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ways to name what is read in order."""
    data = shards(tmp_path / "s", classes=True)
    judged = data / "0.tar"
    if form == "patterns":
        data, judged = Path(f"{data}/{{0..1}}.tar"), Path(f"{data}/{{1..1}}.tar")
    elif form == "link":
        (tmp_path / "linked").symlink_to(data)
        judged = tmp_path / "linked"
    elif form == "torchvision":
        monkeypatch.setattr(torchvision_sets, "open_torchvision", lambda text, train: Ordered())
        data, judged = Path(f"torchvision:food101:{tmp_path}"), Path("torchvision:food101:.")
        monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"is in --data and in --eval-data|are the same folder"):
        sets.load_sets(settings(data, eval_data=judged), CONFIG, QUIET)


def test_other_shards_of_a_folder_may_judge(tmp_path: Path) -> None:
    data = shards(tmp_path / "s", classes=True)
    chosen = settings(data / "0.tar", eval_data=data / "1.tar")
    search, evaluation = sets.load_sets(chosen, CONFIG, QUIET)
    assert set(numbers(search.pixels)) < set(range(20))
    assert numbers(evaluation.pixels) == list(range(20, 40))


def test_a_file_that_a_list_names_twice_counts_once(photographs: Path, tmp_path: Path) -> None:
    names = [str(file) for file in sorted(photographs.rglob("*.png"))]
    list_file = tmp_path / "twice.txt"
    list_file.write_text("\n".join([*names, *names, f"{photographs}/class0/../class0/000.png"]))
    listing = scan_folder(list_file)
    assert (len(listing), listing.repeated) == (60, 61)
    assert "61 lines name a file again" in listing.warnings[0]
    list_file.write_text(f"{names[0]}\tcat\n{names[1]}\tdog\n{names[0]}\tdog\n")
    with pytest.raises(DataError, match="stands under 'cat' and under 'dog'"):
        scan_folder(list_file)


def test_images_that_the_metadata_do_not_name_are_counted(photographs: Path) -> None:
    """datasets' image folders refuse them; here as every other file that is left out."""
    names = [f"class{number % 3}/{number:03d}.png" for number in range(40)]
    (photographs / "metadata.csv").write_text("\n".join(["file_name", "./" + names[0], *names[1:]]))
    listing = scan_folder(photographs)
    assert (len(listing), listing.unnamed) == (40, 20)
    said = f"{photographs}: 20 images are not in its metadata; left out"
    assert open_data(str(photographs), Preprocess(CONFIG)).warnings() == (said,)


@pytest.mark.parametrize("name", ["list.txt", "metadata.csv", "metadata.jsonl"])
def test_a_byte_order_mark_is_no_part_of_a_name(name: str, photographs: Path) -> None:
    lines = {
        "list.txt": "000.png\n003.png\n",
        "metadata.csv": "file_name\n000.png\n003.png\n",
        "metadata.jsonl": '{"file_name": "000.png"}\n{"file_name": "003.png"}\n',
    }
    folder = photographs / "class0"
    (folder / name).write_text(lines[name], encoding="utf-8-sig")
    listing = scan_folder(folder / name if name == "list.txt" else folder)
    assert [file.name for file in listing.files[0]] == ["000.png", "003.png"]
    assert all(file.is_file() for file in listing.files[0])


def test_a_folder_with_a_brace_in_its_name_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a{b}"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
    assert open_data(str(folder), Preprocess(CONFIG)).length == 3
    with pytest.raises(DataError, match="names no shard: 3 is less than 5"):
        open_data(str(tmp_path / "{5..3}.tar"), Preprocess(CONFIG))
