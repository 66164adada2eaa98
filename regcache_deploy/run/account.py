"""What a run says of itself: command, date, versions, machine, images."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from .. import __version__
from ..bench.environment import describe_machine
from ..evaluation.image_sets import ImageSets
from ..work.invocation import command_line


def account_of(sets: ImageSets) -> dict[str, Any]:
    """For the top of the page; nothing in a bundle depends on it."""
    machine = describe_machine()
    gpu = machine["gpu"]
    return {
        "command": command_line(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": {"regcache-deploy": __version__, **machine["versions"]},
        "python": machine["python"],
        "machine": {name: machine[name] for name in ("cpu", "cpu_flags", "cores", "os")}
        | {"gpu": gpu["name"] if gpu else None},
        "search_images": sets.search.source,
        "held_out_images": sets.evaluation.source,
    }
