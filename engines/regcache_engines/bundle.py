"""Open a bundle: a folder `NAME.regcache` that is whole, unchanged, and of a known schema."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BundleError
from .files import sha256_file

SCHEMA = 1

MANIFEST = "manifest.json"
MODEL = "model.onnx"
PREPROCESS = "preprocess_cfg.json"
TEXT_FEATURES = "text_features.safetensors"
REQUIRED = (MODEL, PREPROCESS)

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

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Check every file against the manifest.

        Hidden files (their name starts with a dot) are ignored: file managers leave them.

        Raises:
            BundleError: no bundle, another schema, or a file is missing, changed, unlisted,
                a link, or named so that it would leave the folder.
        """
        folder = Path(path)
        try:
            manifest = _read_manifest(folder)
            _check_files(folder, manifest["files"])
        except OSError as error:  # a name too long for the disk, a folder that may not be read
            raise BundleError(f"{folder} is not readable ({error}); {AGAIN}") from error
        return cls(folder, manifest)

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.path / MODEL

    @cached_property
    def preprocess(self) -> dict[str, Any]:
        """open_clip's preprocess_cfg: size, mode, mean, std, interpolation, ..."""
        return _read_json(self.path / PREPROCESS)

    @property
    def has_text_features(self) -> bool:
        """Whether the bundle carries a zero-shot head."""
        return TEXT_FEATURES in self.manifest["files"]

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
        from safetensors import SafetensorError, safe_open

        if not self.has_text_features:
            raise BundleError(
                f"{self.path} has no {TEXT_FEATURES}; it gives features only. "
                "Export with class names to get a zero-shot head"
            )
        path = self.path / TEXT_FEATURES
        try:
            with safe_open(path, framework="numpy") as file:
                features = np.asarray(file.get_tensor("text_features"), dtype=np.float32)
                described = file.metadata() or {}
            labels = tuple(str(label) for label in json.loads(described["labels"]))
            scale = float(described["logit_scale"])
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise BundleError(f"{path} is not readable ({error}); {AGAIN}") from error
        if features.ndim != 2 or (labels and len(labels) != len(features)):
            raise BundleError(
                f"{path} has features of shape {list(features.shape)} for {len(labels)} labels; "
                f"{AGAIN}"
            )
        return features, labels, scale


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not readable ({error}); {AGAIN}") from error
    if not isinstance(document, dict):
        raise BundleError(f"{path} must hold a JSON object; {AGAIN}")
    return document


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not (folder / MANIFEST).is_file():
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST}. "
            "A bundle is the folder NAME.regcache that `regcache export` writes"
        )
    manifest = _read_json(folder / MANIFEST)
    schema = manifest.get("schema")
    if schema != SCHEMA:
        raise BundleError(
            f"{folder} has bundle schema {schema}, and this version reads {SCHEMA}; "
            "install the version of regcache-deploy that wrote it, or export again"
        )
    if not isinstance(manifest.get("files"), dict):
        raise BundleError(f"{folder}/{MANIFEST} lists no files; {AGAIN}")
    return manifest


def _check_files(folder: Path, files: dict[str, Any]) -> None:
    for name in REQUIRED:
        if name not in files:
            raise BundleError(f"{folder}/{MANIFEST} does not list {name}; {AGAIN}")
    for name, entry in files.items():
        _check_file(folder, name, entry)
    present = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    unlisted = sorted(present - files.keys() - {MANIFEST})
    if unlisted:
        raise BundleError(
            f"{folder} holds {', '.join(unlisted)}, which its manifest does not list; "
            "move it out of the bundle"
        )


def _check_file(folder: Path, name: str, entry: Any) -> None:
    if name in ("", ".", "..", MANIFEST) or any(mark in name for mark in "/\\:\0"):
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
    if entry.get("size") != path.stat().st_size:
        raise BundleError(
            f"{path} has {path.stat().st_size} bytes, and the manifest says {entry.get('size')}; "
            f"the copy is incomplete: {AGAIN}"
        )
    if sha256_file(path) != entry["sha256"]:
        raise BundleError(f"{path} was changed after the export (SHA-256 differs); {AGAIN}")
