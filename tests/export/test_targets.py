"""The tuned target computes what the portable one does, in integers, and the options reach it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from regcache_deploy.quantization.choice import chosen_baseline
from regcache_deploy.quantization.keep_float import choose_float_layers
from regcache_deploy.quantization.saturation import warn_about_saturation
from regcache_deploy.quantization.settings import layer_names
from regcache_deploy.run.options import ExportOptions
from regcache_engines.cpu_flags import has_exact_products
from regcache_engines.errors import EngineError
from regcache_engines.load import load_engine
from regcache_export.bundle import write_bundle
from regcache_export.errors import ConfigError
from regcache_export.graph import build_model, serialize
from regcache_export.inspect import integer_gemms, optimized_op_counts
from regcache_export.targets import TARGETS, GraphOptions, PixelLayout, find_target
from tests.tiny_plans import PREPROCESS, tiny_images, tiny_plan

pytest.importorskip("onnxruntime")

TUNED = GraphOptions(target="onnxruntime")
CPU_TARGETS = ("onnx", "onnxruntime")


def features(folder: Path, options: GraphOptions, images: np.ndarray, **changes: Any) -> np.ndarray:
    path = write_bundle(
        tiny_plan(**changes), folder / f"{options.target}.regcache", options=options
    )
    with load_engine(path, threads=1, optimize=False) as engine:
        return np.asarray(engine.infer(images))


@pytest.mark.parametrize(
    "changes",
    [{}, {"activation": "quick_gelu"}, {"pool": "avg"}, {"width": 40, "heads": 5}],
    ids=str,
)
def test_both_targets_compute_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    images = tiny_images(3).numpy()
    portable = features(tmp_path, GraphOptions(), images, **changes)
    tuned = features(tmp_path, TUNED, images, **changes)
    similar = torch.cosine_similarity(torch.tensor(portable), torch.tensor(tuned))
    assert similar.min() > 0.9999


@pytest.mark.parametrize("target", CPU_TARGETS)
@pytest.mark.parametrize("batch", [None, 1, 4])
def test_every_linear_is_an_integer_product(target: str, batch: int | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    options = GraphOptions(target=target, batch=batch)
    path.write_bytes(serialize(build_model(tiny_plan(), options=options)))
    assert integer_gemms(path) == (12 if target == "onnx" else 18)
    counts = optimized_op_counts(path)
    assert counts["DequantizeLinear"] == 0
    assert counts["QuantizeLinear"] == 12
    if target == "onnxruntime":
        assert counts["MultiHeadAttention"] == 3
        assert counts["Transpose"] == 1  # of the patches


def test_the_same_codes_in_another_container() -> None:
    portable, tuned = (
        build_model(tiny_plan(), options=GraphOptions(target=t)) for t in CPU_TARGETS
    )
    values = [
        {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        for model in (portable, tuned)
    ]
    name = "blocks.1.mlp.fc1"
    assert np.array_equal(values[0][f"{name}.weight"], values[1][f"{name}.weight"])
    assert values[0][f"{name}.input_zero_point"] == 0
    assert values[1][f"{name}.input_zero_point"] == 128
    assert {o.domain for o in tuned.opset_import} == {"", "com.microsoft"}
    assert {o.domain for o in portable.opset_import} == {""}


@pytest.mark.parametrize("target", CPU_TARGETS)
def test_deterministic_bytes(target: str) -> None:
    options = GraphOptions(target=target, pixels="nhwc", batch=2)
    first, second = (serialize(build_model(tiny_plan(), options=options)) for _ in range(2))
    assert first == second
    properties = {p.key: p.value for p in onnx.load_from_string(first).metadata_props}
    assert properties["regcache.target"] == target
    assert properties["regcache.pixels"] == "nhwc"


@pytest.mark.parametrize("target", CPU_TARGETS)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_baked_preprocessing(layout: PixelLayout, target: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 24, 3), dtype=np.uint8)
    mean, std = (np.array(PREPROCESS[key], np.float32) for key in ("mean", "std"))
    normalized = ((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2).copy()
    plain = features(tmp_path, GraphOptions(target=target), normalized)
    options = GraphOptions(target=target, pixels=layout)
    path = write_bundle(tiny_plan(), tmp_path / "baked.regcache", options=options)
    raw = pixels if layout == "nhwc" else pixels.transpose(0, 3, 1, 2).copy()
    with load_engine(path, threads=1) as engine:
        assert engine.pixels == layout
        assert engine.image_size == (32, 24)
        baked = engine.infer(raw)
        with pytest.raises(EngineError, match="uint8"):
            engine.infer(normalized)
        with pytest.raises(EngineError, match="batch"):
            engine.infer(raw[:, :, :5])
    assert torch.cosine_similarity(torch.tensor(plain), torch.tensor(baked)).min() > 0.9999


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_fixed_batch_takes_any_number_of_images(runtime: str, tmp_path: Path) -> None:
    pytest.importorskip(runtime)
    plan, images = tiny_plan(), tiny_images(5).numpy()
    free = write_bundle(plan, tmp_path / "free.regcache")
    fixed = write_bundle(plan, tmp_path / "two.regcache", options=GraphOptions(batch=2))
    assert onnx.load(fixed / "model.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value
    with load_engine(free, threads=1) as engine:
        expected = np.concatenate([engine.infer(images[i : i + 1]) for i in range(5)])
    with load_engine(fixed, threads=1, runtime=runtime) as engine:
        for count in (1, 2, 5):
            found = engine.infer(images[:count])
            assert found.shape == (count, 20)
            similar = torch.cosine_similarity(torch.tensor(found), torch.tensor(expected[:count]))
            assert similar.min() > 0.9999


@pytest.mark.parametrize("target", CPU_TARGETS)
def test_openvino_runs_a_bundle(target: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    options = GraphOptions(target=target)
    path = write_bundle(tiny_plan(), tmp_path / "tiny.regcache", options=options)
    images = tiny_images(3).numpy()
    with load_engine(path, threads=1) as one, load_engine(path, runtime="openvino") as two:
        assert two.image_size == one.image_size
        assert two.output_dim == one.output_dim
        first, second = (torch.tensor(engine.infer(images)) for engine in (one, two))
    assert torch.cosine_similarity(first, second).min() > 0.999
    with pytest.raises(EngineError, match="closed"):
        two.infer(images)


@pytest.mark.parametrize("target", CPU_TARGETS)
def test_openvino_leaves_the_probes_alone(target: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    options = GraphOptions(target=target, probes=3)
    path = write_bundle(tiny_plan(), tmp_path / "tiny.regcache", options=options)
    with load_engine(path, threads=1) as one, load_engine(path, runtime="openvino") as two:
        first, second = (
            torch.tensor(engine.infer(tiny_images(3).numpy())) for engine in (one, two)
        )
    assert torch.cosine_similarity(first, second).min() > 0.999


def test_openvino_refuses_what_it_cannot_run(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(EngineError, match="OpenVINO cannot load"):
        load_engine(broken, runtime="openvino")
    with pytest.raises(EngineError, match="no model at"):
        load_engine(tmp_path / "none.onnx", runtime="openvino")
    with pytest.raises(EngineError, match="unknown runtime"):
        load_engine(broken, runtime="tvm")


# ---- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": "tflite"},
        {"bake_preprocess": "chw"},
        {"batch": 0},
        {"no_fold": "value_bias"},
        {"keep_float": "blocks.1.conv"},
        {"budget": -1.0},
        {"certificate_images": 0},
    ],
    ids=str,
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ExportOptions(**wrong)


def test_options_reach_the_baseline() -> None:
    options = ExportOptions(
        no_fold="value-bias, cls-only", keep_float="blocks.7.fc2,blocks.0.attn.qkv", balance=True
    )
    baseline = chosen_baseline(options, 0)
    assert baseline.folds == ("layer-scale", "key-bias", "value-balance")
    assert baseline.keep_float == {"blocks.7.mlp.fc2", "blocks.0.attn.qkv"}
    assert options.graph.without == ("cls-only",)
    assert layer_names("") == frozenset()


def test_reduced_range_means_seven_bit_weights() -> None:
    assert chosen_baseline(ExportOptions(reduce_range=True), 0).bits.weight == 7
    assert chosen_baseline(ExportOptions(reduce_range=True, bits="W6A6"), 0).bits.weight == 6
    assert chosen_baseline(ExportOptions(), 0).bits.weight == 8


@pytest.mark.parametrize(
    ("flags", "exact"),
    [("fpu avx2 avx512f", False), ("fpu avx512_vnni", True), ("avx_vnni", True), (None, None)],
)
def test_a_cpu_without_vnni_is_warned_about(
    flags: str | None, exact: bool | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"processor : 0\nflags : {flags}\n")
    assert has_exact_products(cpuinfo) is exact
    assert warn_about_saturation(8, cpuinfo) is (exact is not True)
    assert ("--reduce-range" in caplog.text) is (exact is not True)
    assert not warn_about_saturation(ExportOptions(reduce_range=True).weight_bits, cpuinfo)


def test_auto_keeps_as_few_layers_in_float_as_needed() -> None:
    ranking = [f"layer{i}" for i in range(12)]
    asked: list[int] = []

    def score(names: frozenset[str]) -> float:
        assert names == frozenset(ranking[: len(names)])
        asked.append(len(names))
        return 0.5 + 0.04 * len(names)

    choice = choose_float_layers(ranking, score, 0.7, 0.0)
    assert (len(choice.names), choice.within) == (5, True)
    assert len(asked) == len(set(asked)) <= 7
    assert not choose_float_layers(ranking, score, 2.0, 0.0).within
    assert choose_float_layers(ranking, score, 0.7, 0.3).names == frozenset()


def test_an_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="onnxruntime"):
        find_target("tvm")
    for target in TARGETS.values():
        assert target.evidence, f"{target.name} does not say why it has these forms"
