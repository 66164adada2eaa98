"""A bundle as a model repository of Triton: the text parses, and says what the graph says."""

from __future__ import annotations

import importlib

import pytest

from regcache_deploy.errors import BundleError, ConfigError, EngineError
from regcache_engines.bundle import Bundle
from regcache_engines.files import sha256_file
from regcache_engines.load import load_engine
from regcache_engines.tensorrt.sidecar import Profile
from regcache_export.bundle import write_bundle
from regcache_export.targets import GraphOptions
from regcache_export.triton import triton_config, write_model_repository
from tests.cpp.damaging import edit_manifest
from tests.engines.tensorrt_fakes import DATA, write
from tests.tiny_plans import tiny_plan


def model_config(text):
    """Parse with protobuf: the fields of Triton's model_config.proto that are used here."""
    parts = ("descriptor_pb2", "descriptor_pool", "message_factory", "text_format")
    descriptor_pb2, descriptor_pool, message_factory, text_format = (
        importlib.import_module(f"google.protobuf.{part}") for part in parts
    )
    file = descriptor_pb2.FileDescriptorProto(name="m.proto", package="inference", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto

    def enum(name, *values):
        made = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            made.value.add(name=value, number=number)

    def message(title, **fields):
        made = file.message_type.add(name=title)
        for number, (field, (kind, repeated)) in enumerate(fields.items(), 1):
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            added = made.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                added.type_name = f".inference.{kind}"
                added.type = kinds.TYPE_ENUM if kind[0] == "E" else kinds.TYPE_MESSAGE
            else:
                added.type = kind

    text_type, number = kinds.TYPE_STRING, kinds.TYPE_INT64
    enum("EType", "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_FP32")
    enum("EKind", "KIND_AUTO", "KIND_GPU", "KIND_CPU")
    fields = {"name": (text_type, False), "data_type": ("EType", False), "dims": (number, True)}
    message("Tensor", **fields)
    message("Group", count=(number, False), kind=("EKind", False))
    message(
        "Batching",
        max_queue_delay_microseconds=(number, False),
        preferred_batch_size=(number, True),
    )
    message("Cuda", graphs=(kinds.TYPE_BOOL, False))
    message("Optimization", cuda=("Cuda", False))
    message(
        "Config",
        name=(text_type, False),
        platform=(text_type, False),
        backend=(text_type, False),
        max_batch_size=(number, False),
        input=("Tensor", True),
        output=("Tensor", True),
        instance_group=("Group", True),
        dynamic_batching=("Batching", False),
        optimization=("Optimization", False),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.Config"))
    return text_format.Parse(text, kind())


@pytest.mark.parametrize(("pixels", "batch"), [(None, None), ("nhwc", None), (None, 4)])
def test_triton_repository(tmp_path, pixels, batch):
    options = GraphOptions(pixels=pixels, batch=batch)
    bundle = Bundle.open(write_bundle(tiny_plan(), tmp_path / "a b.regcache", options=options))
    place = write_model_repository(bundle, tmp_path / "models")
    assert place == tmp_path / "models" / "a-b"
    config = model_config((place / "config.pbtxt").read_text())
    assert config.name == place.name
    assert config.backend == "onnxruntime"
    with load_engine(place / "1" / "model.onnx") as engine:
        height, width = engine.image_size
        dims = [height, width, 3] if pixels else [3, height, width]
        assert list(config.input[0].dims) == ([batch, *dims] if batch else dims)
        wanted = [batch, engine.output_dim] if batch else [engine.output_dim]
        assert list(config.output[0].dims) == wanted
    assert config.max_batch_size == (0 if batch else 32)
    assert config.HasField("dynamic_batching") is (batch is None)
    assert config.input[0].data_type == (2 if pixels else 3)
    assert write_model_repository(bundle, tmp_path / "models") == place  # again, over itself
    assert config.instance_group[0].kind == 2  # of the list above: KIND_CPU


@pytest.mark.parametrize(("profile", "batch"), [(Profile(1, 4, 8), 8), (Profile(5, 5, 5), 0)])
def test_an_engine_is_served_as_its_sidecar_says(tmp_path, profile, batch):
    bundle, engine = engine_of(tmp_path, profile=profile)
    place = write_model_repository(bundle, tmp_path / "models", engine=engine)
    assert (place / "1" / "model.plan").read_bytes() == DATA
    config = model_config((place / "config.pbtxt").read_text())
    assert (config.platform, config.backend) == ("tensorrt_plan", "")
    assert config.max_batch_size == batch
    assert list(config.input[0].dims) == ([] if batch else [5]) + [3, 4, 4]
    assert list(config.output[0].dims) == ([] if batch else [5]) + [2]
    assert list(config.dynamic_batching.preferred_batch_size) == ([4] if batch else [])
    assert config.instance_group[0].kind == 1
    assert config.optimization.cuda.graphs


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"onnx_sha256": "1" * 64}, EngineError, "another file"),
        ({"engine_sha256": "1" * 64}, EngineError, "not the file that was built"),
        ({"engine": "tensorrt_rtx"}, EngineError, "does not serve"),
        ({"options": {"strip_weights": True}}, EngineError, "no weights"),
        ({"profile": Profile(2, 4, 8)}, ConfigError, "--min-batch 1"),
    ],
)
def test_an_engine_that_triton_could_not_serve(tmp_path, changes, error, message):
    bundle, engine = engine_of(tmp_path, **changes)
    with pytest.raises(error, match=message):
        write_model_repository(bundle, tmp_path / "models", engine=engine)
    assert not (tmp_path / "models").exists()


def engine_of(folder, **changes):
    """A bundle, and what the sidecar says is its engine."""
    bundle = Bundle.open(write_bundle(tiny_plan(), folder / "t.regcache"))
    given = {"onnx_sha256": sha256_file(bundle.model_path)} | changes
    return bundle, write(folder, **given)


def test_what_is_in_the_way_is_left_alone(tmp_path):
    bundle = Bundle.open(write_bundle(tiny_plan(), tmp_path / "t.regcache"))
    (tmp_path / "models" / "t").mkdir(parents=True)
    with pytest.raises(BundleError, match="no model of Triton"):
        write_model_repository(bundle, tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == [tmp_path / "models" / "t"]
    with pytest.raises(ConfigError):
        triton_config(bundle, "t", max_batch=0)


@pytest.mark.parametrize("name", ['x" } ] model_operations { op', "a\nb", "", "ü"])
def test_a_manifest_writes_nothing_of_its_own_into_the_configuration(name, tmp_path):
    """Names of tensors come from the manifest, which no hash covers."""
    bundle = write_bundle(tiny_plan(), tmp_path / "x.regcache")
    edit_manifest(bundle, lambda manifest: manifest["graph"]["output"].update(name=name))
    with pytest.raises(BundleError, match=r"Triton cannot be told|manifest"):
        write_model_repository(Bundle.open(bundle), tmp_path / "models")
    assert not list(tmp_path.glob("models/**/config.pbtxt"))
