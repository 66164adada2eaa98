"""Bundles, plans and ONNX files that are damaged, or made by somebody who means harm."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from regcache_deploy.errors import (
    BundleError,
    DataError,
    EngineError,
    RegCacheError,
    VerificationError,
)
from tests.attacks.fault import Act, Fault, Place
from tests.cpp.damages import DAMAGES
from tests.cpp.damaging import replace_file

MODEL, CERTIFICATE = "model.onnx", "certificate.json"


def verify(change: Callable[[Path, Place], object]) -> Act:
    """`regcache verify` of a changed bundle."""

    def act(place: Place) -> list[str]:
        bundle = place.bundle()
        change(bundle, place)
        return ["verify", str(bundle)]

    return act


def evaluate(change: Callable[[Path, Place], object]) -> Act:
    """`regcache eval` of a changed bundle: what `verify` does not look at."""

    def act(place: Place) -> list[str]:
        bundle = place.bundle()
        change(bundle, place)
        return ["eval", str(bundle), "--data", str(place.images())]

    return act


def known(name: str) -> Act:
    """Of the table that the readers in Python and C++ share."""
    return evaluate(lambda bundle, place: DAMAGES[name][1](bundle))


def model(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path, Place], object]:
    """Another graph, with the right hash."""

    def apply(bundle: Path, place: Place) -> None:
        graph = onnx.load(bundle / MODEL)
        change(graph)
        replace_file(bundle, MODEL, graph.SerializeToString())

    return apply


def external(location: str) -> Callable[[onnx.ModelProto], None]:
    """A weight that is to be read from another file."""

    def change(graph: onnx.ModelProto) -> None:
        tensor = max(graph.graph.initializer, key=lambda t: len(t.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    return change


def linked_weights(bundle: Path, place: Place) -> None:
    """Outside of the bundle through a hidden link in it."""
    (bundle / ".weights").symlink_to(place.outside / "secret")
    model(external(".weights"))(bundle, place)


def hard_linked_weights(bundle: Path, place: Place) -> None:
    os.link(place.outside / "secret", bundle / ".weights")
    model(external(".weights"))(bundle, place)


def twice(graph: onnx.ModelProto) -> None:
    node = next(n for n in graph.graph.node if n.op_type == "QuantizeLinear")
    known = next(t for t in graph.graph.initializer if t.name == node.input[1])
    other = np.asarray(numpy_helper.to_array(known) * 1.5, np.float32)
    graph.graph.initializer.append(numpy_helper.from_array(other, known.name))


def circle(graph: onnx.ModelProto) -> None:
    nodes = graph.graph.node
    nodes[0].input[0] = nodes[-1].output[0]


def scale_of(factor: float) -> Callable[[onnx.ModelProto], None]:
    """Another scale at the first quantizer: the graph that runs is not the simulated one."""

    def change(graph: onnx.ModelProto) -> None:
        node = next(n for n in graph.graph.node if n.op_type == "QuantizeLinear")
        tensor = next(t for t in graph.graph.initializer if t.name == node.input[1])
        value = np.asarray(numpy_helper.to_array(tensor) * factor, np.float32)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

    return change


def wait_loop(graph: onnx.ModelProto) -> None:
    """A Loop of 2**60 turns."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, [])],
    )
    turns = helper.make_tensor("turns", TensorProto.INT64, [], [2**60])
    graph.graph.initializer.append(turns)
    graph.graph.node.append(helper.make_node("Loop", ["turns", ""], [], body=body))


def certificate(change: Callable[[Any], Any]) -> Callable[[Path, Place], object]:
    def apply(bundle: Path, place: Place) -> None:
        document = json.loads((bundle / CERTIFICATE).read_bytes())
        changed = change(document)
        document = document if changed is None else changed
        replace_file(bundle, CERTIFICATE, json.dumps(document).encode())

    return apply


def swapped_head(bundle: Path, place: Place) -> None:
    name = "text_features.safetensors"
    data = (bundle / name).read_bytes()
    replace_file(bundle, name, data[:-8] + data[-4:] + data[-8:-4])  # of the same length


def other_preprocessing(bundle: Path, place: Place) -> None:
    document = json.loads((bundle / "preprocess_cfg.json").read_bytes())
    document["mean"] = [0.1, 0.2, 0.3]
    replace_file(bundle, "preprocess_cfg.json", json.dumps(document).encode())


def plan(change: Callable[[Path], object], command: str = "bench") -> Act:
    """A float file beside the bundle needs the plan."""

    def act(place: Place) -> list[str]:
        run = place.run()
        change(run)
        bundle = str(run / "tiny.regcache")
        words = ["bench", bundle, "--compare", "fp32,int8", "--engine", "onnxruntime"]
        return [*words, "--batch", "1", "--rounds", "1", "--seconds", "1", "--no-memory"]

    return act


def plan_json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        document = json.loads((run / "plan.json").read_bytes())
        change(document)
        (run / "plan.json").write_text(json.dumps(document))

    return apply


def plan_tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Other tensors, with the right hash."""

    def apply(run: Path) -> None:
        path = run / "plan.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        plan_json(lambda document: document.update(tensors_sha256=digest))(run)

    return apply


def bare(command: str, make: Callable[[Path], object], *more: str) -> Act:
    """A command on an .onnx file."""

    def act(place: Place) -> list[str]:
        path = place.given / "x.onnx"
        make(path)
        return [command, str(path), *more]

    return act


def text(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def text_of(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes(data)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def forget(bundle: Path, name: str) -> None:
    """The manifest does not list it any more."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    del manifest["files"][name]
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def cut_images(bundle: Path) -> None:
    name = next(
        p.name
        for p in bundle.iterdir()
        if p.name.startswith("certificate") and p.name != CERTIFICATE
    )
    replace_file(bundle, name, (bundle / name).read_bytes()[:-100])


