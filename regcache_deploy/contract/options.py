"""What a contract is asked for, beside its limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .decide import Contract

if TYPE_CHECKING:
    from regcache_engines.tensorrt.build_options import BuildOptions


@dataclass(frozen=True)
class ContractOptions:
    """What `regcache build` asks for.

    Attributes:
        engine: `onnxruntime`, `openvino`, `tensorrt` or `tensorrt_rtx`.
        output: gets `NAME.decision.json`; `NAME-FORM/` with bundle and plan where another file
            than the bundle itself is kept; and for TensorRT the engine of the kept file.
        data, limit, seed: images to judge on; see `load_judge_data`.
        batch, threads: what the speed-up is measured at.
        seconds: for the timing of one candidate.
        plan_folder: where plan.json is; None looks beside the bundle.
        build: how TensorRT's engines are built; None takes the builder's defaults.
        strict_layers: an engine that breaks the static check's promise is no candidate.
    """

    engine: str
    output: Path
    contract: Contract
    data: str | None = None
    limit: int | None = None
    seed: int = 0
    batch: int = 1
    threads: int | None = None
    seconds: float = 20.0
    plan_folder: Path | None = None
    build: BuildOptions | None = None
    strict_layers: bool = True
