"""Open a bundle: a folder `NAME.regcache` that is whole, unchanged, and of a known schema."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .documents import open_file, strict_json
from .errors import BundleError, EngineError
from .files import sha256_bytes, sha256_file
from .head import maker_of, read_head
from .manifest_graph import graph_problem
from .onnx_wire import has_external_data
from .preprocess_config import preprocess_problem
from .text_config import FOLDER, TEXT_FILES

SCHEMA = 1

MANIFEST = "manifest.json"
MODEL = "model.onnx"
PREPROCESS = "preprocess_cfg.json"
TEXT_FEATURES = "text_features.safetensors"
REQUIRED = (MODEL, PREPROCESS)

MAX_DOCUMENT, MAX_HEAD = 8 << 20, 1 << 30
_KEPT = {PREPROCESS: MAX_DOCUMENT, TEXT_FEATURES: MAX_HEAD}
"""Small files, held in memory as they were hashed, and the bytes that they may have."""

_REPLACED_AT_MOST = 100

AGAIN = "export it again, or copy the whole folder again"


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. Make it with `Bundle.open`.

    Attributes:
        path: its folder.
        manifest: the content of `manifest.json`.
    """

    path: Path
    manifest: dict[str, Any] = field(repr=False)
    _kept: dict[str, bytes] = field(repr=False, compare=False)

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Check every file against the manifest.

        Preprocessing and head are kept as they were checked; other files come from `read`, which
        checks them again. A bundle that is replaced meanwhile is opened anew.
        Hidden files (their name starts with a dot) are ignored: file managers leave them.

        Raises:
            BundleError: no bundle, another schema, or a file is missing, changed, unlisted,
                a link, or named so that it would leave the folder; or too large.
        """
        return unless_replaced(Path(path), lambda folder: cls._open(folder))

    @classmethod
    def _open(cls, folder: Path) -> Bundle:
        try:
            manifest = _read_manifest(folder)
            kept = _check_files(folder, manifest["files"])
        except OSError as error:  # a name too long for the disk, a folder that may not be read
            raise BundleError(f"{folder} is not readable ({error}); {AGAIN}") from error
        bundle = cls(folder, manifest, kept)
        if problem := preprocess_problem(bundle.preprocess):
            raise BundleError(f"{folder / PREPROCESS} {problem}; {AGAIN}")
        if bundle.has_text_features:
            bundle._head  # noqa: B018  (damaged is damaged now, not at first use)
        return bundle

    @property
    def model_path(self) -> Path:
        """The ONNX file. What is there now need not be what was checked: see `read`."""
        return self.path / MODEL

    def read(self, name: str) -> bytes:
        """The bytes of a file of the bundle, those that the manifest lists.

        Raises:
            BundleError: not listed, another file is there now, or a graph that keeps weights in
                other files: whoever loads these bytes, or writes them somewhere, opens those.
        """
        if name in self._kept:
            return self._kept[name]
        entry = self.manifest["files"].get(name)
        if entry is None:
            raise BundleError(f"{self.path} has no {name}")
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise BundleError(f"{self.path / name} is not readable ({error}); {AGAIN}") from error
        if sha256_bytes(data) != entry["sha256"]:
            raise BundleError(
                f"{self.path / name} is another file than when the bundle was opened; open it again"
            )
        if name.endswith(".onnx") and has_external_data(data):
            raise BundleError(
                f"{self.path / name} keeps weights in other files, which no hash of the bundle "
                "covers, or hides whether it does; do not use this bundle"
            )
        return data

    @cached_property
    def preprocess(self) -> dict[str, Any]:
        """open_clip's preprocess_cfg: size, mode, mean, std, interpolation, ..."""
        return _parse_json(self._kept[PREPROCESS], self.path / PREPROCESS)

    @property
    def has_text_features(self) -> bool:
        """Whether the bundle carries a zero-shot head."""
        return TEXT_FEATURES in self._kept

    def with_head(self, path: Path | str) -> Bundle:
        """The same bundle with another zero-shot head, a file of `regcache head`.

        Raises:
            BundleError: it is no head, of another length than the features, or made by another
                model's text tower.
        """
        path = Path(path)
        try:
            data = _read_limited(path, MAX_HEAD)
        except OSError as error:
            raise BundleError(f"{path} is not readable ({error})") from error
        features, _, _ = read_head(data, path)
        shape = self.manifest["graph"]["output"].get("shape")
        if isinstance(shape, list) and shape[-1] != features.shape[1]:
            raise BundleError(
                f"{path} has classes of {features.shape[1]} numbers and the embeddings of "
                f"{self.path} have {shape[-1]}; they come from different models"
            )
        text = self.manifest.get("text")
        mine, maker = text.get("weights_sha256") if isinstance(text, dict) else None, maker_of(data)
        if self.has_text and mine and maker and mine != maker:
            raise BundleError(
                f"{path} was made by another model's text tower; make it again from {self.path}"
            )
        return replace(self, _kept={**self._kept, TEXT_FEATURES: data})

    @property
    def has_text(self) -> bool:
        """Whether the bundle carries a text tower; see `regcache_engines.text.TextTower`."""
        return TEXT_FILES[0] in self.manifest["files"]

    @property
    def text_features(self) -> npt.NDArray[np.float32]:
        """Zero-shot head `[classes, E]`, L2-normalized. Raises BundleError if there is none."""
        return self._head[0]

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names of the head. Raises BundleError if there is no head."""
        return self._head[1]

    @property
    def logit_scale(self) -> float:
        """Factor on the cosine similarities. Raises BundleError if there is no head."""
        return self._head[2]

    @cached_property
    def _head(self) -> tuple[npt.NDArray[np.float32], tuple[str, ...], float]:
        if not self.has_text_features:
            raise BundleError(
                f"{self.path} has no {TEXT_FEATURES}; it gives features only. "
                "Export with class names to get a zero-shot head"
            )
        return read_head(self._kept[TEXT_FEATURES], self.path / TEXT_FEATURES)


Result = TypeVar("Result")


def unless_replaced(folder: Path, action: Callable[[Path], Result]) -> Result:
    """`action(folder)`, again where it failed because another bundle took the folder's place."""
    for _ in range(_REPLACED_AT_MOST):
        before = _identity(folder)
        try:
            return action(folder)
        except (BundleError, EngineError):
            if _identity(folder) == before:
                raise
    raise BundleError(f"{folder} is replaced over and over; try again when that has ended")


