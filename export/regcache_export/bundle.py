"""Write a bundle: everything a device needs, in one folder, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from regcache_engines.bundle import MANIFEST, MODEL, PREPROCESS, SCHEMA, TEXT_FEATURES, Bundle
from regcache_engines.head import head_bytes
from regcache_engines.text_config import TEXT_FILES

from .describe import summary, tokens_out, tool_version
from .errors import BundleError, ConfigError
from .files import atomic_write_bytes, clear_leftovers, sha256_bytes, staged_folder
from .graph import INPUT_NAME, OUTPUT_NAME, build_model, serialize
from .graph.encoder import input_shape
from .graph.probes import add_probes
from .plan import Array, Plan
from .targets import GraphOptions


def write_bundle(
    plan: Plan,
    folder: Path,
    extra_manifest: Mapping[str, Any] | None = None,
    plan_sha256: str | None = None,
    options: GraphOptions | None = None,
) -> Path:
    """Write the bundle of a plan.

    It is put together in a hidden folder beside its place and exchanged for it in one step. An
    existing bundle is replaced only by a complete one; anything else that is there is left alone.

    Args:
        plan: what to bake.
        folder: the bundle, by custom `NAME.regcache`.
        extra_manifest: more entries for the manifest, e.g. `{"accuracy": {...}}`.
        plan_sha256: hash of the plan's files, repeated in the model's metadata.
        options: target, folds, input and batch of the graph.

    Returns:
        `folder`.

    Raises:
        BundleError: the plan cannot be exported, the place is taken by something else, an extra
            entry clashes with one of ours or is no JSON.
        ConfigError: the disk refuses.
    """
    _check_replaceable(folder)
    options = options or GraphOptions()
    model = build_model(plan, plan_sha256, options)
    contract = _manifest(plan, options)
    contract["graph"]["opset"] = model.opset_import[0].version
    if options.without:
        contract["graph"]["without"] = list(options.without)
    if options.probes:
        contract["graph"]["probes"] = add_probes(model, plan, options.probes)
    files = {
        MODEL: serialize(model),
        PREPROCESS: _json_bytes(plan.preprocess, "the plan's preprocessing"),
    }
    if plan.text_features is not None:
        files[TEXT_FEATURES] = _text_features(plan, plan.text_features)
    manifest = _extended(contract | {"files": {}}, extra_manifest)
    with _staged(folder) as staging:
        _fill(staging, files, manifest)
    return folder


def seal_bundle(draft: Path, folder: Path, extra_manifest: Mapping[str, Any] | None = None) -> Path:
    """Give a verified draft its final name, what the verification found, and the date.

    The manifest's `created` is the one thing in a bundle that the plan does not decide; where the
    environment has SOURCE_DATE_EPOCH, equal plans give equal bundles to the last byte.

    Args:
        draft: a bundle under a provisional name; it is gone afterwards.
        folder: the final name.
        extra_manifest: as in `write_bundle`.

    Returns:
        `folder`.

    Raises:
        BundleError: the draft is not a whole bundle, or as in `write_bundle`.
        ConfigError: the disk refuses, or SOURCE_DATE_EPOCH is no time.
    """
    _check_replaceable(folder)
    created = {"created": _now()}
    manifest = _extended(Bundle.open(draft).manifest, {**created, **(extra_manifest or {})})
    with _staged(folder) as staging:
        _link_all(draft, staging, manifest["files"])
        _fill(staging, {}, manifest)
    shutil.rmtree(draft, ignore_errors=True)
    return folder


def _now() -> str:
    """UTC to the second; SOURCE_DATE_EPOCH's time where it is set, for reproducible builds."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        now = int(given) if given else time.time()
        return datetime.fromtimestamp(now, timezone.utc).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigError(
            f"SOURCE_DATE_EPOCH is {given!r:.40}: take seconds since 1970, or unset it"
        ) from error


