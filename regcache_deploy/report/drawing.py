"""How every picture looks: colours, fonts, and an SVG that is readable on light and on dark.

The ground is transparent, and a style sheet inside each file exchanges the colours of lines and
letters where the reader prefers a dark screen.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from ..compat import require

INK, MUTED, GRID = "#1c2330", "#667085", "#e4e7ec"
COLOURS = ("#1f6feb", "#d9730d", "#12805c", "#b42318")
GAP = "#98a2b3"
"""Where a heat map has no value; seen on light and on dark."""

DARK = {
    INK: "#e6e9ef",
    MUTED: "#9aa4b5",
    GRID: "#2e3644",
    COLOURS[0]: "#6ea8fe",
    COLOURS[1]: "#ffa657",
    COLOURS[2]: "#3fb68b",
    COLOURS[3]: "#ff7b72",
}
"""What each colour becomes on a dark screen."""

STYLE: dict[str, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.size": 11,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "svg.hashsalt": "regcache",  # the same search gives the same file
    "svg.fonttype": "path",
}
ROLES = ("attn.qkv", "attn.out_proj", "mlp.fc1", "mlp.fc2")
FLOOR = 1e-7
"""Smallest loss on a logarithmic axis."""


def draw_svg(draw: Callable[[], Any]) -> bytes:
    """A figure as an SVG file that is readable on light and on dark."""
    matplotlib = require("matplotlib", "search")
    matplotlib.use("Agg")
    with matplotlib.rc_context(STYLE):
        buffer = io.BytesIO()
        draw().savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue().decode()
    return text.replace("<defs>", f"<style>{_dark_rules()}</style>\n <defs>", 1).encode()


def _dark_rules() -> str:
    """Colours are found where matplotlib puts them: in the style attribute of each element."""
    rules = [
        f'[style*="{part}: {light}"] {{ {part}: {dark} !important }}'
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
    ]
    # letters without a colour of their own are black
    rules.append('[id^="text_"] { fill: ' + DARK[INK] + " }")
    return "@media (prefers-color-scheme: dark) { " + " ".join(rules) + " }"


def new_figure(width: float, height: float, **keywords: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**keywords)
