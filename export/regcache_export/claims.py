"""What a bundle's manifest says, held against its certificate and against its graph."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from regcache_engines.bundle import MANIFEST, Bundle
from regcache_engines.text_config import FOLDER, TEXT_CONFIG, TextConfig

from .certificate import Subject
from .describe import metadata_text
from .merge import block_tokens
from .onnx_proto import NUMPY, ModelProto, ValueInfoProto

LATER = ("files", "created")
"""Entries that a certificate cannot know: it is one of the files itself."""

SUMMARY = ("model", "baseline", "bits", "quantized_linears", "strict_paper", "linears")
"""Entries that the graph's metadata repeat."""


def entry_hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 (16 digits) of every entry of a manifest, `LATER` apart."""
    return {
        name: hashlib.sha256(_canonical(value)).hexdigest()[:16]
        for name, value in sorted(manifest.items())
        if name not in LATER
    }


def _canonical(value: Any) -> bytes:
    """The same for what is to be written and for what was read."""
    return json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()


def other_entries(manifest: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    """Names of entries that are not those of the certificate; older ones have but two."""
    other = {name for name in ("regcache", "merge") if manifest.get(name) != document.get(name)}
    if (stored := document.get("manifest")) is not None:
        found = entry_hashes(manifest)
        other |= {
            name for name in found.keys() | stored.keys() if found.get(name) != stored.get(name)
        }
    return sorted(other)


def false_claims(bundle: Bundle, model: ModelProto, subject: Subject) -> list[str]:
    """Entries that the graph itself contradicts, in words.

    Raises:
        BundleError: `text.json` is damaged.
    """
    graph, known = bundle.manifest["graph"], dict(_of_graph(model, subject))
    wrong = list(_summary(bundle.manifest, model))
    wrong += [f"graph.{name}" for name in known if name in graph and graph[name] != known[name]]
    if any(_other_ends(probe, model, subject) for probe in graph.get("probes") or []):
        wrong.append("graph.probes")
    if bundle.has_text and isinstance(said := bundle.manifest.get("text"), dict):
        name = f"{FOLDER}/{TEXT_CONFIG}"
        tower = TextConfig.parse(bundle.read(name), str(bundle.path / name)).to_json()
        wrong += [f"text.{entry}" for entry in said if said[entry] != tower.get(entry)]
    return [f"'{name}' in {MANIFEST}" for name in wrong]


def _summary(manifest: Mapping[str, Any], model: ModelProto) -> Iterator[str]:
    for prop in model.metadata_props:
        name = prop.key.removeprefix("regcache.")
        if name in SUMMARY and metadata_text(manifest.get(name)) != prop.value:
            yield name


def _of_graph(model: ModelProto, subject: Subject) -> Iterator[tuple[str, Any]]:
    """What the manifest's `graph` must say, where it says anything of it."""
    spec, options = subject.spec, subject.options
    image, features = model.graph.input[0], model.graph.output[0]
    yield "input", _described(image)
    yield "output", _described(features) | {"l2_normalized": False}
    yield (
        "opset",
        next((s.version for s in model.opset_import if s.domain in ("", "ai.onnx")), None),
    )
    yield "target", options.target
    yield "without", list(options.without)
    yield "tokens", spec.num_tokens
    yield "tokens_out", block_tokens(spec, subject.regcache, subject.merge)[-1].mlp


def _other_ends(probe: Mapping[str, Any], model: ModelProto, subject: Subject) -> bool:
    """Whether a probe counts other codes than the ends of its layer's range."""
    label = next((p.value for p in model.metadata_props if p.key == "regcache.bits"), "")
    bits = re.fullmatch(r"W[0-9]+A([0-9]{1,2})", label)
    if bits is None:  # no width, or several
        return False
    middle = subject.offsets.get(probe["output"].removesuffix("/QuantizeLinear"))
    half = 2 ** (int(bits[1]) - 1)
    return middle is None or (probe["low"], probe["high"]) != (middle - half, middle + half - 1)


def _described(value: ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    dtype = next((name for name, kind in NUMPY.items() if kind == tensor.elem_type), None)
    shape = [size.dim_param or int(size.dim_value) for size in tensor.shape.dim]
    return {"name": value.name, "dtype": dtype, "shape": shape}
