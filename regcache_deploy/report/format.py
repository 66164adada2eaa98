"""Figures as text, the same way everywhere on the page."""

from __future__ import annotations

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
