"""Check a bundle against its certificate: numpy and ONNX Runtime, neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from regcache_engines.bundle import MANIFEST, MODEL, Bundle

from .certificate import (
    BESIDE,
    BESIDE_BEFORE,
    Evidence,
    Subject,
    collect,
    describe,
    file_hashes,
    first_divergence,
    first_user,
    header_hash,
    parameter_hashes,
    subject_of,
)
from .certificate_files import CERTIFICATE, read_certificate
from .claims import false_claims, other_entries
from .errors import BundleError, VerificationError
from .float32_copy import in_float32
from .onnx_proto import ModelProto, parse_model
from .optimized import OptimizedRun, compare_optimized
from .rounding_noise import controlled


@dataclass(frozen=True)
class Report:
    """Outcome of a verification.

    Attributes:
        images: how many were run.
        nodes: compared nodes.
        codes: compared integer codes.
        ties: codes that differ by a rounding tie.
        levels: compared values of quantizers that have no integer codes (`--strict-paper`).
        same_codes: share of the `hashed` nodes whose codes have the stored hash; below 1 on another
            machine or runtime, where float sums are ordered otherwise.
        optimized: with optimizations on against off.
        hashed: nodes whose codes were held against the stored hash; 0 where fewer images were run.
        pairs: `images`, and those with the `same` pairs of merged tokens as the reference; None
            where nothing is merged.
        unknown: files, the manifest among them, that the certificate, of an older version, says
            nothing of.
        problem: what is wrong, with the first divergent node, or None.
    """

    images: int
    nodes: int
    codes: int
    ties: int
    same_codes: float
    optimized: OptimizedRun
    levels: int = 0
    hashed: int = 0
    pairs: dict[str, int] | None = None
    unknown: tuple[str, ...] = ()
    problem: str | None = None
    details: dict[str, Any] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        same = self.same_codes if self.hashed else None
        return asdict(self) | {"same_codes": same, "verified": self.problem is None}

    def check(self) -> None:
        """Raise VerificationError where something is wrong."""
        if self.problem:
            raise VerificationError(self.problem)


def verify_bundle(bundle: Bundle, limit: int | None = None) -> Report:
    """Recompute a certificate.

    Args:
        bundle: an open bundle; opening it has checked its files' hashes.
        limit: run on the first images only. Code hashes, which are of all images, are then not
            compared.

    Raises:
        BundleError: no certificate, or no model of ours.
        EngineError: ONNX Runtime is missing or cannot run the model.
    """
    document, pixels = read_certificate(bundle)
    pixels = pixels[:limit]
    model = _load_model(bundle)
    # codes are compared in float32, whatever the body is rounded to
    subject = subject_of(document, in_float32(model), bundle.preprocess)
    changed = _changed_parameters(model, document)
    try:
        evidence = collect(subject, pixels)
    except (ArithmeticError, IndexError, KeyError, ValueError) as error:
        raise BundleError(
            f"{CERTIFICATE} describes another encoder than {MODEL} holds ({error}); export it again"
        ) from error
    counts = list(evidence.comparison.counts.values())
    head = bundle.text_features if bundle.has_text_features else None
    optimized = compare_optimized(bundle, subject, pixels, evidence.features, head)
    if subject.model is not model:
        optimized = optimized.with_half(_half_at_export(document))
    written = evidence.features
    optimized = controlled(optimized, subject, pixels[: len(written)], written, head)
    stored = document.get("code_sha256", {})
    # a graph of fixed batch leaves the images out that fill no batch, at export as well
    hashes = evidence.code_hashes if len(written) == document.get("images") else {}
    other = [n for n, digest in hashes.items() if stored.get(n) != digest]
    integer = evidence.code_hashes.keys() - evidence.without_codes.keys()
    return Report(
        images=len(evidence.features),
        nodes=len(counts),
        codes=sum(count.elements for count in counts if count.node in integer),
        levels=sum(count.elements for count in counts if count.node in evidence.without_codes),
        ties=sum(count.different for count in counts),
        same_codes=1 - len(other) / max(len(hashes), 1),
        hashed=len(hashes),
        pairs=evidence.pairs,
        unknown=_unknown(bundle, document),
        optimized=optimized,
        problem=_problem(
            model,
            changed,
            _changed_beside(bundle, model, document, subject),
            other,
            evidence,
            optimized,
        ),
        details={"changed": changed[:20], "other_codes": other[:20]},
    )


def _half_at_export(document: Mapping[str, Any]) -> float:
    try:
        return float(document["optimized"]["half"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{CERTIFICATE} does not say what float16 costs; export again") from error


def _changed_parameters(model: ModelProto, document: Mapping[str, Any]) -> list[str]:
    found, stored = parameter_hashes(model), document.get("parameters", {})
    changed = [entry for entry, digest in found.items() if stored.get(entry) != digest]
    return changed + [entry for entry in stored if entry not in found]


def _names_of_files(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Files beside the model that a certificate of its version has hashes of."""
    if "files" not in document:
        return ()
    return BESIDE if "manifest" in document else BESIDE_BEFORE


def _unknown(bundle: Bundle, document: Mapping[str, Any]) -> tuple[str, ...]:
    known = _names_of_files(document)
    files = [name for name in file_hashes(bundle) if name not in known]
    return (*files, *([] if "manifest" in document else [MANIFEST]))


def _changed_beside(
    bundle: Bundle, model: ModelProto, document: Mapping[str, Any], subject: Subject
) -> list[str]:
    """What else than the model's nodes and constants is not the certified one, in words."""
    found, stored = file_hashes(bundle), document.get("files", {})
    names = [name for name in _names_of_files(document) if found.get(name) != stored.get(name)]
    # older certificates have no hash of it
    if header_hash(model) != document.get("header", header_hash(model)):
        names.append(f"inputs, outputs, operator sets, functions or metadata of {MODEL}")
    names += [f"'{name}' in {MANIFEST}" for name in other_entries(bundle.manifest, document)]
    return [*names, *(false_claims(bundle, model, subject) if not names else [])]


def _load_model(bundle: Bundle) -> ModelProto:
    try:
        return parse_model(bundle.read(MODEL))
    except BundleError:
        raise
    except Exception as error:  # protobuf raises classes of its own
        raise BundleError(f"{bundle.model_path} is no readable ONNX file: {error}") from error


def _problem(
    model: ModelProto,
    changed: list[str],
    beside: list[str],
    other: list[str],
    evidence: Evidence,
    optimized: OptimizedRun,
) -> str | None:
    divergent = first_divergence(list(evidence.comparison.counts.values()))
    if changed:
        node = first_user(model, changed[0])
        behind = f"; the first other codes are those of {other[0]}" if other else ""
        return (
            f"first divergent node: {node} ({changed[0]} is not the certified one, "
            f"{len(changed)} differ in all){behind}"
        )
    if beside:
        return f"{' and '.join(beside)}: not what was certified"
    if divergent is not None:
        return f"first divergent node: {describe(divergent)}"
    return optimized.problem


__all__ = ["Report", "Subject", "verify_bundle"]
