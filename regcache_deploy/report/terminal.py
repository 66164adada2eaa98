"""The result of an export or a search on stdout: tables, then the verdict and what is next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..work.format import (
    COUNTED,
    counted,
    deletion_text,
    difference_text,
    front_rows,
    merge_text,
    metric_axis,
    no_gain_text,
    norms_rows,
    not_tried_lines,
    p_text,
    percent,
    unit_name,
    value_text,
)
from ..work.invocation import typed
from ..work.json_file import json_text
from ..work.terminal import add_row, new_table, place, prose, show, stdout_console
from .result import CORNERS, ExportResult
from .verdict import accuracy_sentence, next_commands, speed_sentence

CORNER_TITLES = {
    "fp32": "FP32",
    "baseline": "baseline alone",
    "prefix_only": "prefix only",
    "delete_only": "delete only",
    "saturate": "prefix + saturation",
    "delete": "prefix + deletion, as published",
    "regcache": "RegCache, as searched",
    "unmerged": "chosen, no token merged",
    "recipe": "chosen, in simulation",
    "deployed": "chosen, in ONNX Runtime",
}


def print_result(
    result: ExportResult, as_json: bool = False, verbose: bool = False, folder: Path | None = None
) -> None:
    """Print the result: one JSON object, or the tables, the verdict and what to do next.

    Args:
        result: of an export.
        as_json: the object alone.
        verbose: also what only a reader of the method asks for.
        folder: of the run, for the commands that fit next; None is that of the results.
    """
    document = result.to_json()
    if as_json:
        print(json_text(document))
        return
    console = stdout_console()
    if result.caution:
        prose(console, f"Note: {result.caution}.")
    show(console, *_choice_table(result, verbose))
    if result.ways:
        show(console, *_ways_table(result))
    if result.merge_front:
        show(console, *_front_table(result))
    show(console, *_accuracy_table(result))
    console.print()
    for text in filter(None, (result.reason, result.merge_reason)):
        prose(console, f"Chosen: {text}.")
    if result.fidelity_way:
        prose(console, f"Fidelity to FP32 would have chosen: {result.fidelity_way}.")
    for line in _footnotes(result, verbose):
        prose(console, line)
    if result.bundle is None:
        return
    console.print()
    prose(console, f"{accuracy_sentence(document)} {speed_sentence(document)}")
    if result.results_csv:
        place(console, f"every evaluation: {result.results_csv}")
    place(console, f"file: {result.bundle}")
    for command in next_commands(document, folder or result.bundle.parent):
        place(console, f"next: {command}")


def print_search(result: ExportResult, as_json: bool = False) -> None:
    """Print a search: one JSON object, or the tables."""
    if as_json:
        print(json_text(result.to_json()))
        return
    console = stdout_console()
    if result.caution:
        prose(console, f"Note: {result.caution}.")
    show(console, *_choice_table(result, verbose=True))
    if result.merge_front:
        show(console, *_front_table(result))
        console.print()
        prose(console, f"Chosen: {result.merge_reason}.")
    show(console, *_accuracy_table(result))
    for row in result.details["ablation"]:
        show(console, *_ablation_table(result.metric, row))
    console.print()
    for line in _search_footnotes(result):
        prose(console, line)
    if result.results_csv:
        place(console, f"every evaluation: {result.results_csv}")
        place(console, f"next: {typed('regcache', 'report', result.results_csv.parent)}")


def _ablation_table(metric: str, row: dict[str, Any]) -> tuple[str, Any]:
    from ..search.ablation import TITLES

    choice = row["choice"]
    title = (
        f"{row['baseline']}, {row['bits']} (prefix {choice['prefix_count']} from block "
        f"{choice['prefix_block']}, {deletion_text(choice)})"
    )
    heads = ("", metric_axis(metric), f"against the\nbaseline, {unit_name(metric)} [95 %]", "p")
    table = new_table(heads, words=(0, 2))
    for variant, cell in row["cells"].items():
        value = "-" if cell["value"] is None else value_text(metric, cell["value"])
        pair = cell["against_baseline"]
        difference = difference_text(metric, pair) or cell["reason"]
        add_row(table, TITLES[variant], value, difference, p_text(pair))
    return title, table


def _search_footnotes(result: ExportResult) -> list[str]:
    details, cost = result.details, result.search_cost
    proxy = details["sensitivity"]["proxy"]["block"]
    recall = ", ".join(
        f"block {t} {percent(share, 0)}" for t, share in details["ranking_recall"].items()
    )
    lines = [
        f"Cost: {cost['block_forwards']:,} block-forwards in all; the published grid takes "
        f"{cost['exhaustive_block_forwards']:,}.",
        f"Most sensitive block by the one-pass proxy: {proxy}.",
        f"Recall of fc2-input candidates by block-input ranking: {recall}.",
    ]
    if result.config.is_empty:
        lines.append(_no_gain(result, f" best candidate p = {details['gain']['p_value']:.2g}"))
    lines += not_tried_lines([choice.to_json() for choice in result.not_tried])
    return [*lines, *(f"warning: {text}" for text in result.warnings)]


def _choice_table(result: ExportResult, verbose: bool) -> tuple[str, Any]:
    config = result.config
    blocks = config.prefix_blocks(result.depth)
    absent = config.range_delete_count
    prefix = "none"
    if config.has_prefix and blocks:
        where = f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {blocks[0]} to {blocks[-1]}"
        prefix = f"{counted(config.prefix_count, 'copy', 'copies')} in {where}"
    sinks = f"{deletion_text(config.to_json())} in block {config.delete_block}" if absent else ""
    rows = {
        "quantization-sensitive layer": result.sensitive_layer,
        **norms_rows(result.token_norms),
        "prefix": prefix,
        "sink tokens of an image": sinks or "left as they are",
        "tokens merged": merge_text(result.merge),
        f"search {metric_axis(result.search_metric)}": (
            f"{value_text(result.search_metric, result.search_accuracy)} "
            f"on {result.n_search} images"
        ),
        "prefix block candidates": ", ".join(map(str, result.prefix_block_candidates)),
        "absent while ranges are set": f"{absent} tokens an image",
        "time": f"{result.seconds:.0f} s",
    }
    asked = {"mean of each image's largest", "after means"}
    asked |= {"prefix block candidates", "absent while ranges are set"}
    if not result.merge:
        rows.pop("tokens merged")
    title = f"{result.model}, {result.baseline}, {result.bits}"
    table = new_table(("", ""), words=(0, 1))
    for name, text in rows.items():
        if verbose or name not in asked:
            add_row(table, name, text)
    return title, table


def _ways_table(result: ExportResult) -> tuple[str, Any]:
    metric = result.search_metric
    title = f"{metric_axis(metric)} of every way on {result.n_search} search images"
    heads = ("", metric_axis(metric), "cosine\nto FP32", "CPU\ncost", "")
    table = new_table(heads if metric in COUNTED else (*heads[:2], *heads[3:]), (0,))
    for way in result.ways:
        cells = [way["title"], value_text(metric, way["value"])]
        cells += [f"{way['fidelity']:.5f}"] * (metric in COUNTED)
        mark = "chosen" if way["chosen"] else "equal" if way["tied"] else ""
        add_row(table, *cells, f"{way['cost']:.3f}", mark)
    return title, table


def _front_table(result: ExportResult) -> tuple[str, Any]:
    metric = result.search_metric
    title = f"Speed and {metric_axis(metric)} with merging, {result.n_search} images"
    heads = ("", "ms", "times as fast as\nunmerged [95 %]", metric_axis(metric))
    table = new_table((*heads, "against FP32,\npoints [95 %]"))
    for row in front_rows(metric, result.merge_front):
        add_row(table, *row)
    return title, table


def _accuracy_table(result: ExportResult) -> tuple[str, Any]:
    counted = result.metric in COUNTED
    beside = counted and bool(result.fidelity)
    heads = ["", metric_axis(result.metric), *["cosine\nto FP32"] * beside]
    if result.paired:
        heads += [f"against FP32,\n{unit_name(result.metric)} [95 %]"]
        heads += ["lost /\nwon"] * counted + ["McNemar\np" if counted else "p"]
    title = f"{metric_axis(result.metric)} on {result.n_eval} held-out images"
    table = new_table(heads)
    for corner in CORNERS:
        shown = result.ways or result.merge or corner != "recipe"
        if corner not in result.accuracy or not shown:
            continue
        cells = [CORNER_TITLES[corner], value_text(result.metric, result.accuracy[corner])]
        cells += [f"{result.fidelity[corner]:.5f}"] if beside else []
        pair = result.paired.get(corner)
        if pair:
            found = pair.to_json()
            cells.append(difference_text(result.metric, found))
            cells += [f"{pair.lost} / {pair.won}"] if counted else []
            cells.append(p_text(found))
        add_row(table, *cells)
    return title, table


def _footnotes(result: ExportResult, verbose: bool) -> list[str]:
    agreement = result.agreement
    same = f"top-1 identical on {percent(agreement['top1'])}, " if "top1" in agreement else ""
    lines = [
        f"Deployed against simulated: {same}mean cosine {agreement['mean_cosine']:.6f} "
        f"(lowest {agreement['min_cosine']:.6f})."
    ]
    if result.paper_form and verbose:
        paper = result.paper_form
        lines.append(
            f"{result.baseline} with its published quantizers (simulation only): alone "
            f"{value_text(result.metric, paper['baseline'])}, with RegCache "
            f"{value_text(result.metric, paper['regcache'])}."
        )
        lines += [f"deployed otherwise: {line}" for line in result.differences]
    if result.in_float:
        lines.append(f"Linears in float: {', '.join(result.in_float)}.")
    if result.config.is_empty:
        lines.append(_no_gain(result))
    lines += not_tried_lines([choice.to_json() for choice in result.not_tried])
    return [*lines, *(f"warning: {text}" for text in result.warnings)]


def _no_gain(result: ExportResult, p: str = "") -> str:
    """Why nothing was chosen."""
    configs = [trial.config for trial in result.trials]
    return no_gain_text(
        [(c.prefix_count, c.range_delete_count) for c in configs], p, len(result.not_tried)
    )
