"""Image folders: layouts, labels, bad files, determinism."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regcache_deploy.data.demo_images import load_demo_images
from regcache_deploy.data.folder import load_folder
from regcache_deploy.data.images import Images
from regcache_deploy.data.scan import scan_folder
from regcache_deploy.data.sets import load_sets, skipped_lines
from regcache_deploy.errors import ConfigError, DataError
from regcache_deploy.run.options import ExportOptions
from regcache_deploy.work.progress import Reporter

CFG = {
    "size": 16,
    "mode": "RGB",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
QUIET = Reporter(quiet=True)


def make_folder(root: Path, classes: dict[str, int]) -> Path:
    """An image folder with so many images per class; every image is one colour of its own."""
    number = 0
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            number += 1
            colour = (number % 256, number // 256, len(name))
            Image.new("RGB", (20, 16), colour).save(root / name / f"{index:03d}.png")
    return root


def labels_of(images: Images) -> list[int]:
    assert images.labels is not None
    return images.labels.tolist()


class TestLayouts:
    def test_class_folders(self, tmp_path):
        images = load_folder(make_folder(tmp_path, {"cat": 3, "great_white shark": 2}), CFG)
        assert images.pixels.shape == (5, 16, 16, 3)
        assert images.pixels.dtype == torch.uint8
        assert images.class_names == ("cat", "great white shark")
        assert sorted(labels_of(images)) == [0, 0, 0, 1, 1]
        assert images.tried == 5
        assert images.skipped == ()

    def test_flat_folder_has_no_labels(self, tmp_path):
        images = load_folder(make_folder(tmp_path, {".": 4}), CFG)
        assert len(images) == 4
        assert images.labels is None
        assert images.class_names == ()

    def test_images_in_nested_folders_belong_to_the_class(self, tmp_path):
        make_folder(tmp_path, {"cat": 1, "dog/puppies": 2})
        images = load_folder(tmp_path, CFG)
        assert sorted(labels_of(images)) == [0, 1, 1]

    def test_other_files_are_left_out(self, tmp_path):
        make_folder(tmp_path, {"cat": 2, "dog": 2, ".hidden": 1})
        (tmp_path / "cat" / "notes.txt").write_text("no image")
        (tmp_path / "cat" / "._000.png").write_text("no image either")
        (tmp_path / "empty").mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / "loose.png")
        listing = scan_folder(tmp_path)
        assert listing.folders == ("cat", "dog")
        assert listing.ignored == 2
        assert listing.warnings == (
            f"{tmp_path}: 1 folder without images: empty",
            f"{tmp_path}: 2 files are no images of a class; left out",
        )

    def test_links_that_lead_nowhere_are_left_out(self, tmp_path, caplog):
        make_folder(tmp_path, {"cat": 2, "dog": 2})
        for name, target in (("circle", "circle"), ("long", "x" * 300), ("gone", "nowhere")):
            (tmp_path / name).symlink_to(target)
        assert load_folder(tmp_path, CFG).class_names == ("cat", "dog")
        assert "3 files are no images of a class; left out" in caplog.text

    def test_linked_class_folders(self, tmp_path):
        make_folder(tmp_path / "store", {"a": 2, "b": 2})
        (tmp_path / "view").mkdir()
        for name in "ab":
            (tmp_path / "view" / name).symlink_to(tmp_path / "store" / name)
        assert len(load_folder(tmp_path / "view", CFG)) == 4


ANIMALS = {"ant": 9, "bee": 5, "cow": 2, "dog": 9}


class TestSubsets:
    def test_balanced_and_a_front_part_of_the_whole(self, tmp_path):
        make_folder(tmp_path, ANIMALS)
        few, many = (load_folder(tmp_path, CFG, limit, seed=3) for limit in (8, 21))
        assert [labels_of(few).count(c) for c in range(4)] == [2, 2, 2, 2]
        assert torch.equal(few.pixels, many.pixels[:8])
        assert [labels_of(many).count(c) for c in range(4)] == [7, 5, 2, 7]

    def test_seed_decides(self, tmp_path):
        make_folder(tmp_path, ANIMALS)
        prints = [load_folder(tmp_path, CFG, 8, seed).fingerprint() for seed in (0, 0, 1)]
        assert prints[0] == prints[1] != prints[2]

    def test_fewer_images_than_classes(self, tmp_path):
        make_folder(tmp_path, ANIMALS)
        assert len(set(labels_of(load_folder(tmp_path, CFG, 3)))) == 3

    def test_file_times_and_order_on_disk_do_not_matter(self, tmp_path):
        one = make_folder(tmp_path / "one", ANIMALS)
        other = tmp_path / "other"
        for path in sorted(one.rglob("*.png"), reverse=True):
            copy = other / path.relative_to(one)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
        fingerprints = {load_folder(folder, CFG, 10).fingerprint() for folder in (one, other)}
        assert len(fingerprints) == 1


class TestBadFolders:
    def test_missing(self, tmp_path):
        with pytest.raises(DataError, match="there is no folder"):
            load_folder(tmp_path / "nowhere", CFG)

    def test_file_instead_of_folder(self, tmp_path):
        (tmp_path / "data.zip").write_text("")
        with pytest.raises(DataError, match=r"data\.zip is a file"):
            load_folder(tmp_path / "data.zip", CFG)

    def test_empty(self, tmp_path):
        with pytest.raises(DataError, match="holds no images; expected one folder per class"):
            load_folder(tmp_path, CFG)

    def test_single_image(self, tmp_path):
        with pytest.raises(DataError, match="single image; at least 2"):
            load_folder(make_folder(tmp_path, {"cat": 1}), CFG)

    def test_single_class(self, tmp_path):
        with pytest.raises(DataError, match=r"one class alone \(cat\)"):
            load_folder(make_folder(tmp_path, {"cat": 3}), CFG)

    def test_splits_instead_of_classes(self, tmp_path):
        make_folder(tmp_path, {"train/cat": 2, "val/cat": 2})
        with pytest.raises(DataError, match="train, val are splits, not classes"):
            load_folder(tmp_path, CFG)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable_class_folder(self, tmp_path):
        make_folder(tmp_path, {"cat": 2, "dog": 2})
        (tmp_path / "cat").chmod(0)
        with pytest.raises(DataError, match="cannot be read: Permission denied"):
            load_folder(tmp_path, CFG)
        (tmp_path / "cat").chmod(0o755)


class TestBadFiles:
    def damage(self, root: Path, count: int) -> Path:
        make_folder(root, {"cat": 60, "dog": 60})
        kinds = [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 64, b"\xff\xd8\xff\xe0"]
        for index in range(count):
            (root / "dog" / f"{index:03d}.png").write_bytes(kinds[index % len(kinds)])
        return root

    def test_few_are_counted_and_reported(self, tmp_path, caplog):
        images = load_folder(self.damage(tmp_path, 1), CFG)
        assert (len(images), images.tried) == (119, 120)
        assert images.skipped == ("dog/000.png: cannot identify image file the file",)
        assert "1 of 120 images could not be read" in caplog.text
        assert "dog/000.png" in skipped_lines(images)[0]
        assert labels_of(images).count(1) == 59
        assert bool(images.pixels.flatten(1).any(dim=1).all())

    @pytest.mark.parametrize("others", [False, True])
    def test_each_is_told_once(self, others, tmp_path, caplog):
        """A folder whose images are searched on and held out is one place; so is one read twice."""
        places = [self.damage(tmp_path / name, 1) for name in ("one", "two")[: 1 + others]]
        for place in places:
            (place / "empty").mkdir()
            (place / "cat" / "notes.txt").write_text("no image")
        options = ExportOptions(
            data=places[0],
            eval_data=places[1] if others else None,
            search_images=120 if others else 60,
            calibration_images=8,
        )
        lines = skipped_lines(*load_sets(options, CFG, QUIET))
        assert len(lines) == len(places)
        for place in places:
            for text in ("1 folder without images", "1 file is no image of a class"):
                assert caplog.text.count(f"{place}: {text}") == 1

    def test_many_are_an_error(self, tmp_path):
        with pytest.raises(DataError, match=r"4 of 120 .*dog/.*; \.\.\.\); more than 1%"):
            load_folder(self.damage(tmp_path, 4), CFG)

    def test_one_in_a_hundred_is_not_more_than_one_percent(self, tmp_path):
        make_folder(tmp_path, {"cat": 50, "dog": 50})
        (tmp_path / "cat" / "007.png").write_bytes(b"")
        assert len(load_folder(tmp_path, CFG)) == 99

    def test_dangling_link(self, tmp_path):
        make_folder(tmp_path, {"cat": 100, "dog": 20})
        (tmp_path / "cat" / "000.png").unlink()
        (tmp_path / "cat" / "000.png").symlink_to("nowhere.png")
        images = load_folder(tmp_path, CFG)
        assert images.skipped == ("cat/000.png: No such file or directory",)

    def test_random_bytes_in_a_jpeg_never_escape(self, tmp_path):
        make_folder(tmp_path, {"cat": 2, "dog": 30})
        draw = np.random.default_rng(0)
        noise = Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        for index in range(30):
            path = tmp_path / "dog" / f"{index:03d}.jpg"
            noise.save(path)
            data = bytearray(path.read_bytes())
            for place in draw.integers(2, len(data), 20):
                data[place] = draw.integers(0, 256)
            path.write_bytes(bytes(data))
        try:
            assert len(load_folder(tmp_path, CFG)) >= 60
        except DataError as error:
            assert "could not be read" in str(error)  # noqa: PT017


def test_more_images_than_memory(tmp_path, monkeypatch):
    make_folder(tmp_path, {"cat": 2, "dog": 2})
    monkeypatch.setattr(os, "sysconf", lambda name: 50)
    with pytest.raises(DataError, match=r"4 images .* take fewer with --search-images and --limit"):
        load_folder(tmp_path, CFG)


class TestImages:
    PIXELS = torch.arange(5 * 2 * 2 * 3, dtype=torch.uint8).reshape(5, 2, 2, 3)

    def images(self, **changes) -> Images:
        values: dict[str, Any] = {
            "pixels": self.PIXELS,
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.25, 0.3),
            "source": "test",
            "labels": torch.tensor([0, 1, 2, 1, 0]),
            "class_names": ("a", "b", "c"),
        }
        return Images(**(values | changes))

    def test_batches(self):
        batches = list(self.images().batches(2))
        assert [tuple(batch.shape) for batch in batches] == [(2, 3, 2, 2)] * 2 + [(1, 3, 2, 2)]
        expected = (self.PIXELS[4, 1, 0, 2] / 255 - 0.3) / 0.3
        torch.testing.assert_close(batches[2][0, 2, 1, 0], expected)
        assert torch.equal(torch.cat(batches), torch.cat(list(self.images().batches(5))))

    def test_subset(self):
        for indices in ([4, 1], torch.tensor([4, 1])):
            part = self.images().subset(indices)
            assert torch.equal(part.pixels, self.PIXELS[[4, 1]])
            assert labels_of(part) == [0, 1]
        assert labels_of(self.images().subset(slice(1, 3))) == [1, 2]
        assert len(self.images(labels=None).subset([0])) == 1

    def test_fingerprint_sees_pixels_labels_and_shape(self):
        changed = self.PIXELS.clone()
        changed[0, 0, 0, 0] += 1
        variants = [
            self.images(),
            self.images(pixels=changed),
            self.images(labels=torch.tensor([0, 1, 2, 1, 1])),
            self.images(labels=None),
            self.images(pixels=self.PIXELS.reshape(5, 1, 4, 3)),
        ]
        assert len({images.fingerprint() for images in variants}) == len(variants)
        assert self.images().fingerprint() == self.images(source="elsewhere").fingerprint()

    @pytest.mark.parametrize(
        "changes",
        [
            {"pixels": PIXELS.float()},
            {"pixels": PIXELS[..., :2]},
            {"labels": torch.tensor([0, 1])},
            {"labels": torch.tensor([0, 1, 2, 1, 3])},
        ],
    )
    def test_contract(self, changes):
        with pytest.raises(DataError):
            self.images(**changes)


class TestSets:
    def test_demo_digits_are_the_default(self):
        options = ExportOptions(search_images=6, calibration_images=4, limit=7)
        search, evaluation = load_sets(options, CFG | {"size": 48}, QUIET)
        assert (len(search), len(evaluation)) == (6, 7)
        assert len(search.class_names) == 100
        assert search.class_names == evaluation.class_names

    def test_part_of_data_is_kept_for_the_evaluation(self, tmp_path):
        make_folder(tmp_path, {"cat": 10, "dog": 10})
        options = ExportOptions(data=tmp_path, search_images=8, calibration_images=4)
        search, evaluation = load_sets(options, CFG, QUIET)
        assert (len(search), len(evaluation)) == (8, 12)
        assert labels_of(search).count(0) == 4
        seen = {bytes(image.numpy().tobytes()) for image in search.pixels}
        assert not seen & {bytes(image.numpy().tobytes()) for image in evaluation.pixels}

    def test_small_folder_is_halved(self, tmp_path):
        folder = make_folder(tmp_path, {"cat": 3, "dog": 3})
        options = ExportOptions(data=folder, limit=100, calibration_images=3)
        assert [len(images) for images in load_sets(options, CFG, QUIET)] == [3, 3]

    @pytest.mark.parametrize(("limit", "sizes"), [(2, [8, 2]), (11, [8, 11]), (16, [8, 12])])
    def test_limit_is_of_the_evaluation(self, tmp_path, limit, sizes):
        folder = make_folder(tmp_path, {"cat": 10, "dog": 10})
        options = ExportOptions(data=folder, limit=limit, search_images=8, calibration_images=4)
        assert [len(images) for images in load_sets(options, CFG, QUIET)] == sizes

    def test_too_small_to_split(self, tmp_path):
        options = ExportOptions(data=make_folder(tmp_path, {"cat": 1, "dog": 1}))
        with pytest.raises(DataError, match="too few to calibrate on 64 and hold others out"):
            load_sets(options, CFG, QUIET)

    def test_two_folders_share_one_head(self, tmp_path):
        options = ExportOptions(
            data=make_folder(tmp_path / "a", {"cat": 2, "emu": 2}),
            eval_data=make_folder(tmp_path / "b", {"bee": 2, "cat": 2}),
            limit=3,
        )
        search, evaluation = load_sets(options, CFG, QUIET)
        assert search.class_names == evaluation.class_names == ("bee", "cat", "emu")
        assert sorted(labels_of(search)) == [1, 1, 2, 2]
        assert len(evaluation) == 3

    def test_same_folder_twice(self, tmp_path):
        make_folder(tmp_path / "a", {"cat": 2, "dog": 2})
        options = ExportOptions(data=tmp_path / "a", eval_data=tmp_path / "a" / ".." / "a")
        with pytest.raises(ConfigError, match="same folder"):
            load_sets(options, CFG, QUIET)


class TestDemoImages:
    def test_own_size_keeps_the_pixels(self):
        from regcache_deploy.demo.digits import render

        images = load_demo_images("heldout", 5, 3, preprocess_cfg=CFG | {"size": 48})
        canvases, labels = render("heldout", 5, 3)
        assert np.array_equal(images.pixels.numpy(), canvases)
        assert labels_of(images) == labels.tolist()

    def test_any_size(self):
        images = load_demo_images("train", 2, preprocess_cfg=CFG | {"size": 32})
        assert images.pixels.shape == (2, 32, 32, 3)

    def test_unknown_split(self):
        with pytest.raises(ConfigError, match="train, search, heldout"):
            load_demo_images("test", 2, preprocess_cfg=CFG)
