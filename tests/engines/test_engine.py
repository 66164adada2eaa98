"""The engine refuses what it cannot run, and says so with the right error."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from regcache_engines import Bundle, Engine, engine_base, load_engine, zero_shot
from regcache_engines.errors import BundleError, EngineError
from regcache_engines.onnxruntime_engine import OnnxRuntimeEngine
from regcache_engines.onnxruntime_session import import_onnxruntime
from regcache_export.bundle import write_bundle
from regcache_export.inspect import integer_gemms
from tests.tiny_plans import tiny_images, tiny_plan

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tiny_plan(), tmp_path_factory.mktemp("engine") / "tiny.regcache")


@pytest.fixture
def engine(bundle: Path) -> Engine:
    return load_engine(bundle, threads=1)


def images(count: int = 2) -> np.ndarray:
    return tiny_images(count).numpy()


def test_infer(engine: Engine) -> None:
    assert (engine.image_size, engine.output_dim) == ((32, 24), 20)
    features = engine.infer(images(5))
    assert features.shape == (5, 20)
    assert features.dtype == np.float32
    # deletion is decided per image: the batch does not matter
    np.testing.assert_allclose(engine.infer(images(5)[3:4]), features[3:4], atol=1e-5)


def test_every_way_to_name_a_model(bundle: Path) -> None:
    expected = load_engine(Bundle.open(bundle)).infer(images())
    for source in (bundle, str(bundle), bundle / "model.onnx", str(bundle / "model.onnx")):
        np.testing.assert_allclose(load_engine(source).infer(images()), expected, atol=1e-5)


def test_without_optimizations_the_graph_gives_the_same(bundle: Path, engine: Engine) -> None:
    plain = load_engine(bundle, optimize=False).infer(images())
    cosine = F.cosine_similarity(torch.from_numpy(plain), torch.from_numpy(engine.infer(images())))
    assert cosine.min() > 0.9999


def test_views_are_accepted(engine: Engine) -> None:
    expected = engine.infer(images(3))
    flipped = np.ascontiguousarray(images(3)[::-1])[::-1]
    assert not flipped.flags.c_contiguous
    np.testing.assert_array_equal(engine.infer(flipped), expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((2, 3, 32, 24)), "float64"),
        (np.zeros((2, 3, 32, 24), np.uint8), "uint8"),
        (np.zeros((3, 32, 24), np.float32), r"\[batch, 3, 32, 24\]"),
        (np.zeros((2, 32, 24, 3), np.float32), r"\[batch, 3, 32, 24\]"),
        (np.zeros((2, 3, 24, 32), np.float32), r"\[batch, 3, 32, 24\]"),
        (np.zeros((0, 3, 32, 24), np.float32), "no image"),
        ([[1.0]], "not list"),
        (torch.zeros(2, 3, 32, 24), "not Tensor"),
    ],
)
def test_wrong_images_are_refused(engine: Engine, wrong: Any, message: str) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        engine.infer(wrong)
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_pixel_is_an_error_and_names_the_image(engine: Engine, bad: float) -> None:
    pixels = images(4)
    pixels[2, 1, 5, 5] = bad
    with pytest.raises(EngineError, match=r"image 2.*pixels"):
        engine.infer(pixels)


def test_bad_features_are_an_error(bundle: Path) -> None:
    features = np.zeros((3, 20), np.float32)
    features[1, 7] = np.nan
    engine = OnnxRuntimeEngine(bundle / "model.onnx", optimize=False)  # in one piece
    engine._session = SimpleNamespace(run=lambda names, feed: [features])
    with pytest.raises(EngineError, match="image 1"):
        engine.infer(images(3))
    with pytest.raises(EngineError, match="shape"):
        engine.infer(images(2))


def test_closing_gives_the_memory_back(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = load_engine(bundle, threads=2, pieces=True)
    left = list[tuple[object, object]]()
    trim = lambda: left.append((engine._session, engine._pieces._single))  # noqa: E731
    monkeypatch.setattr(engine_base, "trim_heap", trim)
    engine.close()
    engine.close()
    assert left == [(None, None)]


def test_a_closed_engine_refuses(bundle: Path) -> None:
    with load_engine(bundle) as engine:
        engine.infer(images())
    with pytest.raises(EngineError, match="closed"):
        engine.infer(images())


def test_no_pipe_is_waited_for(bundle: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(EngineError, match="no model"):
        load_engine(pipe)
    with pytest.raises(BundleError, match="no regular file"):
        Bundle.open(bundle).with_head(pipe)


def test_bad_models_are_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no model"):
        load_engine(tmp_path / "nothing.onnx")
    with pytest.raises(BundleError, match="not a bundle"):
        load_engine(tmp_path)
    for threads in (0, 4097):
        with pytest.raises(EngineError, match=f"threads is {threads}"):
            load_engine(bundle, threads=threads)
    for data in (b"", b"not an onnx file", (bundle / "model.onnx").read_bytes()[:5000]):
        (tmp_path / "bad.onnx").write_bytes(data)
        with pytest.raises(EngineError, match=r"cannot load.*bad\.onnx"):
            load_engine(tmp_path / "bad.onnx")
        with pytest.raises(EngineError, match=r"cannot load.*bad\.onnx"):
            integer_gemms(tmp_path / "bad.onnx")


@pytest.mark.parametrize("what", ["opset", "ir_version"])
def test_a_file_newer_than_the_runtime_says_so(what: str, bundle: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(bundle / "model.onnx")
    if what == "opset":
        model.opset_import[0].version = 99
    else:
        model.ir_version = 99
    onnx.save(model, tmp_path / "future.onnx")
    with pytest.raises(EngineError, match=r"ONNX Runtime [\d.]+ is older than the file: upgrade"):
        load_engine(tmp_path / "future.onnx")


def test_a_model_with_another_contract_is_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "relu.onnx")
    with pytest.raises(EngineError, match=r"\[batch, 3, H, W\]"):
        load_engine(tmp_path / "relu.onnx")


def test_a_provider_that_is_not_there_is_refused(bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"no RocketExecutionProvider.*CPUExecutionProvider"):
        load_engine(bundle, provider="RocketExecutionProvider")


def test_a_silent_fall_back_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(
        SessionOptions=onnxruntime.SessionOptions,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        InferenceSession=lambda *args, **kwargs: SimpleNamespace(
            get_providers=lambda: ["CPUExecutionProvider"]
        ),
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    with pytest.raises(EngineError, match="fell back to CPUExecutionProvider"):
        load_engine(bundle, provider="CUDAExecutionProvider")


def test_missing_onnxruntime_names_the_extra(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for action in (load_engine, integer_gemms):
        with pytest.raises(EngineError, match=r"regcache-deploy\[cpu\]"):
            action(bundle / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())  # half uninstalled
    with pytest.raises(EngineError, match=r"regcache-deploy\[cpu\]"):
        import_onnxruntime()


def test_two_distributions_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import_onnxruntime()
    monkeypatch.setattr(metadata, "distribution", lambda name: None)
    with pytest.warns(UserWarning, match="onnxruntime and onnxruntime-gpu"):
        import_onnxruntime()


def test_a_failing_runtime_is_an_engine_error(bundle: Path) -> None:
    engine = OnnxRuntimeEngine(bundle / "model.onnx", threads=1)

    def fail(*args: Any) -> None:
        raise RuntimeError("out of memory")

    engine._session = SimpleNamespace(run=fail)
    with pytest.raises(EngineError, match="out of memory"):
        engine.infer(images())


def test_zero_shot_is_clip() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 20, generator=generator)
    head = F.normalize(torch.randn(7, 20, generator=generator), dim=-1)
    expected = 50.0 * F.normalize(features, dim=-1) @ head.T
    logits = zero_shot(features.numpy(), head.numpy(), 50.0)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert logits.dtype == np.float32
    assert not zero_shot(np.zeros((1, 20), np.float32), head.numpy(), 50.0).any()
    with pytest.raises(EngineError, match="different models"):
        zero_shot(features.numpy(), np.ones((7, 8), np.float32), 1.0)
    with pytest.raises(EngineError, match="different models"):
        zero_shot(features[0].numpy(), head.numpy(), 1.0)


ON_THE_EDGE = """
import sys
import regcache_engines
assert "numpy" not in sys.modules
import numpy as np
with regcache_engines.load_engine(sys.argv[1], threads=1) as engine:
    features = engine.infer(np.zeros((1, 3, 32, 24), np.float32))
bundle = regcache_engines.Bundle.open(sys.argv[1])
regcache_engines.zero_shot(features, bundle.text_features, bundle.logit_scale)
assert not {"torch", "onnx", "regcache_export", "regcache_deploy"} & sys.modules.keys()
"""


def test_the_engine_room_needs_numpy_and_a_runtime_only(bundle: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", ON_THE_EDGE, str(bundle)], env=environment, check=True)


def test_unknown_attribute_of_the_package() -> None:
    import regcache_engines

    with pytest.raises(AttributeError, match="nonsense"):
        _ = regcache_engines.nonsense
