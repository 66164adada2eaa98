"""The pictures of a search as SVG files, for the report page and for papers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from regcache_engines.files import atomic_write_bytes

from ..work.format import absent_count, metric_scale
from .drawing import COLOURS, FLOOR, GAP, MUTED, ROLES, draw_svg, new_figure


def write_plots(folder: Path, document: dict[str, Any], arrays: dict[str, Any]) -> dict[str, str]:
    """Draw every picture of a search.

    Args:
        folder: where the SVG files go.
        document: the search's JSON.
        arrays: of `search.pictures.picture_data`.

    Returns:
        Picture -> file name, relative to the run folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, draw in PICTURES.items():
        if name == "sensitivity" and not document[name]["layers"]:
            continue
        data = draw_svg(partial(draw, document, arrays))
        atomic_write_bytes(folder / f"{name}.svg", data)
        files[name] = f"{folder.name}/{name}.svg"
    return files


def sensitivity(document: dict[str, Any], arrays: dict[str, Any]) -> Any:
    """Loss with one layer quantized alone, above the one-pass proxy."""
    data = document["sensitivity"]
    figure, (above, below) = new_figure(5.2, 5.4, nrows=2, sharex=True, height_ratios=(2, 1.3))
    depth = len(data["proxy"]["fc2_input"])
    for role, colour in zip(ROLES, COLOURS, strict=True):
        loss = [
            max(1 - data["layers"][f"blocks.{i}.{role}"]["cosine"], FLOOR) for i in range(depth)
        ]
        above.plot(range(depth), loss, marker="o", ms=4, color=colour, label=role.split(".")[1])
    above.set_yscale("log")
    above.set_ylabel("1 - cosine of features,\none layer at W8A8")
    above.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    below.plot(range(depth), data["proxy"]["fc2_input"], marker="s", ms=4, color=COLOURS[3])
    below.plot(range(depth), data["proxy"]["block_input"], marker="o", ms=4, color=COLOURS[0])
    below.set_ylabel("max / median\nof token norms")
    below.set_xlabel("block")
    below.set_xticks(range(depth))
    below.set_yscale("log")
    below.legend(
        ["fc2 input", "block input"], ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.3)
    )
    for axes in (above, below):
        axes.axvline(document["sensitive_block"], color=MUTED, lw=1, ls="--", zorder=0)
    return figure


def norms(document: dict[str, Any], arrays: dict[str, Any]) -> Any:
    """Largest l-inf norm of every token at every block's input, before and after."""
    import numpy as np
    from matplotlib.colors import LogNorm

    before, after = arrays["largest_before"], arrays["largest_after"]
    from matplotlib import colormaps

    figure, axes = new_figure(5.2, 4.4, nrows=2, sharex=True)
    colours = colormaps["viridis"].with_extremes(bad=GAP)
    scale = LogNorm(max(float(np.nanmin(before)), 1e-3), float(np.nanmax(before)))
    for place, values, title in ((axes[0], before, "before"), (axes[1], after, "with RegCache")):
        image = place.imshow(
            values, aspect="auto", norm=scale, cmap=colours, interpolation="nearest"
        )
        place.set_title(title, loc="left", fontsize=10)
        place.set_ylabel("block")
        place.grid(visible=False)
    axes[1].set_xlabel("token (class token first, then patches row by row)")
    figure.colorbar(image, ax=axes, label="l-inf norm", shrink=0.8)
    return figure


def deleted(document: dict[str, Any], arrays: dict[str, Any]) -> Any:
    """Where the sink tokens lie that are deleted or saturate, on a few search images."""
    from matplotlib.patches import Rectangle

    images, masks = arrays["thumbnails"], arrays["deleted"]
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure, axes = new_figure(5.2, 1.42 * rows, nrows=rows, ncols=columns, squeeze=False)
    for place in axes.flat:
        place.axis("off")
    for place, image, mask in zip(axes.flat, images, masks, strict=False):
        place.imshow(image, interpolation="nearest")
        height, width = image.shape[0] / mask.shape[0], image.shape[1] / mask.shape[1]
        for row, column in zip(*mask.nonzero(), strict=True):
            corner = (column * width - 0.5, row * height - 0.5)
            place.add_patch(Rectangle(corner, width, height, fill=False, ec="white", lw=2.4))
            place.add_patch(Rectangle(corner, width, height, fill=False, ec=COLOURS[3], lw=1.3))
    return figure


def surface(document: dict[str, Any], arrays: dict[str, Any]) -> Any:
    """Every evaluated (tau, k~ of the ranges), each at its most images, with the choice."""
    from matplotlib.ticker import MaxNLocator

    best: dict[tuple[int, int], dict[str, Any]] = {}
    for trial in document["trials"]:
        key = trial["prefix_count"], absent_count(trial)
        rank = (trial["images"], trial["value"])
        if key not in best or rank > (best[key]["images"], best[key]["value"]):
            best[key] = trial
    trials = sorted(best.values(), key=lambda t: t["images"])
    most = max(t["images"] for t in trials)
    scale, title = metric_scale(document["search_metric"])
    figure, axes = new_figure(5.2, 3.9)
    dots = axes.scatter(
        [t["prefix_count"] for t in trials],
        [absent_count(t) for t in trials],
        c=[scale * t["value"] for t in trials],
        s=[60 + 160 * (t["images"] == most) for t in trials],
        marker="s",
        cmap="viridis",
        edgecolors="white",
    )
    axes.scatter(
        [document["prefix_count"]],
        [absent_count(document)],
        marker="*",
        s=90,
        color="white",
        edgecolors=COLOURS[3],
        linewidths=1.3,
        label="chosen",
        zorder=3,
    )
    axes.set_xlabel("prefix count τ")
    axes.set_ylabel("delete count k̃ of the ranges")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(0.08)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.05))
    axes.set_title(f"large: all {most} images; small: a part of them", loc="left", fontsize=9)
    figure.colorbar(dots, ax=axes, label=title)
    return figure


def racing(document: dict[str, Any], arrays: dict[str, Any]) -> Any:
    """Value of every evaluation against the work done so far."""
    trials = document["trials"]
    most = max(t["images"] for t in trials)
    scale, title = metric_scale(document["search_metric"])
    figure, axes = new_figure(5.2, 3.6)
    part = [t for t in trials if t["images"] < most]
    whole = [t for t in trials if t["images"] == most]
    axes.scatter(
        [t["block_forwards"] for t in part],
        [scale * t["value"] for t in part],
        s=16,
        color=COLOURS[0],
        alpha=0.6,
        label="on a part of the images",
    )
    axes.scatter(
        [t["block_forwards"] for t in whole],
        [scale * t["value"] for t in whole],
        s=44,
        color=COLOURS[1],
        marker="D",
        label=f"on all {most}",
    )
    axes.axhline(scale * document["search_accuracy"], color=MUTED, lw=1, ls="--")
    axes.set_xlabel("block-forwards so far (one image through one block)")
    axes.set_ylabel(title)
    axes.ticklabel_format(axis="x", style="plain")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}".replace(",", " "))
    axes.tick_params(axis="x", labelrotation=20)
    axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


PICTURES: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "sensitivity": sensitivity,
    "norms": norms,
    "deleted": deleted,
    "surface": surface,
    "racing": racing,
}
