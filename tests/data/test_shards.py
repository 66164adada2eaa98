"""webdataset shards and streaming: order, bounded memory, and every fault counted."""

from __future__ import annotations

import gzip
import io
import tarfile
import threading
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from regcache_deploy.data import shards as shards_module
from regcache_deploy.data import torchvision_sets
from regcache_deploy.data.parts import open_collection
from regcache_deploy.data.shards import draw, expand, read_at, read_classes, samples
from regcache_deploy.data.sources import open_data
from regcache_deploy.data.stream import ImageStream, Item
from regcache_deploy.errors import DataError
from regcache_engines.ahead import AHEAD
from regcache_engines.preprocess import Preprocess
from tests.tiny_plans import PREPROCESS

CLASSES = ("cat", "dog", "four")


def jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 16, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path, keys, labels=True):
    with tarfile.open(path, "w") as archive:
        for key in keys:
            members = {"png": jpeg(key)} | ({"cls": str(key % 3).encode()} if labels else {})
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{key:06d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    for index in range(3):
        write_shard(tmp_path / f"test-{index:03d}.tar", range(index * 10, index * 10 + 10))
    (tmp_path / "classnames.txt").write_text("\n".join(CLASSES))
    return tmp_path


def open_shards(text, head=(), limit=None):
    return open_data(str(text), Preprocess(PREPROCESS), head, limit)


@pytest.mark.parametrize("form", ["folder", "braces"])
def test_samples_come_in_order_with_their_labels(shards, form):
    stream = open_shards(shards if form == "folder" else shards / "test-{000..002}.tar")
    batches = list(stream.batches(7))
    assert [key for b in batches for key in b.keys] == [f"{i:06d}" for i in range(30)]
    assert [v for b in batches for v in b.labels.tolist()] == [i % 3 for i in range(30)]
    # the pixels belong to their key
    assert [int(p[0, 0, 0]) for b in batches for p in b.pixels] == list(range(30))
    assert stream.class_names == CLASSES


def test_labels_are_mapped_to_the_head_by_name(shards):
    stream = open_shards(shards, head=("four", "bird", "dog", "cat"))
    labels = next(iter(stream.batches(3))).labels
    assert labels.tolist() == [3, 2, 0]


def test_names_that_the_head_lacks_are_classes_of_their_own(shards):
    """Labels are numbers, so no name is misspelt; CIFAR-100 has an apple and ImageNet has none."""
    stream = open_shards(shards, head=("cat", "dog", "bird"))
    assert stream.class_names == CLASSES
    assert next(iter(stream.batches(3))).labels.tolist() == [0, 1, 2]
    (shards / "classnames.txt").write_text("C++\nC\nmaple_tree")
    assert open_shards(shards, head=("c", "maple tree")).class_names == ("C++", "C", "maple tree")


def test_two_classes_of_one_name_stay_two_as_imagenet_has_them(shards):
    (shards / "classnames.txt").write_text("missile\nrocket\nmissile")
    names = ("missile", "rocket", "missile")
    for head in ((), names, ("missile", "rocket")):
        stream = open_shards(shards, head=head)
        assert stream.class_names == names
        assert next(iter(stream.batches(3))).labels.tolist() == [0, 1, 2]


def test_one_class_alone_is_an_error(shards):
    (shards / "classnames.txt").write_text("cat")
    with pytest.raises(DataError, match="one class alone"):
        open_shards(shards)
    (shards / "classnames.txt").write_text("")
    with pytest.raises(DataError, match="one class alone"):
        open_shards(shards, head=CLASSES)


def test_images_alone_need_no_names_and_no_labels(shards):
    (shards / "classnames.txt").unlink()
    write_shard(shards / "test-000.tar", range(3), labels=False)
    stream = open_data(str(shards), Preprocess(PREPROCESS), CLASSES, labels=False)
    batches = list(stream.batches(10))
    assert sum(len(batch.keys) for batch in batches) == 23
    assert stream.class_names == ()
    assert all(batch.labels is None for batch in batches)


class FakeCifar:
    """What torchvision's data sets have in common."""

    classes = ("apple", "maple_tree", "tench")
    targets = (2, 0, 1)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return Image.fromarray(np.full((8, 8, 3), index, np.uint8)), self.targets[index]


def labels_of(stream):
    batch = next(iter(stream.batches(3)))
    return [label for _, label in sorted(zip(batch.keys, batch.labels.tolist(), strict=True))]


def test_a_torchvision_set_against_a_head_that_has_some_of_its_classes(monkeypatch):
    monkeypatch.setattr(torchvision_sets, "open_torchvision", lambda text, train: FakeCifar())
    text, preprocess = "torchvision:cifar100:/x", Preprocess(PREPROCESS)
    stream = open_data(text, preprocess, ("tench", "goldfish"))
    assert stream.class_names == ("apple", "maple tree", "tench")
    assert labels_of(stream) == [2, 0, 1]
    head = ("tench", "apple", "goldfish", "maple tree")
    stream = open_data(text, preprocess, head)
    assert stream.class_names == head
    assert labels_of(stream) == [0, 1, 3]
    monkeypatch.delattr(FakeCifar, "classes")  # as of Stanford Cars without its devkit
    stream = open_data(text, preprocess, limit=2, labels=False)
    (batch,) = stream.batches(3)
    assert (batch.labels, stream.class_names, stream.length) == (None, (), 2)


def keys_of(folder, limit, seed=0):
    stream = open_data(str(folder), Preprocess(PREPROCESS), limit=limit, seed=seed, labels=False)
    batches = list(stream.batches(8))
    keys = [key for batch in batches for key in batch.keys]
    assert stream.length == len(keys)
    # the pixels belong to their key
    assert [int(p[0, 0, 0]) for b in batches for p in b.pixels] == [int(key) for key in keys]
    return keys


def test_a_limit_draws_from_all_shards_by_seed(shards):
    """Sorted by class, the first shards hold the first classes alone."""
    found = keys_of(shards, 12)
    assert {int(key) // 10 for key in found} == {0, 1, 2}
    assert found != sorted(found), "the front alone calibrates"
    assert keys_of(shards, 12) == found
    assert keys_of(shards, 5) == found[:5]
    assert set(keys_of(shards, 12, seed=1)) != set(found)
    for limit in (30, 99):
        assert sorted(keys_of(shards, limit)) == [f"{i:06d}" for i in range(30)]


def test_every_sample_is_as_likely(shards):
    files = expand(str(shards))
    drawn = Counter(place for seed in range(300) for place in draw(files, 3, seed).places)
    assert len(drawn) == 30
    assert 10 <= min(drawn.values()) <= max(drawn.values()) <= 55


def test_a_draw_reads_members_of_every_kind_of_name(tmp_path):
    """Long names and those beyond ASCII have headers of their own in front; others are passed."""
    for name, form in (("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        with tarfile.open(tmp_path / f"{name}.tar", "w", format=form) as archive:
            for index in range(4):
                stem = f"{'folder' * 30}/{name}é{index}"
                for end, data in ((".png", jpeg(index)), (".txt", b"x"), ("/.hidden", b"")):
                    info = tarfile.TarInfo(f"{stem}{end}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    everything = {sample.key: sample for sample in samples(expand(str(tmp_path)))}
    found = draw(expand(str(tmp_path)), 99, 0)
    places, looked = found.places, found.looked
    assert (len(places), len(everything), looked) == (8, 8, 2)
    for place in places:
        sample = read_at(*place)
        assert sample == everything[sample.key]


def test_a_draw_from_very_many_samples_looks_into_some_shards_and_says_so(shards, monkeypatch):
    monkeypatch.setattr(shards_module, "MOST_DRAWN_FROM", 15)
    seen = [{int(key) // 10 for key in keys_of(shards, 20, seed)} for seed in range(8)]
    assert all(len(each) == 2 for each in seen)
    assert set.union(*seen) == {0, 1, 2}
    assert "drawn from 2 of the 3 shards" in open_shards(shards, limit=20).warnings()[0]


def test_a_draw_of_very_many_samples_gives_as_many(shards, monkeypatch):
    monkeypatch.setattr(shards_module, "MOST_DRAWN_FROM", 5)
    assert [len(keys_of(shards, limit)) for limit in (4, 17, 25, 99)] == [4, 17, 25, 30]


def test_a_sample_without_an_image_is_not_drawn_but_told(shards):
    with tarfile.open(shards / "test-003.tar", "w") as archive:
        for name, data in (("README", b"x"), ("000030.png", jpeg(30)), ("dataset.json", b"{}")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert sorted(keys_of(shards, 99)) == [f"{i:06d}" for i in range(31)]
    assert "2 samples without an image; left out" in open_shards(shards, limit=5).warnings()[0]


def test_a_draw_notices_a_cut_shard(shards):
    (shards / "test-002.tar").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"test-002.tar is cut"):
        open_shards(shards, limit=2)


def test_compressed_shards_are_read_from_the_front_and_it_is_said(shards):
    packed = gzip.compress((shards / "test-001.tar").read_bytes())
    (shards / "test-001.tar.gz").write_bytes(packed)
    for index in range(3):
        (shards / f"test-{index:03d}.tar").unlink()
    (shards / "test-002.tar.gz").write_bytes(b"never opened")
    stream = open_shards(shards, limit=10)
    assert [key for batch in stream.batches(8) for key in batch.keys] == [
        f"{i:06d}" for i in range(10, 20)
    ]
    assert "sorted by class" in stream.warnings()[0]


@pytest.mark.parametrize("cut", [0.5, 0.98])
def test_a_cut_shard_is_an_error(shards, cut):
    path = shards / "test-001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(DataError, match=r"test-001.tar is cut"):
        list(open_shards(shards).batches(8))


def test_a_shard_cut_between_two_samples_is_an_error_too(shards):
    """tarfile itself takes this for the end of the archive."""
    path = shards / "test-002.tar"
    with tarfile.open(path) as archive:
        end = archive.getmembers()[6].offset
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(DataError, match="is cut"):
        list(open_shards(shards).batches(8))


def test_a_cut_compressed_shard_is_an_error(shards):
    packed = gzip.compress((shards / "test-000.tar").read_bytes())
    (shards / "test-000.tar.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="is damaged after"):
        list(samples([shards / "test-000.tar.gz"]))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_is_no_image_that_is_not_there(tmp_path, kind):
    """tar writes a second name of one file as a link, which a stream cannot follow."""
    path = tmp_path / "linked.tar"
    write_shard(path, range(3), labels=False)
    with tarfile.open(path, "a") as archive:
        for name in ("000003.md", "000003.png"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "000002.png"
            archive.addfile(info)
    with pytest.raises(DataError, match=r"after 2 samples \(000003.png is a link to 000002.png"):
        list(samples([path]))


@pytest.mark.parametrize("again", ["000002.png", "000002.PNG"])
def test_a_name_twice_is_not_one_sample(tmp_path, again):
    path = tmp_path / "twice.tar"
    write_shard(path, range(3))
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo(again)
        info.size = len(jpeg(9))
        archive.addfile(info, io.BytesIO(jpeg(9)))
    with pytest.raises(DataError, match=rf"after 2 samples \({again} is there twice"):
        list(samples([path]))


def test_an_archive_left_among_images_is_not_all_of_them(shards):
    """ImageNet's own, unpacked where it lies: the images beside it were left out without a word."""
    (shards / "n01440764").mkdir()
    (shards / "n01440764" / "0.JPEG").write_bytes(jpeg(0))
    said = r"holds shards \(test-000.tar\) and images \(n01440764/0.JPEG\); name the shards"
    for open_it in (open_shards, lambda place: open_collection(str(place), 10)):
        with pytest.raises(DataError, match=said):
            open_it(shards)
    assert open_shards(shards / "test-000.tar").class_names == CLASSES


def test_a_folder_is_no_shard_for_its_name(tmp_path):
    folder = tmp_path / "photographs.tar"
    folder.mkdir()
    for value in range(2):
        (folder / f"{value}.png").write_bytes(jpeg(value))
    assert open_shards(folder).length == 2


def test_a_missing_shard_is_named(shards):
    (shards / "test-001.tar").unlink()
    with pytest.raises(DataError, match=r"1 of 3 shards are missing.*test-001"):
        expand(str(shards / "test-{000..002}.tar"))


def test_a_label_out_of_range_or_missing_is_named(shards):
    (shards / "classnames.txt").write_text("cat\ndog")
    with pytest.raises(DataError, match="000002 has label b'2'; expected 0 to 1"):
        list(open_shards(shards).batches(8))
    write_shard(shards / "test-000.tar", range(3), labels=False)
    with pytest.raises(DataError, match=r"has no \.cls file"):
        list(open_shards(shards).batches(8))
    (shards / "classnames.txt").unlink()
    with pytest.raises(DataError, match=r"classnames.txt"):
        open_shards(shards)


def stream_of(items, decoders=2):
    return ImageStream(lambda: items, Preprocess(PREPROCESS), "test", decoders=decoders)


def test_memory_is_bounded_by_the_window_and_order_is_kept():
    alive, most, lock = set(), [0], threading.Lock()

    def source(index):
        def make():
            with lock:
                alive.add(index)
                most[0] = max(most[0], len(alive))
            return Image.fromarray(np.full((8, 8, 3), index % 256, np.uint8))

        return make

    taken = 0
    stream = stream_of([Item(str(i), source(i), 0) for i in range(400)])
    for batch in stream.batches(4):
        assert batch.keys == tuple(str(i) for i in range(taken, taken + 4))
        taken += 4
        with lock:
            alive.difference_update(int(key) for key in batch.keys)
    assert taken == 400
    assert most[0] <= 2 * AHEAD + 4, "decoded images wait for no one but the window and a batch"


def test_few_unreadable_images_are_counted_and_many_stop_the_stream():
    good = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    items = [Item(str(i), (lambda: good) if i != 7 else b"junk", 0) for i in range(150)]
    stream = stream_of(items)
    assert sum(len(b.keys) for b in stream.batches(16)) == 149
    assert stream.tried == 150
    assert len(stream.skipped) == 1
    assert "1 of 150 images" in stream.warnings()[0]
    opened = []

    def count():
        for i in range(5000):
            opened.append(i)
            yield Item(str(i), b"junk")

    bad = ImageStream(count, Preprocess(PREPROCESS), "test", decoders=2)
    with pytest.raises(DataError, match="could not be read"):
        list(bad.batches(16))
    assert len(opened) < 300, "it stops early, not after 5000 files"


@pytest.mark.parametrize("length", [5000, None])
def test_a_healthy_stream_with_its_unreadable_images_in_front_is_read(length: int | None) -> None:
    """Three of 5,000 are 0.06 %, wherever they stand."""
    good = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    items = [Item(str(i), (lambda: good) if i > 2 else b"junk", 0) for i in range(5000)]
    stream = ImageStream(lambda: items, Preprocess(PREPROCESS), "test", length=length)
    assert sum(len(batch.keys) for batch in stream.batches(64)) == 4997
    bad = [Item(str(i), (lambda: good) if i % 50 else b"junk", 0) for i in range(1000)]
    stream = ImageStream(lambda: bad, Preprocess(PREPROCESS), "test", length=length and 1000)
    with pytest.raises(DataError, match="more than 1%"):
        list(stream.batches(64))


def test_a_line_of_the_names_is_a_label(tmp_path):
    """An empty one in between would move every later label by one."""
    file = tmp_path / "classnames.txt"
    # a line separator of Unicode is part of a name, and a byte order mark is not
    file.write_bytes("\ufeffcat\r\ndog\u2028x\nsun\n\n".encode())
    assert read_classes(str(tmp_path)) == ("cat", "dog\u2028x", "sun")
    file.write_bytes(b"cat\n\nsun\n")
    with pytest.raises(DataError, match="line 2 is empty"):
        read_classes(str(tmp_path))
    file.write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_classes(str(tmp_path))


def test_a_pattern_of_too_many_shards(tmp_path):
    for end in ("999999999999", "1000000"):
        with pytest.raises(DataError, match="more than"):
            expand(f"{tmp_path}/x-{{0..{end}}}.tar")
