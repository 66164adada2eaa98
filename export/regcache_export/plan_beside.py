"""Find the plan that a bundle was made from."""

from __future__ import annotations

from pathlib import Path

from regcache_engines.bundle import Bundle

from .errors import BundleError
from .plan import Plan


def load_plan(bundle: Bundle, folder: Path | None = None) -> Plan:
    """The plan that a bundle was made from.

    Args:
        bundle: open.
        folder: where plan.json is; None looks beside the bundle.

    Raises:
        BundleError: it is not there, or belongs to another bundle.
    """
    place = folder if folder is not None else bundle.path.resolve().parent
    if not (place / "plan.json").is_file():
        raise BundleError(
            f"what is float or simulated needs the plan of {bundle.path}, and {place} has no "
            "plan.json; pass --plan DIR (the result folder of the export)"
        )
    plan = Plan.load(place)
    mine, theirs = plan.provenance, bundle.manifest.get("provenance")
    if mine != theirs:
        raise BundleError(
            f"the plan in {place} belongs to another bundle than {bundle.path} (their provenance "
            "differs); pass --plan DIR"
        )
    known = bundle.manifest.get("plan_tensors_sha256")  # bundles of older versions have none
    if known is not None and known != plan.tensors_sha256():
        raise BundleError(
            f"the plan in {place} has other tensors than {bundle.path} was written from; pass "
            "--plan DIR, or export again"
        )
    return plan
