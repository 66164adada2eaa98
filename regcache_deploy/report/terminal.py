"""The result of an export as two tables on stdout."""

from __future__ import annotations

import json
import sys
from typing import Any

from ..work.format import (
    COUNTED,
    deletion_text,
    difference_text,
    for_rich,
    front_rows,
    merge_text,
    metric_axis,
    no_gain_text,
    norms_rows,
    not_tried_lines,
    p_text,
    value_text,
)
from .result import CORNERS, ExportResult

CORNER_TITLES = {
    "fp32": "FP32",
    "baseline": "baseline alone",
    "prefix_only": "prefix only",
    "delete_only": "delete only",
    "saturate": "prefix + saturation",
    "delete": "prefix + deletion, as published",
    "regcache": "RegCache, as searched",
    "unmerged": "chosen, no token merged (simulated)",
    "recipe": "chosen (simulated)",
    "deployed": "chosen (deployed, ONNX Runtime)",
}


def print_result(result: ExportResult, as_json: bool = False) -> None:
    """Print the result: one JSON object, or the tables."""
    if as_json:
        print(json.dumps(result.to_json(), indent=1))
        return
    from rich.console import Console

    width = None if sys.stdout.isatty() else 100
    console = Console(width=width, highlight=False, emoji=False)
    if result.caution:
        console.print(f"[bold]Note:[/bold] {for_rich(result.caution)}.")
    console.print(_choice_table(result))
    if result.ways:
        console.print(_ways_table(result))
    if result.merge_front:
        console.print(_front_table(result))
    console.print(_accuracy_table(result))
    for text in filter(None, (result.reason, result.merge_reason)):
        console.print(for_rich(f"Chosen: {text}."), soft_wrap=True)
    if result.fidelity_way:
        line = f"Fidelity to FP32 would have chosen: {result.fidelity_way}."
        console.print(for_rich(line), soft_wrap=True)
    for line in _footnotes(result):
        console.print(for_rich(line), soft_wrap=True)


def print_search(result: ExportResult, as_json: bool = False) -> None:
    """Print a search: one JSON object, or the tables."""
    if as_json:
        print(json.dumps(result.to_json(), indent=1))
        return
    from rich.console import Console

    width = None if sys.stdout.isatty() else 100
    console = Console(width=width, highlight=False, emoji=False)
    if result.caution:
        console.print(f"[bold]Note:[/bold] {for_rich(result.caution)}.")
    console.print(_choice_table(result))
    if result.merge_front:
        console.print(_front_table(result))
        console.print(for_rich(f"Chosen: {result.merge_reason}."), soft_wrap=True)
    console.print(_accuracy_table(result))
    for row in result.details["ablation"]:
        console.print(_ablation_table(result.metric, row))
    for line in _search_footnotes(result):
        console.print(for_rich(line), soft_wrap=True)


def _ablation_table(metric: str, row: dict[str, Any]):  # type: ignore[no-untyped-def]
    from rich.table import Table

    from ..search.ablation import TITLES

    choice = row["choice"]
    table = Table(
        title=f"{row['baseline']}, {row['bits']} (prefix {choice['prefix_count']} from block "
        f"{choice['prefix_block']}, {deletion_text(choice)})"
    )
    for name in ("", metric_axis(metric), "against the baseline [95 %]", "p"):
        table.add_column(name, justify="right" if name == metric_axis(metric) else "left")
    digits = 2 if metric in COUNTED else 5
    for variant, cell in row["cells"].items():
        pair = cell["against_baseline"]
        difference, p = "", ""
        if pair is not None:
            low, high = (f"{pair[end]:+.{digits}f}" for end in ("low", "high"))
            difference = rf"{pair['difference']:+.{digits}f} \[{low}, {high}]"
            p = f"{pair['p_value']:.2g}"
        value = "-" if cell["value"] is None else value_text(metric, cell["value"])
        table.add_row(TITLES[variant], value, difference or cell["reason"], p)
    return table


def _search_footnotes(result: ExportResult) -> list[str]:
    details, cost = result.details, result.search_cost
    proxy = details["sensitivity"]["proxy"]["block"]
    recall = ", ".join(f"block {t} {share:.0%}" for t, share in details["ranking_recall"].items())
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


