"""How the graph of a finished bundle is written, read from its manifest."""

from __future__ import annotations

from regcache_engines.bundle import Bundle
from regcache_engines.errors import BundleError, ConfigError

from .targets import GraphOptions


def graph_options(bundle: Bundle) -> GraphOptions:
    """How the bundle's graph is written, read from its manifest.

    Raises:
        BundleError: the manifest does not say it.
    """
    try:
        graph = bundle.manifest["graph"]
        shape, dtype = graph["input"]["shape"], graph["input"]["dtype"]
        layout = ("nhwc" if shape[3] == 3 else "nchw") if dtype == "uint8" else None
        batch = shape[0] if isinstance(shape[0], int) else None
        return GraphOptions(
            target=graph["target"],
            pixels=layout,  # type: ignore[arg-type]
            without=tuple(graph.get("without", ())),
            batch=batch,
            probes=len(graph.get("probes", ())),
        )
    except (KeyError, IndexError, TypeError, ConfigError) as error:
        raise BundleError(
            f"the manifest of {bundle.path} describes no graph ({error}); export it again"
        ) from error


def image_size(bundle: Bundle) -> tuple[int, int]:
    """Height and width in pixels."""
    graph = bundle.manifest["graph"]["input"]
    height, width = graph["shape"][1:3] if graph["shape"][3] == 3 else graph["shape"][2:4]
    return int(height), int(width)
