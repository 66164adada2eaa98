"""From folder names to the classes of a zero-shot head.

Folders are named by ImageNet's wnids (`n01440764`, also `n01440764_tench`) or by class names,
written freely: `Great_White_Shark` is "great white shark".
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

from ..errors import DataError
from .scan import looks_like_splits

_DROPPED = str.maketrans("", "", "'.")
_WNID = re.compile(r"(n\d{8})(?![0-9A-Za-z])")


def head_for(folders: Sequence[str]) -> tuple[str, ...]:
    """Class names of the zero-shot head that suits these class folders.

    Folders named by wnids ask for ImageNet's 1000 classes, however few of them are there: accuracy
    among a handful would flatter. Other names are the classes themselves.

    Args:
        folders: names of class folders, of all image sets that the head must serve.

    Raises:
        DataError: fewer than two classes, a name that is not in UTF-8, or the folders are splits.
    """
    refuse_splits(folders)
    _refuse_bytes(folders)
    if any(is_wnid(folder) for folder in folders):
        return imagenet_names()
    names = {_plain(folder): folder.replace("_", " ").strip() for folder in sorted(folders)}
    if len(names) < 2:
        _refuse_twins(folders)
        raise DataError(
            f"one class alone ({', '.join(names.values()) or 'none'}) measures nothing; pass a "
            "folder with one sub-folder per class"
        )
    return tuple(names.values())


def class_indices(folders: Sequence[str], head: Sequence[str]) -> list[int]:
    """Index into `head` of every folder.

    Args:
        folders: names of the class folders of one image set.
        head: class names.

    Raises:
        DataError: a folder matches no class, or several; the message names the nearest ones. Or
            two folders differ in punctuation and case alone.
    """
    table = _lookup(tuple(head))
    wnids = {w: i for i, w in enumerate(imagenet_wnids())} if _is_imagenet(head) else {}
    indices = []
    for folder in folders:
        wnid = _wnid(folder)
        if wnid in wnids:
            indices.append(wnids[wnid])
            continue
        found = table.get(_plain(folder), [])
        if len(found) != 1:
            raise DataError(_mismatch(folder, found, folders, head, wnids))
        indices.append(found[0])
    _refuse_twins(folders)
    return indices


def refuse_splits(folders: Sequence[str]) -> None:
    """Raise DataError where the folders are splits and no classes."""
    split = looks_like_splits(folders)
    if split:
        raise DataError(_splits(folders, split))


def is_wnid(folder: str) -> bool:
    """Whether a folder is named by one of WordNet's numbers."""
    return _wnid(folder) is not None


def imagenet_names() -> tuple[str, ...]:
    """open_clip's names of the 1000 ImageNet classes, in the order of ImageNet's labels."""
    return tuple(name for _, name in _imagenet())


def imagenet_wnids() -> tuple[str, ...]:
    """The 1000 wnids in the order of ImageNet's labels."""
    return tuple(wnid for wnid, _ in _imagenet())


@lru_cache(maxsize=1)
def _imagenet() -> tuple[tuple[str, str], ...]:
    """The file beside this one: timm's wnids and open_clip's names, which a test holds it to."""
    text = (resources.files(__package__) / "imagenet_classes.tsv").read_text(encoding="utf-8")
    return tuple((wnid, name) for wnid, name in (line.split("\t") for line in text.splitlines()))


def _wnid(folder: str) -> str | None:
    match = _WNID.match(folder)
    return match[1] if match else None


def _plain(name: str) -> str:
    """Lower case, words parted by single spaces; apostrophes and full stops do not count.

    Letters, their marks (vowels of many scripts are marks), digits and pictographs count, however
    they are composed.
    """
    text = unicodedata.normalize("NFKC", name).casefold().translate(_DROPPED)
    return " ".join("".join(c if _counts(c) else " " for c in text).split())


def _counts(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind[0] in "LMN" or kind == "So"


def _is_imagenet(head: Sequence[str]) -> bool:
    return len(head) == 1000 and tuple(head) == imagenet_names()


@lru_cache(maxsize=8)
def _lookup(head: tuple[str, ...]) -> dict[str, list[int]]:
    table: dict[str, list[int]] = {}
    for index, name in enumerate(head):
        table.setdefault(_plain(name), []).append(index)
    return table


def _refuse_bytes(folders: Sequence[str]) -> None:
    """A name in another encoding is no text that a model or a bundle could take."""
    for folder in folders:
        try:
            folder.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"the name of class folder {folder!r} is not in UTF-8; rename it"
            ) from error


def _refuse_twins(folders: Sequence[str]) -> None:
    """`1.5` and `15`, `C` and `C++`: names that are written freely cannot tell them apart."""
    seen: dict[str, str] = {}
    for folder in folders:
        other = seen.setdefault(_plain(folder), folder)
        if other != folder:
            raise DataError(
                f"class folders '{other}' and '{folder}' have the same name but for punctuation "
                "and case; rename one of them, or put their images together"
            )


def _mismatch(
    folder: str,
    found: Sequence[int],
    folders: Sequence[str],
    head: Sequence[str],
    wnids: dict[str, int],
) -> str:
    if found:
        ways = ", ".join(w for w, i in wnids.items() if i in found)
        hint = f"name the folder by wnid: {ways}" if ways else "rename the folder"
        return f"class folder '{folder}' stands for {len(found)} classes of the head; {hint}"
    split = looks_like_splits(folders)
    if split:
        return _splits(folders, split)
    if wnids and _wnid(folder):
        return f"class folder '{folder}' is no wnid of ImageNet's 1000 classes; take it out"
    names = {_plain(name): name for name in head}
    close = difflib.get_close_matches(_plain(folder), list(names), n=3, cutoff=0.5)
    nearest = "; nearest: " + ", ".join(names[name] for name in close) if close else ""
    return f"class folder '{folder}' matches none of the {len(head)} classes{nearest}"


def _splits(folders: Sequence[str], split: str) -> str:
    names = ", ".join(folders)
    return f"the folders {names} are splits, not classes; pass one of them: .../{split}"
