"""What the spinning threads of one ONNX Runtime session cost the next one to run.

    python benchmarks/cpu_forms.py --prepare
    python benchmarks/spinning.py --output benchmarks/results/spinning-CPU.csv

One image, as many threads as cores, ViT-B/16 with random weights: our tuned file and NNCF's, each
right behind another session's call and right behind one of its own. With `default` the sessions of
ONNX Runtime spin on after a call, with `stop` they have `session.force_spinning_stop`. In turns.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path("runs/cpu_forms")


def ort(path: Path, threads: int, stop: bool, image: np.ndarray) -> Callable[[], Any]:
    """A plain session, as `onnxruntime` gives it but for the one setting."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if stop:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"image": image})


def openvino(path: Path, threads: int, image: np.ndarray) -> Callable[[], Any]:
    """NNCF's file in OpenVINO, float parts in float32."""
    import openvino

    hints = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(str(path), "CPU", hints).create_infer_request()
    return lambda: request.infer({0: image})


def milliseconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) * 1e3


def measure(folder: Path, threads: int, rounds: int) -> dict[tuple[str, str, str], list[float]]:
    """(setting, file, ran before) -> times."""
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    nncf = openvino(folder / "nncf.xml", threads, image)
    settings = {}
    for setting, stop in (("default", False), ("stop", True)):
        names = ("quantize_static", "tuned_regcache")
        settings[setting] = [ort(folder / f"{n}.onnx", threads, stop, image) for n in names]
    for run in (nncf, *(run for runs in settings.values() for run in runs)):
        run()
        run()
    times: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(rounds):
        for setting, (static, tuned) in settings.items():
            static()
            for file, before, run in (
                ("tuned_regcache", "quantize_static", tuned),
                ("tuned_regcache", "tuned_regcache", tuned),
                ("nncf_openvino", "tuned_regcache", nncf),
                ("nncf_openvino", "nncf_openvino", nncf),
            ):
                times.setdefault((setting, file, before), []).append(milliseconds(run))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    rows = [("setting", "file", "ran_before", "median_ms", "least_ms", "rounds", "threads")]
    for key, found in measure(args.folder, args.threads, args.rounds).items():
        figures = round(statistics.median(found), 2), round(min(found), 2)
        rows.append((*key, *figures, len(found), args.threads))
        print(*rows[-1])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    main()
