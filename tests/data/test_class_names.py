"""Folder names find their class in a zero-shot head."""

from __future__ import annotations

import os
import unicodedata

import pytest

from regcache_deploy.compat import import_open_clip
from regcache_deploy.data.class_names import (
    class_indices,
    head_for,
    imagenet_names,
    imagenet_wnids,
)
from regcache_deploy.errors import DataError


def test_wnids_ask_for_all_of_imagenet():
    folders = ["n01440764", "n01484850", "n15075141_toilet_tissue"]
    head = head_for(folders)
    assert head == imagenet_names()
    assert class_indices(folders, head) == [0, 2, 999]


def test_names_written_freely():
    head = ("great white shark", "St. Bernard", "jack-o'-lantern", "forty-two")
    folders = ["forty two", "Great_White_Shark", "st bernard", "Jack O'Lantern"]
    with pytest.raises(DataError, match="Jack O'Lantern"):
        class_indices(folders, head)
    assert class_indices([*folders[:3], "jack-o-lantern"], head) == [3, 0, 1, 2]


def test_imagenets_classes_are_open_clips_and_timms():
    from importlib import resources

    open_clip = import_open_clip()
    assert imagenet_names() == tuple(open_clip.IMAGENET_CLASSNAMES)
    wnids = (resources.files("timm.data") / "_info" / "imagenet_synsets.txt").read_text().split()
    assert imagenet_wnids() == tuple(wnids)


def test_imagenet_names():
    folders = ["Tench", "crane_bird", "n03126707"]
    assert class_indices(folders, imagenet_names()) == [0, 134, 517]


def test_ambiguous_name_asks_for_the_wnid():
    with pytest.raises(DataError, match="name the folder by wnid: n03773504, n04008634"):
        class_indices(["missile"], imagenet_names())


def test_no_match_names_the_nearest():
    with pytest.raises(DataError, match="matches none of the 3 classes; nearest: goldfish"):
        class_indices(["gold_fisch"], ["tench", "goldfish", "hen"])


def test_wnid_outside_imagenet_1k():
    with pytest.raises(DataError, match="n99999999' is no wnid"):
        class_indices(["n01440764", "n99999999"], imagenet_names())


def test_names_in_other_scripts():
    assert head_for(["кошка", "собака"]) == ("кошка", "собака")
    assert class_indices(["Собака"], ("кошка", "собака")) == [1]


@pytest.mark.parametrize(
    ("one", "other"), [("หมู", "หมี"), ("किताब", "कुतब"), ("🐱", "🐶"), ("เสือ", "เสื่อ")]
)
def test_vowels_that_are_marks_and_pictographs_tell_names_apart(one: str, other: str) -> None:
    assert class_indices([one, other], (other, one)) == [1, 0]
    with pytest.raises(DataError, match="matches none"):
        class_indices([one], (other, "dog"))


def test_a_name_may_be_composed_in_either_way() -> None:
    composed, apart = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))
    assert composed != apart
    assert class_indices([apart, "ｄｏｇ"], ("dog", composed)) == [1, 0]


@pytest.mark.parametrize("pair", [("1.5", "15"), ("C", "C++"), ("dog", "Dog"), ("a_b", "a b")])
def test_folders_that_only_punctuation_parts_are_named(pair):
    for folders in (pair, (*pair, "another")):
        with pytest.raises(DataError, match="but for punctuation") as caught:
            class_indices(folders, head_for(folders))
        assert all(f"'{name}'" in str(caught.value) for name in pair)
    # of two image sets, each may write a class in its own way
    head = head_for(["dog", "Great_White_Shark", "great white shark"])
    assert class_indices(["great white shark", "dog"], head) == [0, 1]


def test_one_class_by_two_wnid_names():
    folders = ["n01440764", "n01440764_tench"]
    assert class_indices(folders, head_for(folders)) == [0, 0]


def test_a_name_in_another_encoding_is_no_class() -> None:
    """It became a label that no bundle can hold, found when all else was done."""
    folder = os.fsdecode(b"caf\xe9")
    with pytest.raises(DataError, match=r"class folder 'caf\\udce9' is not in UTF-8; rename it"):
        head_for(["dog", folder])
