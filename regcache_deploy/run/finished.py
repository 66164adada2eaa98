"""A finished search, for an export that bakes its choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from regcache_engines.documents import read_json

from ..data.settings import DataSettings
from ..encoders.settings import ModelSettings
from ..errors import ConfigError
from ..search.settings import SearchSettings
from ..work.paths import DETAILS
from .options import ExportOptions

QUANTIZER = ("baseline", "bits", "observer")
MACHINE = ("batch_size", "seed")
MERGING = ("merge_metric", "merge_proportional", "merge_compat")


def searched_options(run: Path) -> dict[str, Any]:
    """The options that decided a search, and its choice as numbers that are fixed.

    Raises:
        ConfigError: `run` holds no finished search.
    """
    path = run / DETAILS
    try:
        document = read_json(path)
        stored = document["options"]
        rooms = (ModelSettings, DataSettings, SearchSettings)
        names = [*QUANTIZER, *MACHINE, *(f.name for room in rooms for f in fields(room))]
        found = {name: stored[name] for name in names}
        found["sensitive_layer"] = document["sensitive_layer"]
        for name in ("prefix_block", "prefix_count", "delete_count", "range_delete_count"):
            found[name] = document[name]
        if document.get("merge"):
            found["merge"] = document["merge"]["schedule"]
            found |= {name: stored[name] for name in MERGING}
    except FileNotFoundError as error:
        raise ConfigError(
            f"--from {run}: there is no {DETAILS}; take the folder of a finished `regcache search`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--from {run}: {path} cannot be used ({error!r})") from error
    return found


def parts_of(run: Path) -> Path:
    """Folder of the parts that a run has finished."""
    return run / "parts"


def changed_since(run: Path, made_of: Mapping[str, str]) -> tuple[str, ...]:
    """Warnings where weights or search images are not those of a search; the options are.

    No error: another machine may decode or resample to other last bits.

    Args:
        run: of a finished search.
        made_of: hashes now, as the search left them; one of an older release left none.
    """
    left = read_json(run / DETAILS).get("made_of")
    then = left if isinstance(left, dict) else {}
    words = {"weights_sha256": "weights of the model", "search_data_sha256": "search images"}
    changed = [words[name] for name in words if then.get(name, made_of[name]) != made_of[name]]
    if not changed:
        return ()
    return (
        f"--from {run}: the {' and the '.join(changed)} are no longer those of that search, whose "
        "choice is baked all the same; search again where they were changed",
    )


def check_unchanged(options: ExportOptions, run: Path) -> None:
    """Raise ConfigError where an option on the command line is not the search's."""
    own = options.to_json()
    for name, value in searched_options(run).items():
        if own[name] != value:
            word = name.replace("_", "-")
            raise ConfigError(
                f"--from {run} was searched with {word} {value}, not {own[name]}; leave --{word} "
                "out, or search again"
            )