def add_files(path: Path, files: Mapping[str, bytes]) -> None:
    """Add files to a bundle, or replace them: a certificate, a report.

    The whole bundle is staged again (its other files are hard links) and exchanged at once, so no
    reader sees a file without its hash.

    Raises:
        BundleError: `path` is not a whole bundle, or a name would leave it.
        ConfigError: the disk refuses.
    """
    if path.parent.is_dir():
        clear_leftovers(path)  # one of them may be the bundle
    manifest = Bundle.open(path).manifest
    for name in files:
        plain = name and Path(name).name == name and not name.startswith(".") and name != MANIFEST
        if not plain and name not in TEXT_FILES:
            raise BundleError(f"a bundle cannot hold a file named {name!r}")
    kept = {name: entry for name, entry in manifest["files"].items() if name not in files}
    with _staged(path) as staging:
        _link_all(path, staging, kept)
        _fill(staging, files, manifest | {"files": kept})


def copy_text(source: Bundle, target: Path) -> dict[str, Any]:
    """Give a bundle the text tower of another one of the same model.

    Returns:
        The manifest's entry for `seal_bundle`; empty where there is none to copy.

    Raises:
        BundleError: one of them is damaged.
    """
    if source.has_text:
        add_files(target, {name: source.read(name) for name in TEXT_FILES})
    return {"text": source.manifest["text"]} if "text" in source.manifest else {}


def _manifest(plan: Plan, options: GraphOptions) -> dict[str, Any]:
    spec = plan.encoder
    batch: str | int = options.batch or "batch"
    return summary(plan) | {
        "schema": SCHEMA,
        "tool_version": tool_version(),
        "graph": {
            "input": {
                "name": INPUT_NAME,
                "dtype": "uint8" if options.pixels else "float32",
                "shape": input_shape(plan, options),
            },
            "output": {
                "name": OUTPUT_NAME,
                "dtype": "float32",
                "shape": [batch, spec.output_dim],
                "l2_normalized": False,
            },
            "target": options.target,
            "tokens": spec.num_tokens,
            "tokens_out": tokens_out(plan),
        },
        "provenance": plan.provenance,
        "plan_tensors_sha256": plan.tensors_sha256(),
    }


def _extended(manifest: Mapping[str, Any], extra: Mapping[str, Any] | None) -> dict[str, Any]:
    clashes = sorted(manifest.keys() & (extra or {}).keys())
    if clashes:
        raise BundleError(f"the manifest has an entry '{clashes[0]}' already; rename the new one")
    return {**manifest, **(extra or {})}


def _text_features(plan: Plan, features: Array) -> bytes:
    if features.ndim != 2 or features.shape[1] != plan.encoder.output_dim:
        raise BundleError(
            f"the text features have shape {list(features.shape)}, and the encoder gives "
            f"{plan.encoder.output_dim} numbers; they come from another model"
        )
    if plan.labels and len(plan.labels) != len(features):
        raise BundleError(f"{len(features)} text features for {len(plan.labels)} labels")
    return head_bytes(features, plan.labels, plan.logit_scale)


def _json_bytes(document: Any, what: str) -> bytes:
    try:
        text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BundleError(f"{what} cannot be written as JSON: {error}") from error
    return (text + "\n").encode()


def _fill(staging: Path, files: Mapping[str, bytes], manifest: dict[str, Any]) -> None:
    """Write `files` and then the manifest, which lists them beside those it lists already."""
    entries = dict(manifest["files"])
    for name, data in files.items():
        entries[name] = {"sha256": sha256_bytes(data), "size": len(data)}
    document = _json_bytes(manifest | {"files": entries}, "the manifest")
    for name, data in files.items():
        (staging / name).parent.mkdir(exist_ok=True)
        atomic_write_bytes(staging / name, data)
    atomic_write_bytes(staging / MANIFEST, document)


def _check_replaceable(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise BundleError(f"{path} exists and is not a bundle; choose another name")
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise BundleError(f"{path} is a folder without {MANIFEST}; choose another name")


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """`staged_folder`; a disk that refuses is no fault of the bundle."""
    try:
        with staged_folder(path) as staging:
            yield staging
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error}; free space or choose another folder"
        ) from error


def _link_all(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        (target / name).parent.mkdir(exist_ok=True)
        _link_or_copy(source / name, target / name)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # some file systems have no hard links
        shutil.copyfile(source, target)
