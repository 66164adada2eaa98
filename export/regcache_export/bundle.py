"""Write a bundle: everything a device needs, in one folder, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from regcache_engines.bundle import MANIFEST, MODEL, PREPROCESS, SCHEMA, TEXT_FEATURES, Bundle

from .describe import summary, tokens_out, tool_version
from .errors import BundleError
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
            entry clashes with one of ours or is no JSON, or the disk refuses.
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
    """Give a verified draft its final name and what the verification found.

    Args:
        draft: a bundle under a provisional name; it is gone afterwards.
        folder: the final name.
        extra_manifest: as in `write_bundle`.

    Returns:
        `folder`.

    Raises:
        BundleError: the draft is not a whole bundle, or as in `write_bundle`.
    """
    _check_replaceable(folder)
    manifest = _extended(Bundle.open(draft).manifest, extra_manifest)
    with _staged(folder) as staging:
        for name in manifest["files"]:
            _link_or_copy(draft / name, staging / name)
        _fill(staging, {}, manifest)
    shutil.rmtree(draft, ignore_errors=True)
    return folder


def add_files(path: Path, files: Mapping[str, bytes]) -> None:
    """Add files to a bundle, or replace them: a certificate, a report.

    The whole bundle is staged again (its other files are hard links) and exchanged at once, so no
    reader sees a file without its hash.

    Raises:
        BundleError: `path` is not a whole bundle, or a name would leave it.
    """
    if path.parent.is_dir():
        clear_leftovers(path)  # one of them may be the bundle
    manifest = Bundle.open(path).manifest
    for name in files:
        if not name or Path(name).name != name or name.startswith(".") or name == MANIFEST:
            raise BundleError(f"a bundle cannot hold a file named {name!r}")
    kept = {name: entry for name, entry in manifest["files"].items() if name not in files}
    with _staged(path) as staging:
        for name in kept:
            _link_or_copy(path / name, staging / name)
        _fill(staging, files, manifest | {"files": kept})


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
    from safetensors.numpy import save

    if features.ndim != 2 or features.shape[1] != plan.encoder.output_dim:
        raise BundleError(
            f"the text features have shape {list(features.shape)}, and the encoder gives "
            f"{plan.encoder.output_dim} numbers; they come from another model"
        )
    if plan.labels and len(plan.labels) != len(features):
        raise BundleError(f"{len(features)} text features for {len(plan.labels)} labels")
    described = {
        "labels": json.dumps(list(plan.labels)),
        "logit_scale": repr(float(plan.logit_scale)),
    }
    tensor = np.ascontiguousarray(features, dtype=np.float32)
    return _sorted_header(save({"text_features": tensor}, metadata=described))


def _sorted_header(data: bytes) -> bytes:
    """The same safetensors file with its header in sorted order.

    The library keeps metadata in a hash map and writes it in another order in every process;
    an identical plan shall give identical files. Format: 8 bytes of header length, little endian,
    the header as JSON padded with spaces to a multiple of 8 bytes, then the tensors.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


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
        atomic_write_bytes(staging / name, data)
    atomic_write_bytes(staging / MANIFEST, document)


def _check_replaceable(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise BundleError(f"{path} exists and is not a bundle; choose another name")
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise BundleError(f"{path} is a folder without {MANIFEST}; choose another name")


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """`staged_folder`, whose errors are a bundle's."""
    try:
        with staged_folder(path) as staging:
            yield staging
    except OSError as error:
        raise BundleError(f"cannot write {path}: {error}") from error


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # some file systems have no hard links
        shutil.copyfile(source, target)
