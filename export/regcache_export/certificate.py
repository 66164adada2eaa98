"""The certificate: what was compared, on which images, with which outcome.

`certificate.json` and `certificate_images.safetensors` lie in the bundle. Four claims:

1. codes: ONNX Runtime without optimizations computes the integer codes of the simulation, block by
   block (see `compare`), and the hash of every node's codes is stored; what is in front of the
   blocks and behind them is compared as floats;
2. parameters: a hash of every constant and of every node, so that a later change has a name; of
   the rest of the model (`header_hash`); of the files beside the model that decide what it
   answers: preprocessing, zero-shot head, text tower; and of the manifest's entries (`claims`);
3. runtime: with optimizations the features and classes are the same;
4. equality is judged by bounds that stand in the file.

`regcache verify` checks all of it again without torch, against the numpy `reference`. A quantizer
as published (`--strict-paper`) may have no integer codes; `without_codes` says where, and what is
compared there.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from regcache_engines.bundle import PREPROCESS, TEXT_FEATURES, Bundle
from regcache_engines.onnxruntime_session import import_onnxruntime
from regcache_engines.text_config import TEXT_FILES

from .certificate_files import CERTIFICATE, IMAGES_KEY, SCHEMA
from .compare import (
    CHOICE,
    PAIRING,
    Comparison,
    Ends,
    NodeCount,
    Simulator,
    compare_floats,
    compare_trace,
    levels,
)
from .errors import BundleError
from .graph.names import OUTPUT_NAME
from .merge import Merge
from .onnx_proto import ModelProto
from .published_quant import LEVELS
from .reference import Array, Reference, initializers
from .reference_pool import pooled_features
from .regcache_config import RegCacheConfig
from .spec import EncoderSpec
from .survivors import Left
from .targets import GraphOptions
from .trace import Trace, Tracer, fixed_batch, graph_input

MAX_DIFFERENT = 1e-4
"""Largest share of a node's codes that may differ, all of them rounding ties of one step."""

MAX_FLOAT_ERROR = 1e-4
"""Largest difference of a block's output, relative to its largest value."""

BESIDE = (PREPROCESS, TEXT_FEATURES, *TEXT_FILES)
"""Files that decide the answer as much as the model does."""

BESIDE_BEFORE = (PREPROCESS, TEXT_FEATURES)
"""Those of certificates without a hash of the manifest."""

NO_CODES = "multiples of the step in float: the zero point is none of the codes"

TRACE_BYTES = 256 * 2**20
"""Most memory that the inner tensors of one traced batch may take."""


@dataclass(frozen=True)
class Subject:
    """What is certified.

    Attributes:
        model: the ONNX model.
        spec, regcache, options: what it was written from.
        offsets: linear -> what is subtracted from its codes to give levels.
        preprocess: with mean and std.
        merge: how tokens are merged, or None.
    """

    model: ModelProto = field(repr=False)
    spec: EncoderSpec
    regcache: RegCacheConfig | None
    options: GraphOptions
    offsets: Mapping[str, int]
    preprocess: Mapping[str, Any]
    merge: Merge | None = None

    def header(self) -> dict[str, Any]:
        """What `subject_of` needs to make it again from the file."""
        return {
            "encoder": self.spec.to_json(),
            "regcache": self.regcache.to_json() if self.regcache else None,
            "options": asdict(self.options) | {"without": list(self.options.without)},
            "offsets": dict(self.offsets),
        } | ({"merge": self.merge.to_json()} if self.merge else {})

    def reference(self, constants: Mapping[str, Array]) -> Reference:
        """The numpy simulation of the model with these constants."""
        return Reference(
            constants, self.spec, self.regcache, self.options, self.offsets, self.merge
        )


