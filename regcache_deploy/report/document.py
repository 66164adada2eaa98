"""The JSON document of a finished run: what a search, an export, a build and a benchmark left."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regcache_engines.bundle import MANIFEST, MODEL
from regcache_engines.documents import read_json

from ..bench.results import environment_of_rows
from ..errors import DataError
from ..work.invocation import typed
from ..work.paths import DETAILS, RESULT

SAME_RUN = (
    "model",
    "baseline",
    "bits",
    "prefix_block",
    "prefix_count",
    "delete_count",
    "range_delete_count",
)
MEASURED = (
    "accuracy",
    "fidelity",
    "fidelity_way",
    "paired",
    "n_eval",
    "metric",
    "agreement",
    "bundle",
    "recipe",
    "reason",
    "ways",
    "merge",
    "merge_front",
    "merge_reason",
    "speed",
    "file_mib",
)
"""What an export measured itself, on its own held-out images, with the deployed graph."""


def load_document(
    folder: Path, bench: Sequence[Path] = (), bundle: Path | None = None
) -> dict[str, Any]:
    """Read what a run folder holds.

    Args:
        folder: of `regcache search`, `regcache export`, or both.
        bench: CSV or JSON files of `regcache bench` and `benchmarks/peers.py`, beside those named
            `bench*` and `peers*` in the folder.
        bundle: the page's; None is that of the run.

    Returns:
        The search's document or the export's; where both are of the same choice, the search's with
        the export's measurements. `decision` is that of `regcache build`, `bench` the rows of
        benchmarks, `evaluations` what `regcache eval` kept, where there are any. Decisions and
        evaluations of another bundle, or of an older file of this one, are left out with a
        warning; so are rows of an older file. Rows of other bundles say of which they are.
        `outdated` where the export's figures are of a file that another export has replaced.

    Raises:
        DataError: there is none, or a file cannot be read.
    """
    search, export = _json(folder / DETAILS), _json(folder / RESULT)
    document = search or export
    if document is None:
        raise DataError(
            f"{folder} holds no finished run ({DETAILS} or {RESULT} is missing); "
            f"run: {typed('regcache', 'search', '--output', folder)}"
        )
    if search is not None and export is not None:
        if _same_choice(search, export):
            document = search | {key: export[key] for key in MEASURED if key in export}
            document |= _told_by_both(search, export)
        else:
            line = "the export in this folder is of another choice than the search and is left out"
            document = search | {"warnings": [*search["warnings"], line]}
    if bundle is None and document.get("bundle"):
        bundle = folder / Path(document["bundle"]).name
    decisions = [_json(path) or {} for path in sorted(folder.glob("*.decision.json"))]
    evaluations = [_evaluation(path) for path in sorted(folder.glob("eval-*.json"))]
    own = None if bundle is None else _graph_of(bundle)
    # older releases did not say which graph a result is of
    outdated = own is not None and (export or {}).get("model_sha256", own) != own
    if outdated:
        line = (
            "the last export into this folder did not finish: its bundle is there, and the figures "
            "of the export are of the file before it; run it again, and it goes on"
        )
        document = document | {"warnings": [*document.get("warnings", ()), line]}
    kept = [
        [each for each in found if _is_of(bundle, own, each)] for found in (decisions, evaluations)
    ]
    others = len(decisions) + len(evaluations) - sum(map(len, kept))
    if others:
        line = (
            f"{others} decisions or evaluations in this folder are of another bundle, or of an "
            "older file of this one, and are left out"
        )
        document = document | {"warnings": [*document.get("warnings", ()), line]}
    tables = [
        path
        for pattern in ("bench*.csv", "bench*.json", "peers*.csv")
        for path in sorted(folder.glob(pattern))
    ]
    # one that is named and lies in the folder, too, counts once
    once = {path.resolve(): path for path in (*bench, *tables)}
    rows = [
        row
        for path in (*tables, *bench)
        if once.pop(path.resolve(), None)
        for row in read_rows(path)
    ]
    older = [] if bundle is None else [row for row in rows if _is_older(row, bundle, own)]
    if older:
        line = f"rows of regcache bench of an older file of this bundle are left out: {len(older)}"
        document = document | {"warnings": [*document.get("warnings", ()), line]}
        rows = [row for row in rows if row not in older]
    extra: dict[str, Any] = {
        "decision": kept[0][0] if kept[0] else None,
        "bench": rows,
        "evaluations": _once(kept[1]),
        "outdated": outdated,
    }
    extra["model_sha256"] = own
    return document | {key: value for key, value in extra.items() if value}


def _same_choice(search: dict[str, Any], export: dict[str, Any]) -> bool:
    """Of one encoder with one set of weights; an older file does not say which."""
    ours, theirs = (run.get("options") or {} for run in (search, export))
    weights = [name for name in ("pretrained", "img_size") if name in ours and name in theirs]
    return all(search.get(key) == export.get(key) for key in SAME_RUN) and all(
        ours[name] == theirs[name] for name in weights
    )


def _told_by_both(search: dict[str, Any], export: dict[str, Any]) -> dict[str, Any]:
    """Warnings of both, and of which images the export's accuracy is."""
    lines = dict.fromkeys([*search.get("warnings", ()), *export.get("warnings", ())])
    account = search.get("run") or {}
    held_out = (export.get("run") or {}).get("held_out_images")
    found: dict[str, Any] = {"warnings": list(lines)}
    return found | ({"run": account | {"held_out_images": held_out}} if held_out else {})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a benchmark; empty cells are left out, figures stay text in a CSV.

    Raises:
        DataError: not there, or no file of a benchmark.
    """
    try:
        if path.suffix == ".json":
            found = read_json(path)
            rows = [row | environment_of_rows(found) for row in found["rows"]]
        else:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        named = [{k: v for k, v in row.items() if v not in ("", None)} for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read as rows of a benchmark ({error}); give a CSV of regcache bench "
            "--csv or of benchmarks/peers.py"
        ) from error
    if not all("peer" in row or "engine" in row for row in named):
        raise DataError(f"{path} holds no rows of regcache bench or benchmarks/peers.py")
    return named


def _graph_of(bundle: Path) -> str | None:
    """SHA-256 of a bundle's graph; None where there is no such bundle."""
    try:
        return str(read_json(bundle / MANIFEST)["files"][MODEL]["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_of(bundle: Path | None, own: str | None, found: dict[str, Any]) -> bool:
    """Whether a decision or an evaluation is of this bundle.

    Of its graph; where one of them does not say which, of its name.
    """
    if bundle is None or "bundle" not in found:
        return True
    if own is None or "model_sha256" not in found:
        return Path(found["bundle"]).name == bundle.name
    return bool(found["model_sha256"] == own)


def _is_older(row: dict[str, Any], bundle: Path, own: str | None) -> bool:
    """Whether a row of a benchmark is of a file that this bundle has replaced."""
    named = row.get("bundle") == bundle.resolve().name.removesuffix(".regcache")
    return named and own is not None and row.get("model_sha256", own) != own


def _once(evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without repetitions: older releases gave the file of the same records another name."""
    seen = [(each.get("data"), each["results"]) for each in evaluations]
    return [each for at, each in enumerate(evaluations) if seen[at] not in seen[:at]]


def _evaluation(path: Path) -> dict[str, Any]:
    """What `regcache eval` kept."""
    found = _json(path) or {}
    if not isinstance(found.get("results"), list) or "reference" not in found:
        raise DataError(f"{path} holds no records of regcache eval; delete it, or evaluate again")
    return found


def _json(path: Path) -> dict[str, Any] | None:
    """The object in a file, or None where there is no such file."""
    try:
        document: dict[str, Any] = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return document
