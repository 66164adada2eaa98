"""The top of the page: what was run, and in one paragraph what RegCache did here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..search.settings import REGCACHE, WAY_NAMES
from ..work.format import COUNTED, absent_count, counted, metric_axis, value_text
from .parts import Section


def title_of(document: dict[str, Any]) -> str:
    """Encoder, quantizer and bits."""
    return f"{document['model']} in INT8 ({document['baseline']}, {document['bits']})"


def facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    """What was run: name and value; nothing that an older run did not write down."""
    account, options = document.get("run") or {}, _options(document)
    machine = account.get("machine") or {}
    model = str(document["model"])
    if options.get("pretrained"):
        model += f", {options['pretrained']}"
    images = [
        f"search {account['search_images']}" if account.get("search_images") else "",
        f"held out {account['held_out_images']}" if account.get("held_out_images") else "",
    ]
    versions = [f"{name} {version}" for name, version in account.get("versions", {}).items()]
    if account.get("python"):
        versions.append(f"Python {account['python']}")
    where = [str(machine[name]) for name in ("gpu", "cpu") if machine.get(name)]
    if machine.get("cpu_flags"):
        where.append(" ".join(machine["cpu_flags"]))
    if machine.get("cores"):
        where.append(counted(machine["cores"], "core"))
    found = {
        "command": f"`{account['command']}`" if account.get("command") else "",
        "date": account.get("date", ""),
        "model": model,
        "images": "; ".join(filter(None, images)),
        "machine": ", ".join(where),
        "versions": ", ".join(versions),
    }
    return [(name, value) for name, value in found.items() if value]


def _options(document: dict[str, Any]) -> dict[str, Any]:
    source = (document.get("manifest") or {}).get("provenance") or {}
    return document.get("options") or source.get("options") or {}


def story(folder: Path, document: dict[str, Any]) -> Section | None:
    """What RegCache did here: the sinks before, what was done, what is left of them."""
    norms = document.get("token_norms")
    if not norms:
        return None
    metric, layer = document["search_metric"], document["sensitive_layer"]
    before, after = norms["before"], norms["after"]
    alone = next((w for w in document.get("ways", ()) if w["name"] == "quantizer"), None)
    text = [
        f"In this encoder the largest token at the input of {layer} has the l-inf norm "
        f"{before['largest']:.4g} over {norms['images']} search images; in the mean image it is "
        f"{before['mean']:.4g}. A range of {_codes(document)} codes that holds it leaves few codes "
        "for all others."
    ]
    if alone and metric in COUNTED:
        text[0] += (
            f" The quantizer alone reaches {metric_axis(metric)} "
            f"{value_text(metric, alone['value'])} on them."
        )
    done = _done(document)
    if after is None or not done:
        text.append(f"RegCache was not used: {_why_not(document)}.")
        return Section("story", "What RegCache did here", text)
    text.append(
        f"RegCache {', and '.join(done)}. With that, the largest token is {after['largest']:.4g} "
        f"({norms['after_means']})."
    )
    return Section("story", "What RegCache did here", text)


def _codes(document: dict[str, Any]) -> int:
    """Of an activation, by `W<weights>A<activations>`."""
    return 1 << int(document["bits"].upper().partition("A")[2])


def _why_not(document: dict[str, Any]) -> str:
    recipe = document.get("recipe") or REGCACHE
    if document.get("ways"):
        return "nothing that it could do was found to be better than the way that was chosen"
    if recipe in WAY_NAMES and not recipe.startswith(REGCACHE):
        return f"the recipe `{recipe}` has none"
    trials = document.get("trials")
    if trials and not any(t["prefix_count"] or absent_count(t) for t in trials):
        return "no prefix and no deletion was tried"
    return "nothing that it could do was found to be better than the quantizer alone"


def _done(document: dict[str, Any]) -> list[str]:
    """What RegCache did, each with its verb; nothing where it is not in the file."""
    done, added = [], document["prefix_add_blocks"]
    if document["prefix_count"] and added:
        blocks = f"block {added[0]}" if len(added) == 1 else f"blocks {added[0]} to {added[-1]}"
        done.append(
            f"lets attention of {blocks} see {counted(document['prefix_count'], 'copy', 'copies')} "
            "of an averaged sink token as constant keys and values"
        )
    deleted = document["delete_count"]
    absent = absent_count(document)
    if saturated := absent - deleted:
        those = f"{saturated} of which" if deleted else "which"
        done.append(
            f"sets the ranges without {_largest(absent)} of each image, {those} then saturate in "
            f"block {document['delete_block']}"
        )
    if deleted:
        done.append(
            f"deletes {_largest(deleted)} of each image in block {document['delete_block']}"
        )
    return done


def _largest(count: int) -> str:
    return "the largest token" if count == 1 else f"the {count} largest tokens"
