"""Write the file that a contract kept, as a bundle with its plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from regcache_engines.files import gone_at_the_end, held
from regcache_export.bundle import copy_text, seal_bundle, write_bundle
from regcache_export.certificate_files import read_certificate
from regcache_export.plan import Plan

from ..bundling.certify import certify_bundle
from ..bundling.monitor import monitor_entry
from ..errors import BundleError
from ..quantization.plan import calibration_of
from .candidates import Candidates
from .decide import FLOAT, INT8, Measured


def write_kept(
    candidates: Candidates, kept: Measured, output: Path, place: str | None = None
) -> Path:
    """The kept file as a bundle with its plan beside it; INT8 as exported stays where it is.

    Args:
        candidates, kept: as measured.
        output: gets the bundle's folder.
        place: the data set whose images chose it.

    Raises:
        VerificationError: its graph is not the simulated one; nothing is left of it.
    """
    bundle = candidates.bundle
    if kept.form == INT8:
        return bundle.path
    chosen = candidates.plan_for(kept)
    form = {"form": kept.form, "float_layers": list(kept.float_layers)}
    form |= {"way": kept.way} if kept.way else {}
    form |= {"place": place} if place else {}
    chosen = replace(chosen, provenance=dict(chosen.provenance) | {"build": form})
    name = bundle.path.resolve().name.removesuffix(".regcache")
    # a folder of its own: the plan lies beside the bundle, and another one may be in the output
    folder = output / f"{name}-{kept.form}"
    path = folder / f"{folder.name}.regcache"
    with candidates.reporter.stage(f"writing {path}"), held(folder):
        options = candidates.options_for(chosen)
        draft = write_bundle(chosen, path.with_suffix(".unverified"), options=options)
        with gone_at_the_end(draft):
            found = copy_text(bundle, draft)
            if kept.form != FLOAT:
                found |= certify_again(draft, chosen, candidates, found)
            chosen.save(folder)
            return seal_bundle(draft, path, found)


def certify_again(
    place: Path, plan: Plan, candidates: Candidates, manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Give the bundle a certificate of its own, on the images of the first one's.

    Args:
        manifest: what else the bundle will be sealed with.

    Returns:
        The manifest's `monitor` on these images, or nothing without probes or without images.
    """
    try:
        pixels = read_certificate(candidates.bundle)[1]
    except BundleError:
        return {}  # nothing to certify on; `regcache verify` says so
    calibration, images = calibration_of(plan), torch.from_numpy(pixels)
    monitor = monitor_entry(place, pixels)
    more = {**manifest, **monitor}
    certify_bundle(place, plan, candidates.options_for(plan), calibration, images, more)
    return monitor