def _identity(folder: Path) -> tuple[int, ...]:
    try:
        found = folder.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_ctime_ns


def _parse_json(data: bytes, path: Path) -> dict[str, Any]:
    try:
        document = strict_json(data.decode("utf-8-sig"))
    except ValueError as error:
        raise BundleError(f"{path} is not readable ({error}); {AGAIN}") from error
    if not isinstance(document, dict):
        raise BundleError(f"{path} must hold a JSON object; {AGAIN}")
    return document


def _read_limited(path: Path, limit: int) -> bytes:
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(size, limit) + 1)  # `read` allocates what it is asked for
    if len(data) > limit:
        raise BundleError(f"{path} is too large to be what it should be; {AGAIN}")
    return data


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not (folder / MANIFEST).is_file():
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST}. "
            "A bundle is the folder NAME.regcache that `regcache export` writes"
        )
    path = folder / MANIFEST
    if path.is_symlink():
        raise BundleError(f"{path} is a link; a bundle holds its files itself: {AGAIN}")
    manifest = _parse_json(_read_limited(path, MAX_DOCUMENT), path)
    schema = manifest.get("schema")
    if type(schema) is not int or schema != SCHEMA:  # True is 1
        raise BundleError(
            f"{folder} has bundle schema {schema}, and this version reads {SCHEMA}; "
            "install the version of regcache-deploy that wrote it, or export again"
        )
    if not isinstance(manifest.get("files"), dict):
        raise BundleError(f"{folder}/{MANIFEST} lists no files; {AGAIN}")
    if problem := graph_problem(manifest):
        raise BundleError(f"{folder}/{MANIFEST} {problem}; {AGAIN}")
    return manifest


def _check_files(folder: Path, files: dict[str, Any]) -> dict[str, bytes]:
    """Check them all; returns the bytes of those that are kept."""
    for name in REQUIRED:
        if name not in files:
            raise BundleError(f"{folder}/{MANIFEST} does not list {name}; {AGAIN}")
    _check_text_folder(folder, files)
    kept = {}
    for name, entry in files.items():
        _check_file(folder, name, entry)
        if (limit := _KEPT.get(name)) is not None:
            data = _read_limited(folder / name, limit)
            digest = sha256_bytes(data)
            kept[name] = data
        else:
            digest = sha256_file(folder / name)
        if digest != entry["sha256"]:
            raise BundleError(
                f"{folder / name} was changed after the export (SHA-256 differs); {AGAIN}"
            )
    known = {MANIFEST, *files}
    if TEXT_FILES[0] in files:
        known.add(FOLDER)
    unlisted = sorted(_visible(folder) - known)
    if FOLDER in known:
        unlisted += sorted({f"{FOLDER}/{name}" for name in _visible(folder / FOLDER)} - known)
    if unlisted:
        raise BundleError(
            f"{folder} holds {', '.join(unlisted)}, which its manifest does not list; "
            "move it out of the bundle"
        )
    return kept


def _visible(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}


def _check_text_folder(folder: Path, files: Mapping[str, Any]) -> None:
    if FOLDER in files:
        raise BundleError(f"{folder}/{MANIFEST} lists a file in place of the folder '{FOLDER}'")
    listed = [name for name in TEXT_FILES if name in files]
    if listed and len(listed) < len(TEXT_FILES):
        lacking = ", ".join(name for name in TEXT_FILES if name not in files)
        raise BundleError(f"{folder}/{MANIFEST} does not list {lacking}; {AGAIN}")
    if listed and (folder / FOLDER).is_symlink():
        raise BundleError(f"{folder / FOLDER} is a link; a bundle holds its files itself: {AGAIN}")


def _check_file(folder: Path, name: str, entry: Any) -> None:
    plain = name not in ("", ".", "..", MANIFEST) and not any(mark in name for mark in "/\\:\0")
    if not plain and name not in TEXT_FILES:
        raise BundleError(
            f"{folder}/{MANIFEST} lists the file name {name!r}, which could leave the bundle; "
            "do not use this bundle"
        )
    path = folder / name
    if path.is_symlink():
        raise BundleError(f"{path} is a link; a bundle holds its files itself: {AGAIN}")
    if not path.is_file():
        raise BundleError(f"{path} is missing; {AGAIN}")
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
        raise BundleError(f"{folder}/{MANIFEST} has no SHA-256 for {name}; {AGAIN}")
    # the size first: it tells an interrupted copy from a changed file, and at no cost
    if type(entry.get("size")) is not int or entry["size"] != path.stat().st_size:
        raise BundleError(
            f"{path} has {path.stat().st_size} bytes, and the manifest says {entry.get('size')}; "
            f"the copy is incomplete: {AGAIN}"
        )
