"""The sections of a search: what was chosen, how it went, what it does to the tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..work.format import (
    absent_count,
    count_text,
    counted,
    deletion_text,
    difference_text,
    merge_text,
    metric_axis,
    metric_title,
    no_gain_text,
    norms_rows,
    not_tried_lines,
    p_text,
    percent,
    unit_name,
    value_text,
)
from .measured import accuracies
from .parts import Section, Table, plot_picture

CORNER_TITLES = {
    "fp32": "FP32",
    "baseline": "baseline alone",
    "prefix_only": "prefix only",
    "delete_only": "delete only",
    "saturate": "prefix + saturation",
    "delete": "prefix + deletion, as published",
    "regcache": "RegCache, as searched",
    "unmerged": "chosen, no token merged",
    "recipe": "chosen, simulated",
    "deployed": "chosen, deployed",
}


def accuracy(folder: Path, document: dict[str, Any]) -> Section:
    """What every corner scores, with intervals."""
    metric, rows = document["metric"], []
    fidelity = document.get("fidelity") or {}
    for name, title in CORNER_TITLES.items():
        value = document["accuracy"].get(name)
        if value is None:
            continue
        pair = document["paired"].get(name)
        row = [title, value_text(metric, value), difference_text(metric, pair), p_text(pair)]
        if fidelity:
            row.append("" if fidelity.get(name) is None else f"{fidelity[name]:.5f}")
        rows.append(row)
    caption = f"{metric_axis(metric)} on {document['n_eval']} held-out images, against FP32"
    columns = ["", metric_title(metric), f"{unit_name(metric)} [95 %]", "p"]
    tables = [Table(columns + ["cosine to FP32"] * bool(fidelity), rows, caption)]
    return Section("accuracy", "Accuracy", accuracy_lines(document), tables + _by_all(document))


def _by_all(document: dict[str, Any]) -> list[Table]:
    """Every measurement of the INT8 file, where there are several."""
    found = accuracies(document)
    if len(found) < 2:
        return []
    rows = [
        [
            f"{each.by} ({each.runtime}), {metric_title(each.metric)} on {each.n} images: "
            f"{each.images}",
            "" if each.value is None else value_text(each.metric, each.value),
            "" if each.reference is None else value_text(each.metric, each.reference),
            difference_text(each.metric, each.pair),
        ]
        for each in found
    ]
    heads = ["by", "INT8", "FP32", "points against FP32 [95 %]"]
    caption = (
        "Every measurement of the file; on other images figures differ by chance, within their "
        "intervals. The first row is that of the answer"
    )
    return [Table(heads, rows, caption)]


def accuracy_lines(document: dict[str, Any]) -> list[str]:
    """How the deployed graph agrees with the simulation, where it was run."""
    agreement = document.get("agreement") or {}
    lines = []
    if document.get("fidelity_way"):
        lines.append(f"Fidelity to FP32 would have chosen: {document['fidelity_way']}.")
    if not agreement:
        return lines
    same = f"the same class on {percent(agreement['top1'])}, " if "top1" in agreement else ""
    return [
        *lines,
        f"The deployed graph against the simulation it was chosen by, on {agreement['n']} images: "
        f"{same}mean cosine {agreement['mean_cosine']:.6f}, lowest {agreement['min_cosine']:.6f}.",
    ]


def decision(folder: Path, document: dict[str, Any]) -> Section:
    """What was chosen."""
    gain = document.get("gain")
    has_prefix, absent = document["prefix_count"] > 0, absent_count(document) > 0
    text = []
    if gain is None:
        text = ["A run of an older version keeps no pictures; run it again."]
    elif not gain["found"]:
        tried = [(trial["prefix_count"], absent_count(trial)) for trial in document["trials"]]
        text.append(no_gain_text(tried, " so none is used", len(document.get("not_tried", ()))))
    elif gain["p_value"] < 1:
        text.append(
            f"The gain over the baseline alone on the search images has p = {gain['p_value']:.2g} "
            "(one-sided, before the correction for several finalists)."
        )
    text += not_tried_lines(document.get("not_tried", ()))
    added = document["prefix_add_blocks"]
    choice = [
        ["sensitive layer", document["sensitive_layer"]],
        *([name, words] for name, words in norms_rows(document.get("token_norms")).items()),
        ["prefix", counted(document["prefix_count"], "copy", "copies") if has_prefix else "none"],
        [
            "prefix in blocks",
            " to ".join(map(str, dict.fromkeys((added[0], added[-1])))) if added else "none",
        ],
        [
            "sink tokens per image",
            f"{deletion_text(document)} in block {document['delete_block']}" if absent else "none",
        ],
        ["tokens merged", merge_text(document.get("merge"))],
        [
            "search objective",
            f"{value_text(document['search_metric'], document['search_accuracy'])} "
            f"on {document['n_search']} images",
        ],
    ]
    return Section("decision", "The RegCache", text, [Table(["", "chosen"], choice)])


def cost(folder: Path, document: dict[str, Any]) -> Section | None:
    """What the search took, and how it went."""
    if "plots" not in document:
        return None
    spent = document["search_cost"]
    grid = spent["exhaustive_block_forwards"]
    text = [
        f"{count_text(spent['block_forwards'])} block-forwards (one image through one block), all "
        f"preparations included. The published grid (t, tau, k~) takes {count_text(grid)}, "
        f"{grid / spent['block_forwards']:.1f} times as many. "
        f"{_took(spent)}; largest process size "
        f"{spent['peak_memory_bytes'] / 2**30:.2f} GiB."
    ]
    undecided = document["gain"]["undecided"]
    if undecided:
        text.append(
            f"{undecided} choices left the race because the budget was spent, not because they "
            "were behind."
        )
    pictures = [
        plot_picture(
            folder,
            document,
            "racing",
            "Score of each evaluation against the work so far.",
            "The race: score of every evaluation against the work done until then.",
        ),
        plot_picture(
            folder,
            document,
            "surface",
            "Scores over prefix count and delete count.",
            "What was evaluated, over prefix count and delete count. The same pair at several "
            "target blocks is shown at its best.",
        ),
    ]
    return Section("cost", "The search", text, pictures=pictures)


def _took(spent: dict[str, Any]) -> str:
    """Seconds, and what of the work was found finished."""
    found = spent.get("resumed_block_forwards", 0)
    if not found:
        return f"{spent['seconds']:.0f} s"
    share = percent(found / spent["block_forwards"], 0)
    return (
        f"{share} of them were finished by an earlier run; this one took {spent['seconds']:.0f} s"
    )


def layers(folder: Path, document: dict[str, Any]) -> Section | None:
    """Where quantization hurts."""
    if "plots" not in document:
        return None
    data = document["sensitivity"]
    proxy = data["proxy"]["block"]
    agree = "agrees" if proxy == document["sensitive_block"] else f"says block {proxy}"
    recall = ", ".join(
        f"block {t}: {percent(share, 0)}" for t, share in document["ranking_recall"].items()
    )
    measured = bool(data["layers"])
    text = [
        f"Quantizing {document['sensitive_layer']} alone costs most. The one-pass proxy {agree}."
        if measured
        else f"Nothing was quantized alone: {document['sensitive_layer']} was given, or no choice "
        f"depended on it. The one-pass proxy {agree}.",
        "Register candidates by the norm of the target block's input find this share of those by "
        f"the norm of fc2's input in block {document['sensitive_block']}: {recall}.",
    ]
    if not measured:
        return Section("layers", "Where quantization hurts", text)
    picture = plot_picture(
        folder,
        document,
        "sensitivity",
        "Loss per layer over blocks, and the proxy below.",
        f"Above: loss with one layer quantized, on {data['images']} images. Below: largest over "
        "median token norm in one float pass. Dashed: the sensitive block.",
    )
    return Section("layers", "Where quantization hurts", text, pictures=[picture])


def tokens(folder: Path, document: dict[str, Any]) -> Section | None:
    """What RegCache does to the tokens."""
    if "plots" not in document:
        return None
    pictures = [
        plot_picture(
            folder,
            document,
            "norms",
            "Token norms by block and token, before and after.",
            "Largest norm of every token at every block's input over a few search images, in "
            "floating point. Grey: deleted in every one of them.",
        ),
    ]
    if absent := absent_count(document):
        pictures.append(
            plot_picture(
                folder,
                document,
                "deleted",
                "Thumbnails with the sink patches framed.",
                f"The {absent} sink patches of some search images: {deletion_text(document)}.",
            )
        )
    text = []
    if saturated := absent_count(document) - document["delete_count"]:
        text.append(
            f"The ranges were set without {saturated} more tokens per image than are deleted. In "
            "floating point, as drawn here, they stay massive; in the quantized encoder they "
            f"saturate at fc2 of block {document['delete_block']}."
        )
    return Section("tokens", "The sink tokens", text, pictures=pictures)


def ablation(folder: Path, document: dict[str, Any]) -> Section | None:
    """The table of all corners."""
    from ..search.ablation import TITLES, VARIANTS

    rows = document.get("ablation") or []
    if not rows:
        return None
    metric, tables = document["metric"], []
    for row in rows:
        lines = []
        for variant in VARIANTS:
            if variant not in row["cells"]:
                continue  # written before there was this row
            cell = row["cells"][variant]
            if cell["value"] is None:
                lines.append([TITLES[variant], "-", cell["reason"], ""])
                continue
            pair = cell["against_baseline"] if variant != "baseline" else None
            lines.append(
                [
                    TITLES[variant],
                    value_text(metric, cell["value"]),
                    difference_text(metric, pair),
                    p_text(pair),
                ]
            )
        choice = row["choice"]
        caption = (
            f"{row['baseline']}, {row['bits']}: prefix {choice['prefix_count']} from block "
            f"{choice['prefix_block']}, {deletion_text(choice)} in block "
            f"{choice['delete_block']}"
        )
        tables.append(
            Table(["", metric_title(metric), "against the baseline", "p"], lines, caption)
        )
    text = [f"On {document['n_eval']} held-out images; intervals and p-values are paired."]
    return Section("ablation", "Ablation", text, tables)


def provenance(folder: Path, document: dict[str, Any]) -> Section | None:
    """With what it was made: the search's own account, or the bundle's."""
    source = document.get("manifest", {}).get("provenance") or {}
    options = document.get("options") or source.get("options") or {}
    options = options | document.get("readings", {})
    chosen = {k: v for k, v in options.items() if v not in (None, "")}
    rows = [[k.replace("_", "-"), str(v)] for k, v in chosen.items()]
    text = [f"Note: {line}" for line in document["warnings"]]
    tables = [Table(["option", "value"], rows)] if rows else []
    return Section("settings", "Settings", text, tables) if text or tables else None
