"""What is in a bundle, read from its files and, where they lie beside it, from those of its run.

Needs neither torch nor onnx.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from regcache_engines.bundle import MANIFEST, MODEL, Bundle
from regcache_engines.text_config import FOLDER, TEXT_CONFIG, TextConfig
from regcache_export.merge import Merge, block_tokens
from regcache_export.regcache_config import RegCacheConfig
from regcache_export.spec import EncoderSpec

from ..errors import BundleError, ConfigError, DataError
from ..work.format import COUNTED
from ..work.paths import RESULT
from .document import load_document
from .measured import own_rows

CERTIFICATE = "certificate.json"

Facts = dict[str, Any]


def inspect_bundle(path: Path) -> Facts:
    """Facts of a bundle, or of the run folder that holds one; ready for JSON.

    Sections: `bundle`, `model`, `encoder`, `quantizer`, `regcache`, `merge`, `tokens_by_block`,
    `sinks`, `graph`, `preprocess`, `head`, `text`, `sizes` (bytes), `accuracy`, `speed`,
    `certificate`, `files` (SHA-256) and `made`. What a bundle does not have is None.

    Raises:
        BundleError: no bundle, or a damaged one.
        ConfigError: the folder holds several.
        DataError: a file of its run cannot be read.
    """
    bundle = Bundle.open(_bundle_of(path))
    manifest = bundle.manifest
    provenance = _object(manifest, "provenance")
    certificate = _certificate(bundle)
    spec = _encoder(certificate)
    run = _run(bundle)
    choice = manifest.get("regcache")
    return {
        "bundle": str(bundle.path),
        "model": {
            "name": manifest.get("model"),
            "pretrained": provenance.get("pretrained"),
            "weights_sha256": provenance.get("weights_sha256"),
            "caution": provenance.get("caution"),
        },
        "encoder": _described(spec) if spec else None,
        "quantizer": {
            "baseline": manifest.get("baseline"),
            "bits": manifest.get("bits"),
            "quantized_linears": manifest.get("quantized_linears"),
            "linears": manifest.get("linears"),
            "strict_paper": manifest.get("strict_paper"),
            "recipe": provenance.get("recipe"),
            "range_rule": provenance.get("range_rule"),
            "treatment": provenance.get("treatment"),
        },
        "regcache": choice,
        "merge": manifest.get("merge"),
        "tokens_by_block": _tokens(spec, choice, manifest.get("merge")),
        "sinks": _sinks(choice, provenance, run),
        "graph": _object(manifest, "graph"),
        "preprocess": bundle.preprocess,
        "head": _head(bundle),
        "text": _text(bundle),
        "sizes": _sizes(bundle, spec),
        "accuracy": _accuracy(manifest, provenance, run),
        "speed": _speed(run),
        "certificate": _summary(certificate),
        "files": {name: entry["sha256"] for name, entry in sorted(manifest["files"].items())},
        "made": {
            "created": manifest.get("created"),
            "tool_version": manifest.get("tool_version"),
            "versions": provenance.get("versions"),
            "search_data": provenance.get("search_data"),
            "seed": provenance.get("seed"),
        },
    }


def _bundle_of(path: Path) -> Path:
    if (path / MANIFEST).exists() or not path.is_dir():
        return path
    found = sorted(each for each in path.glob("*.regcache") if each.is_dir())
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise ConfigError(f"{path} holds several bundles ({names}); name one of them")
    return found[0] if found else path


def _object(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name)
    return dict(found) if isinstance(found, dict) else {}


def _certificate(bundle: Bundle) -> dict[str, Any]:
    if CERTIFICATE not in bundle.manifest["files"]:
        return {}
    try:
        document = json.loads(bundle.read(CERTIFICATE))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{bundle.path / CERTIFICATE} is not readable ({error})") from error
    return document if isinstance(document, dict) else {}


def _encoder(certificate: Mapping[str, Any]) -> EncoderSpec | None:
    found = certificate.get("encoder")
    return EncoderSpec.from_json(found) if isinstance(found, dict) else None


def _described(spec: EncoderSpec) -> Facts:
    """Its structure; of a stem, how much it does, in place of its steps."""
    found = spec.to_json() | {"tokens": spec.num_tokens}
    if spec.stem:
        stem = spec.embedding_multiplications
        share = stem / (stem + spec.depth * spec.block_multiplications)
        found["stem"] = {"steps": len(spec.stem), "float_multiplications": share}
    return found


def _tokens(spec: EncoderSpec | None, choice: Any, merge: Any) -> list[dict[str, int]] | None:
    if spec is None:
        return None
    regcache = RegCacheConfig.from_json(choice) if choice else None
    blocks = block_tokens(spec, regcache, Merge.from_json(merge) if merge else None)
    return [{"attention": block.attention, "mlp": block.mlp} for block in blocks]


def _sinks(choice: Any, provenance: Mapping[str, Any], run: Mapping[str, Any]) -> Facts | None:
    """What happens to the tokens that grow, and how large they are with and without."""
    if not choice:
        return None
    regcache = RegCacheConfig.from_json(choice)
    return {
        "sensitive_layer": provenance.get("sensitive_layer") or run.get("sensitive_layer"),
        "absent_while_ranges_are_set": regcache.range_delete_count,
        "deleted": regcache.delete_count,
        "saturate": regcache.range_delete_count - regcache.delete_count,
        "token_norms": run.get("token_norms"),
    }


def _head(bundle: Bundle) -> Facts | None:
    if not bundle.has_text_features:
        return None
    return {
        "classes": len(bundle.text_features),
        "named": bool(bundle.labels),
        "logit_scale": bundle.logit_scale,
    }


def _text(bundle: Bundle) -> Facts | None:
    if not bundle.has_text:
        return _object(bundle.manifest, "text") or None
    name = f"{FOLDER}/{TEXT_CONFIG}"
    found = TextConfig.parse(bundle.read(name), str(bundle.path / name)).to_json()
    return found | {"templates": len(found["templates"])}


def _sizes(bundle: Bundle, spec: EncoderSpec | None) -> Facts:
    """Bytes of the image tower as it is and in float32, of the text side, and of all files."""
    files = bundle.manifest["files"]
    sizes = {name: entry["size"] for name, entry in files.items()}
    text = sum(size for name, size in sizes.items() if name.startswith(f"{FOLDER}/"))
    shapes = spec.weight_shapes().values() if spec else ()
    return {
        "model": sizes[MODEL],
        "model_in_float32": 4 * sum(map(prod, shapes)) if spec else None,
        "text": text or None,
        "whole": sum(sizes.values()),
    }


def _run(bundle: Bundle) -> dict[str, Any]:
    """The document of the run that this bundle came out of, where it lies in its folder.

    Nothing where that is of an earlier file: the export that replaced it was killed at its end.
    """
    folder = bundle.path.resolve().parent
    if not (folder / RESULT).is_file():
        return {}
    document = load_document(folder)
    made = document.get("bundle")
    own = made and Path(made).name == bundle.path.resolve().name
    return document if own and not document.get("outdated") else {}


def _accuracy(
    manifest: Mapping[str, Any], provenance: Mapping[str, Any], run: Mapping[str, Any]
) -> Facts | None:
    scores = manifest.get("accuracy")
    if not scores:
        return None
    return {
        "metric": _metric(provenance, run),
        "images": run.get("n_eval"),
        "scores": scores,
        "paired": (run.get("paired") or {}).get("deployed"),
        "deployed_against_simulated": manifest.get("agreement"),
        "search_objective": provenance.get("search_objective"),
    }


def _metric(provenance: Mapping[str, Any], run: Mapping[str, Any]) -> str | None:
    """Of the held-out images; None where a bundle away from its run does not say.

    A search for less error of the features (`--objective mse`) is judged by what images allow.
    """
    if run.get("metric"):
        return str(run["metric"])
    if str(provenance.get("pretrained") or "").startswith("random"):
        return "cosine"
    objective = provenance.get("search_objective")
    return objective if objective in COUNTED else None


def _speed(run: Mapping[str, Any]) -> Facts | None:
    """What the export saw beside the float file, and this bundle's rows of `regcache bench`."""
    found = {"over_fp32": run.get("speed"), "rows": own_rows(dict(run)) or None}
    return found if any(found.values()) else None


def _summary(certificate: Mapping[str, Any]) -> Facts | None:
    nodes = certificate.get("nodes")
    if not certificate or not isinstance(nodes, list):
        return None
    try:
        different = sum(int(node["different"]) for node in nodes)
        elements = sum(int(node["elements"]) for node in nodes)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{CERTIFICATE} has a node without its counts ({error})") from error
    return {
        "images": certificate.get("images"),
        "nodes": len(nodes),
        "codes": elements,
        "different_codes": different,
        "simulation": certificate.get("simulation"),
        "environment": certificate.get("environment"),
    }