def _choice_table(result: ExportResult):  # type: ignore[no-untyped-def]
    from rich.table import Table

    config = result.config
    title = for_rich(f"{result.model}, {result.baseline}, {result.bits}")
    table = Table(title=title, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    blocks = config.prefix_blocks(result.depth)
    rows = {
        "quantization-sensitive block k": str(result.sensitive_block),
        "quantization-sensitive layer": result.sensitive_layer,
        **norms_rows(result.token_norms),
        "prefix block candidates": ", ".join(map(str, result.prefix_block_candidates)),
        "chosen prefix block": str(config.prefix_block) if config.has_prefix else "none",
        "prefix-add blocks": f"{blocks[0]}..{blocks[-1]}" if blocks else "none",
        "prefix count": str(config.prefix_count),
        "delete block": str(config.delete_block) if config.range_delete_count else "none",
        "delete count": str(config.delete_count),
        "absent while ranges are set": str(config.range_delete_count),
        "tokens merged": merge_text(result.merge),
        f"search {metric_axis(result.search_metric)}": (
            f"{value_text(result.search_metric, result.search_accuracy)} "
            f"on {result.n_search} images"
        ),
        "results CSV": str(result.results_csv),
        "bundle": str(result.bundle) if result.bundle else "none: `regcache export` writes one",
        "time": f"{result.seconds:.0f} s",
    }
    for name, text in rows.items():
        table.add_row(name, for_rich(text))
    return table


def _ways_table(result: ExportResult):  # type: ignore[no-untyped-def]
    from rich.table import Table

    metric = result.search_metric
    table = Table(title=f"{metric_axis(metric)} of every way on {result.n_search} search images")
    table.add_column("")
    for name in (metric_axis(metric), "cosine to FP32", "CPU cost"):
        table.add_column(name, justify="right")
    for way in result.ways:
        mark = " <- chosen" if way["chosen"] else " =" if way["tied"] else ""
        table.add_row(
            for_rich(f"{way['title']}{mark}"),
            value_text(metric, way["value"]),
            f"{way['fidelity']:.5f}",
            f"{way['cost']:.3f}",
        )
    return table


def _front_table(result: ExportResult):  # type: ignore[no-untyped-def]
    from rich.table import Table

    metric = result.search_metric
    table = Table(title=f"Speed and {metric_axis(metric)} with merging, {result.n_search} images")
    table.add_column("")
    heads = ("ms", "over unmerged [95 %]", metric_axis(metric), "against FP32, points [95 %]")
    for name in heads:
        table.add_column(name, justify="right")
    for row in front_rows(metric, result.merge_front):
        table.add_row(*(for_rich(cell) for cell in row))
    return table


def _accuracy_table(result: ExportResult):  # type: ignore[no-untyped-def]
    from rich.table import Table

    table = Table(title=f"{metric_axis(result.metric)} on {result.n_eval} held-out images")
    table.add_column("")
    table.add_column(metric_axis(result.metric), justify="right")
    counted = result.metric in COUNTED
    if counted and result.fidelity:
        table.add_column("cosine to FP32", justify="right")
    if result.paired:
        heads = ["against FP32, points [95 %]", "lost / won", "McNemar p"]
        for head in heads if counted else ["difference [95 %]", "p"]:
            table.add_column(head, justify="right")
    for corner in CORNERS:
        shown = result.ways or result.merge or corner != "recipe"
        if corner not in result.accuracy or not shown:
            continue
        cells = [CORNER_TITLES[corner], value_text(result.metric, result.accuracy[corner])]
        if counted and result.fidelity:
            cells.append(f"{result.fidelity[corner]:.5f}")
        pair = result.paired.get(corner)
        if pair:
            found = pair.to_json()
            cells.append(difference_text(result.metric, found))
            cells += [f"{pair.lost} / {pair.won}"] if counted else []
            cells.append(p_text(found))
        table.add_row(*cells)
    return table


def _footnotes(result: ExportResult) -> list[str]:
    agreement = result.agreement
    same = f"top-1 identical on {agreement['top1']:.2%}, " if "top1" in agreement else ""
    lines = [
        f"Deployed against simulated: {same}mean cosine {agreement['mean_cosine']:.6f} "
        f"(lowest {agreement['min_cosine']:.6f})."
    ]
    if result.paper_form:
        paper = result.paper_form
        lines.append(
            f"{result.baseline} with its published quantizers (simulation only): alone "
            f"{value_text(result.metric, paper['baseline'])}, with RegCache "
            f"{value_text(result.metric, paper['regcache'])}."
        )
        lines += [f"  deployed otherwise: {line}" for line in result.differences]
    if result.in_float:
        lines.append(f"Linears in float: {', '.join(result.in_float)}.")
    if result.config.is_empty:
        lines.append(_no_gain(result))
    lines += not_tried_lines([choice.to_json() for choice in result.not_tried])
    return [*lines, *(f"warning: {text}" for text in result.warnings)]


def _no_gain(result: ExportResult, p: str = "") -> str:
    """Why nothing was chosen."""
    configs = [trial.config for trial in result.trials]
    return no_gain_text([(c.prefix_count, c.range_delete_count) for c in configs], p)
