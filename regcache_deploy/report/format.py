"""Figures and names as text, the same way on the page and on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def metric_title(name: str) -> str:
    return {"top1": "top-1", "cosine": "cosine", "mse": "1 - relative error"}[name]


def value_text(metric: str, value: float) -> str:
    return f"{value * 100:.2f} %" if metric == "top1" else f"{value:.5f}"


def difference_text(metric: str, pair: dict[str, Any] | None) -> str:
    if pair is None:
        return ""
    digits = 2 if metric == "top1" else 5
    return (
        f"{pair['difference']:+.{digits}f} [{pair['low']:+.{digits}f}, {pair['high']:+.{digits}f}]"
    )


def p_text(pair: dict[str, Any] | None) -> str:
    return "" if pair is None else f"{pair['p_value']:.2g}"


def count_text(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")


def absent_count(choice: Mapping[str, Any]) -> int:
    """Tokens that were absent while the ranges were set; a file from before has one count."""
    return int(choice.get("range_delete_count", choice["delete_count"]))


def deletion_text(choice: Mapping[str, Any]) -> str:
    """Both delete counts of a choice in words, for example `0 deleted, 6 saturated`."""
    deleted = int(choice["delete_count"])
    saturated = absent_count(choice) - deleted
    return f"{deleted} deleted" + (f", {saturated} saturated" if saturated else "")


def for_rich(text: str) -> str:
    """Text for rich: brackets are no markup, and bytes of a path that are no UTF-8 are named."""
    from rich.markup import escape

    return escape(text.encode(errors="backslashreplace").decode())


def speedup_head(rows: Iterable[Mapping[str, Any]]) -> str:
    """Head of the column of ratios, with the file that they are over where it is one."""
    over = {row["speedup_over"] for row in rows if "speedup" in row}
    return f"faster than {over.pop()} [95 %]" if len(over) == 1 else "faster [95 %]"
