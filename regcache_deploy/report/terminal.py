"""The result of an export as two tables on stdout."""

from __future__ import annotations

import json
import sys

from ..result import CORNERS, ExportResult

CORNER_TITLES = {
    "fp32": "FP32",
    "baseline": "baseline alone",
    "prefix_only": "prefix only",
    "delete_only": "delete only",
    "regcache": "RegCache (simulated)",
    "deployed": "RegCache (deployed, ONNX Runtime)",
}


def print_result(result: ExportResult, as_json: bool = False) -> None:
    """Print the result: one JSON object, or the tables."""
    if as_json:
        print(json.dumps(result.to_json(), indent=1))
        return
    from rich.console import Console

    width = None if sys.stdout.isatty() else 100
    console = Console(width=width, highlight=False)
    if result.caution:
        console.print(f"[bold]Note:[/bold] {result.caution}.")
    console.print(_choice_table(result))
    console.print(_accuracy_table(result))
    for line in _footnotes(result):
        console.print(line, soft_wrap=True)


def _choice_table(result: ExportResult):  # type: ignore[no-untyped-def]
    from rich.table import Table

    config = result.config
    table = Table(title=f"{result.model}, {result.baseline}, {result.bits}", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    blocks = config.prefix_blocks(result.depth)
    rows = {
        "quantization-sensitive block k": str(result.sensitive_block),
        "quantization-sensitive layer": result.sensitive_layer,
        "prefix block candidates": ", ".join(map(str, result.prefix_block_candidates)),
        "chosen prefix block": str(config.prefix_block) if config.has_prefix else "none",
        "prefix-add blocks": f"{blocks[0]}..{blocks[-1]}" if blocks else "none",
        "prefix count": str(config.prefix_count),
        "delete block": str(config.delete_block) if config.deletes else "none",
        "delete count": str(config.delete_count),
        f"search {_metric(result.search_metric)}": (
            f"{_value(result.search_metric, result.search_accuracy)} on {result.n_search} images"
        ),
        "results CSV": str(result.results_csv),
        "bundle": str(result.bundle),
        "time": f"{result.seconds:.0f} s",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _accuracy_table(result: ExportResult):  # type: ignore[no-untyped-def]
    from rich.table import Table

    table = Table(title=f"{_metric(result.metric)} on {result.n_eval} held-out images")
    table.add_column("")
    table.add_column(_metric(result.metric), justify="right")
    if result.paired:
        table.add_column("against FP32, points [95 %]", justify="right")
        table.add_column("lost / won", justify="right")
        table.add_column("McNemar p", justify="right")
    for corner in CORNERS:
        cells = [CORNER_TITLES[corner], _value(result.metric, result.accuracy[corner])]
        pair = result.paired.get(corner)
        if pair:
            cells += [
                f"{pair.difference:+.2f} [{pair.low:+.2f}, {pair.high:+.2f}]",
                f"{pair.lost} / {pair.won}",
                f"{pair.p_value:.2g}",
            ]
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
            f"{_value(result.metric, paper['baseline'])}, with RegCache "
            f"{_value(result.metric, paper['regcache'])}."
        )
        lines += [f"  deployed otherwise: {line}" for line in result.differences]
    if result.config.is_empty:
        lines.append("No gain: no prefix and no deletion beat the baseline alone on these images.")
    return [*lines, *(f"warning: {text}" for text in result.warnings)]


def _metric(name: str) -> str:
    return {"top1": "top-1", "cosine": "cosine to FP32"}[name]


def _value(metric: str, value: float) -> str:
    return f"{value * 100:.2f} %" if metric == "top1" else f"{value:.5f}"