def subject_of(document: Mapping[str, Any], model: ModelProto, preprocess: Any) -> Subject:
    """The subject of a stored certificate. Raises BundleError where it is not readable."""
    try:
        options = dict(document["options"])
        options["without"] = tuple(options["without"])
        regcache = document["regcache"]
        return Subject(
            model=model,
            spec=EncoderSpec.from_json(document["encoder"]),
            regcache=RegCacheConfig.from_json(regcache) if regcache else None,
            options=GraphOptions(**options),
            offsets={str(name): int(value) for name, value in document["offsets"].items()},
            preprocess=preprocess,
            merge=Merge.from_json(document["merge"]) if "merge" in document else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(f"{CERTIFICATE} is not readable ({error}); export again") from error


@dataclass
class Evidence:
    """What a run over the images found.

    Attributes:
        comparison: counts by node.
        code_hashes: node -> SHA-256 of its levels over all images.
        features: of the graph as written, `[n, E]`.
        without_codes: nodes of `code_hashes` whose levels are no integers -> what they are.
    """

    comparison: Comparison
    code_hashes: dict[str, str]
    features: Array
    without_codes: dict[str, str] = field(default_factory=dict)

    @property
    def pairs(self) -> dict[str, int] | None:
        """Images, and those whose merges pair the same tokens as the simulation; or None."""
        same = self.comparison.same_pairs
        return {"images": len(same), "same": sum(same)} if same else None


def collect(
    subject: Subject,
    pixels: Array,
    simulator: Simulator | None = None,
    ends: Ends | None = None,
) -> Evidence:
    """Trace the graph on images and compare it with a simulation.

    Args:
        subject: what to run.
        pixels: uint8 `[n, H, W, 3]`.
        simulator: the other side of the blocks; None takes the numpy reference.
        ends: the other side of embedding and pooling, beside the numpy reference, which has the
            graph's own constants and cannot tell a wrong one.

    Raises:
        BundleError: the graph is not one of ours.
        EngineError: it does not run.
    """
    constants = initializers(subject.model)
    reference = subject.reference(constants)
    tracer = Tracer(subject.model, subject.spec)
    tensors, comparison, features = tracer.tensors, Comparison(), []
    merging = {i for i, n in enumerate(subject.merge.counts) if n} if subject.merge else set()
    if merging != tensors.pairs.keys():
        raise BundleError("graph and certificate disagree on which blocks merge tokens")
    deleting = (
        {regcache.delete_block} if (regcache := subject.regcache) and regcache.deletes else set()
    )
    if deleting != tensors.positions.keys():
        raise BundleError("graph and certificate disagree on which block deletes tokens")
    missing = sorted(tensors.codes.keys() - subject.offsets.keys())
    missing += sorted(subject.offsets.keys() - tensors.codes.keys())
    if missing:
        raise BundleError(f"graph and certificate disagree on whether {missing[0]} is quantized")
    hashes = {name: hashlib.sha256() for name in tensors.codes}
    for part in _batches(pixels, subject):
        image = graph_input(part, subject.preprocess, subject.model)
        trace = tracer.run(image)
        first = tensors.block_inputs[0]
        comparison.add(compare_floats(first, trace.values[first], reference.embed(image)))
        if ends is not None:
            embedded = ends.embed(part, subject.preprocess)
            comparison.add(compare_floats(first, trace.values[first], embedded))
        left = compare_trace(
            trace,
            tensors,
            subject.offsets,
            simulator or reference,
            comparison,
            Left(subject.spec.num_patches),
        )
        last = trace.values[tensors.outputs[-1]]
        tail = pooled_features(reference, last, left)
        comparison.add(compare_floats(OUTPUT_NAME, trace.features, tail))
        if ends is not None:
            comparison.add(compare_floats(OUTPUT_NAME, trace.features, ends.pool(last, left)))
        _hash_codes(trace, tensors.codes, subject.offsets, hashes)
        features.append(trace.features)
    return Evidence(
        comparison,
        {tensors.codes[name]: digest.hexdigest() for name, digest in hashes.items()},
        np.concatenate(features),
        {node: NO_CODES for name, node in tensors.codes.items() if name.endswith(LEVELS)},
    )


def parameter_hashes(model: ModelProto) -> dict[str, str]:
    """SHA-256 (16 digits) of every constant and every node, in the order of the nodes.

    A constant is named `CONSTANT`, a node by its name; a constant comes right before the first
    node that reads it, so that the first difference is the first node that is affected.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, str] = {}
    for node in model.graph.node:
        for name in node.input:
            if name in constants and f"constant {name}" not in found:
                data = constants[name].SerializeToString(deterministic=True)
                found[f"constant {name}"] = hashlib.sha256(data).hexdigest()[:16]
        data = node.SerializeToString(deterministic=True)
        found[f"node {node.name}"] = hashlib.sha256(data).hexdigest()[:16]
    return found


def header_hash(model: ModelProto) -> str:
    """SHA-256 of what a model says beside nodes, constants and shapes of inner tensors.

    Inputs, outputs, operator sets, metadata, and functions, which some runtimes take in place of
    operators of their name.
    """
    header = ModelProto()
    header.CopyFrom(model)
    for part in ("node", "initializer", "value_info"):
        header.graph.ClearField(part)
    return hashlib.sha256(header.SerializeToString(deterministic=True)).hexdigest()


def file_hashes(bundle: Bundle) -> dict[str, str]:
    """SHA-256 of the files `BESIDE` the model; opening the bundle has held the files against it."""
    listed = bundle.manifest["files"]
    return {name: listed[name]["sha256"] for name in BESIDE if name in listed}


def first_user(model: ModelProto, entry: str) -> str:
    """The node that an entry of `parameter_hashes` speaks of."""
    kind, name = entry.split(" ", 1)
    if kind == "node":
        return name
    users = (node.name for node in model.graph.node if name in node.input)
    return next(users, name)


def make_document(
    subject: Subject, evidence: Evidence, extra: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """The content of `certificate.json`.

    Args:
        subject: what was certified.
        evidence: from the simulation that the quantizers were chosen by.
        extra: more sections, e.g. `optimized`.
        source: which simulation that was.
    """
    return {
        "schema": SCHEMA,
        **subject.header(),
        "simulation": source,
        "environment": {
            "onnxruntime": import_onnxruntime().__version__,
            "numpy": np.__version__,
            "machine": platform.machine(),
        },
        "bounds": {"different": MAX_DIFFERENT, "float_error": MAX_FLOAT_ERROR},
        "images": len(evidence.features),
        "nodes": [asdict(count) for count in evidence.comparison.counts.values()],
        "code_sha256": evidence.code_hashes,
        "without_codes": evidence.without_codes,
        **({"pairs": evidence.pairs} if evidence.pairs else {}),
        "parameters": parameter_hashes(subject.model),
        **extra,
    }


def first_divergence(counts: Sequence[NodeCount]) -> NodeCount | None:
    """The first node beyond the bounds, in the graph's order."""
    for count in counts:
        share = count.different / max(count.elements, 1)
        # on a small tensor one tie is more than the share; a tie is a tie all the same. Of equal
        # norms or cosines there may be any number: what comes behind goes on with the choice
        few = share <= MAX_DIFFERENT or count.different <= 1
        too_many = not few and not count.node.endswith((CHOICE, PAIRING))
        if count.off_tie or too_many or not count.error <= MAX_FLOAT_ERROR:
            return count
    return None


def describe(count: NodeCount) -> str:
    """A count in words."""
    if count.elements and not count.different:
        return f"{count.node}: values differ by {count.error:.2g} of the largest"
    return (
        f"{count.node}: {count.different} of {count.elements} codes differ, "
        f"{count.off_tie} of them by more than a rounding tie"
    )


def images_file(pixels: Array) -> bytes:
    """The content of `certificate_images.safetensors`: uint8 `[n, H, W, 3]`."""
    from safetensors.numpy import save

    data: bytes = save({IMAGES_KEY: np.ascontiguousarray(pixels)})
    return data


def json_bytes(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=False, allow_nan=False) + "\n").encode()


def _batches(pixels: Array, subject: Subject) -> Iterator[Array]:
    size = fixed_batch(subject.model)
    if size is None:
        spec = subject.spec
        row = 6 * spec.width + spec.fc1_width
        if any(".attn.pv." in name or ".attn/pv/" in name for name in subject.offsets):
            row += 4 * spec.heads * spec.num_tokens
        inside = spec.num_tokens * spec.depth * row
        size = max(1, min(len(pixels), TRACE_BYTES // inside))
    usable = len(pixels) if fixed_batch(subject.model) is None else len(pixels) // size * size
    if not usable:
        raise BundleError(f"the graph takes batches of {size}, and there are {len(pixels)} images")
    for start in range(0, usable, size):
        yield pixels[start : start + size]


def _hash_codes(
    trace: Trace, names: Mapping[str, str], offsets: Mapping[str, int], hashes: Mapping[str, Any]
) -> None:
    for name, tensor in names.items():
        hashes[name].update(levels(trace.values[tensor], offsets[name]).tobytes())