def uncertified(bundle: Path, place: Place) -> None:
    (bundle / CERTIFICATE).unlink()
    forget(bundle, CERTIFICATE)


def huge(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, 4 << 30)


fault = partial(Fault, "bundles", error=BundleError)
CLASSES: dict[bool, type[RegCacheError]] = {True: BundleError, False: EngineError}
SHARED = (
    *("no manifest", "truncated model", "changed model", "missing model", "linked model"),
    *("unlisted file", "newer schema", "schema as truth", "traversal", "absolute", "zero byte"),
    *(
        "deep manifest",
        "endless manifest",
        "bad UTF-8",
        "lying head",
        "head of NaN",
        "scale of NaN",
    ),
    *("pipe as model", "no ONNX", "other size", "features beyond int32"),
)
"""Rows of the table that are executed here, too; the readers' own tests execute them all."""

FAULTS = [
    *(
        fault(
            name.replace(" ", "-"),
            f"{name} (shared with C++)",
            known(name),
            error=CLASSES[DAMAGES[name][0].startswith("BUNDLE")],
        )
        for name in SHARED
    ),
    *(
        fault(
            f"weights-{name}",
            f"a weight in {location}",
            evaluate(model(external(location))),
            error=EngineError,
            traced=True,
            seconds=90,
            quick=False,
        )
        for name, location in {
            "above": "../../../outside/secret",
            "absolute": "/etc/hostname",
            "device": "/dev/zero",
        }.items()
    ),
    fault("weights-link", "a weight behind a hidden link", evaluate(linked_weights),
          error=EngineError, traced=True, seconds=90, quick=False),
    fault("weights-hard-link", "a weight behind a hard link", evaluate(hard_linked_weights),
          error=EngineError),
    fault("circle", "a graph that is a circle", evaluate(model(circle)), error=EngineError),
    fault("constant-twice", "two scales of one name", verify(model(twice)),
          error=VerificationError),
    fault("opset", "opset 9999", evaluate(model(
        lambda m: setattr(m.opset_import[0], "version", 9999))), error=EngineError),
    fault("operator", "an operator of nobody", evaluate(model(
        lambda m: setattr(m.graph.node[3], "op_type", "Telnet"))), error=EngineError),
    fault("domain", "an operator of a custom library", evaluate(model(
        lambda m: setattr(m.graph.node[3], "domain", "custom"))), error=EngineError),
    fault("scale", "a scale that is 1 % larger", verify(model(scale_of(1.01))),
          error=VerificationError, says="not the certified one"),
    fault("scale-zero", "a scale of 0", verify(model(scale_of(0))), error=VerificationError),
    fault("scale-nan", "a scale of NaN", verify(model(scale_of(float("nan")))),
          error=VerificationError),
    fault("head-swapped", "other text features, with the right hash", verify(swapped_head),
          error=VerificationError),
    fault("preprocessing", "another mean, with the right hash", verify(other_preprocessing),
          error=VerificationError),
    fault("certificate-list", "a certificate that is a list", verify(certificate(lambda c: []))),
    fault("certificate-empty", "a certificate of nothing", verify(certificate(lambda c: {}))),
    fault("certificate-none", "no certificate", verify(uncertified)),
    fault("certificate-text", "a certificate of 100,000 lists", verify(
        lambda b, p: replace_file(b, CERTIFICATE, b"[" * 100_000))),
    fault("certificate-images", "certificate images that are cut", verify(
        lambda b, p: cut_images(b))),
    fault("plan-missing", "no plan", plan(lambda run: (run / "plan.json").unlink())),
    fault("plan-cut", "half a plan", plan(lambda run: halve(run / "plan.json"))),
    fault("plan-tensors-cut", "half the tensors", plan(
        lambda run: halve(run / "plan.safetensors"))),
    fault("plan-list", "a plan that is a list", plan(text_of("plan.json", b"[]"))),
    fault("plan-deep", "a plan of 100,000 lists", plan(text_of("plan.json", b"[" * 100_000))),
    fault("plan-schema", "a plan of schema 99", plan(plan_json(lambda d: d.update(schema=99)))),
    fault("plan-other", "the plan of another bundle", plan(plan_tensors(
        lambda t: t.update({k: v + 1 for k, v in t.items() if k.endswith("pos_embed")})))),
    fault("plan-depth", "a plan of 10**9 blocks", plan(plan_json(
        lambda d: d["encoder"].update(depth=10**9)))),
    fault("plan-pipe", "a pipe as the plan", plan(lambda run: pipe(run / "plan.json"))),
    fault("check-garbage", "`check` of random bytes", bare("check", text(os.urandom(999)))),
    fault("check-empty", "`check` of 0 bytes", bare("check", text(b""))),
    fault("check-absent", "`check` of nothing", bare("check", lambda path: None)),
    fault("check-pipe", "`check` of a pipe", bare("check", os.mkfifo)),
    fault("check-huge", "`check` of 4 GiB of zeros", bare("check", huge)),
    fault("build-other", "`build` of a folder of images", lambda p: [
        "build", str(p.images()), "--engine", "onnxruntime", "--output", str(p.out)]),
    fault("report-empty", "`report` of a folder of images", lambda p: [
        "report", str(p.images())], error=DataError),
]  # fmt: skip
