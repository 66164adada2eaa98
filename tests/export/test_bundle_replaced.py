"""A bundle that is replaced: killed at any step, under readers, and behind a loaded engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load, save

from regcache_deploy.cli.check import read_model
from regcache_engines import Bundle, files, load_engine
from regcache_engines.bundle import MODEL, TEXT_FEATURES
from regcache_engines.errors import BundleError, EngineError
from regcache_export.bundle import add_files, write_bundle
from regcache_export.pack.towers import image_tower
from regcache_export.triton import write_model_repository
from tests.tiny_plans import tiny_images, tiny_plan

STEPS = ("fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = write_bundle(tiny_plan(), tmp_path_factory.mktemp("first") / "x.regcache")
    add_files(bundle, {"note.txt": b"old"})
    return bundle


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "x.regcache"))


def kill_at(step: int, action: Callable[[], Any]) -> bool:
    """Run in a child that is killed behind a file operation; False if it ended before."""
    child = os.fork()
    if child == 0:
        done = 0

        def counted(real: Any) -> Any:
            def call(*words: Any, **options: Any) -> Any:
                nonlocal done
                result = real(*words, **options)
                done += 1
                if done == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        files.exchange = counted(files.exchange)
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("exchanges", [True, False])
def test_killed_at_any_step_the_old_or_the_new_one_is_there(
    exchanges: bool, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:  # as on NFS: then the next writer gives the old one its name back
        monkeypatch.setattr(files, "exchange", lambda one, other: False)
    step, left = 1, 0
    while kill_at(step, lambda: add_files(bundle, {"note.txt": b"new"})):
        if exchanges:
            assert Bundle.open(bundle).read("note.txt") in (b"old", b"new")
        left += len(os.listdir(bundle.parent)) > 1
        add_files(bundle, {"note.txt": b"old"})
        assert os.listdir(bundle.parent) == [bundle.name]
        step += 1
    assert step > 10
    assert left > 5, "no step left anything behind: nothing was tried"


def test_a_living_writers_folder_is_left_alone(bundle: Path) -> None:
    with files.staged_folder(bundle) as staging:
        shutil.copytree(bundle, staging, dirs_exist_ok=True)
        add_files(bundle, {"note.txt": b"from another"})
        assert (staging / MODEL).is_file()
        add = Bundle.open(bundle).read("note.txt")
        assert add == b"from another"
    assert Bundle.open(bundle).read("note.txt") == b"old"
    assert os.listdir(bundle.parent) == [bundle.name]


def test_readers_see_whole_bundles_only(bundle: Path) -> None:
    stop, opened, failed = threading.Event(), [0], list[BundleError]()

    def read() -> None:
        while not stop.is_set():
            try:
                Bundle.open(bundle)
                opened[0] += 1
            except BundleError as error:
                failed.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for index in range(40):
        add_files(bundle, {"note.txt": str(index).encode()})
    stop.set()
    for reader in readers:
        reader.join(timeout=30)
    assert opened[0] > 0
    assert not failed


def test_what_was_checked_is_what_is_used(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    before = opened.text_features.copy()
    stale = Bundle.open(bundle)
    head = (bundle / TEXT_FEATURES).read_bytes()
    metadata = metadata_of(head)
    turned = np.ascontiguousarray(load(head)["text_features"][::-1])
    model = onnx.load(bundle / MODEL)
    model.producer_name = "another"
    new = {
        TEXT_FEATURES: save({"text_features": turned}, metadata),
        MODEL: model.SerializeToString(),
    }
    add_files(bundle, new)
    np.testing.assert_array_equal(stale.text_features, before)
    np.testing.assert_array_equal(Bundle.open(bundle).text_features, before[::-1])
    with pytest.raises(BundleError, match="another file"):
        stale.read(MODEL)
    with pytest.raises(EngineError, match="changed since"):
        load_engine(stale)


def metadata_of(head: bytes) -> dict[str, str]:
    end = 8 + int.from_bytes(head[:8], "little")
    metadata: dict[str, str] = json.loads(head[8:end])["__metadata__"]
    return metadata


def test_the_second_session_is_of_the_same_model(bundle: Path) -> None:
    """Large batches load the model again, by then perhaps from another bundle of this name."""
    images = tiny_images(8).numpy()
    with load_engine(bundle, threads=1) as engine:
        expected = engine.infer(images)
    with load_engine(bundle, threads=2) as engine:
        engine.infer(images[:1])
        other = write_bundle(tiny_plan(projection=False), bundle)
        np.testing.assert_array_equal(engine.infer(images), expected)
    with load_engine(other / MODEL, threads=2) as engine:  # no manifest says what it must be
        engine.infer(images[:1])
        model = (other / MODEL).read_bytes()
        (other / MODEL).unlink()
        (other / MODEL).write_bytes(model + b"\x0a\x00")
        with pytest.raises(EngineError, match="changed since"):
            engine.infer(images)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("location", [".weights", "model.weights"])
def test_weights_beside_the_model_are_not_read(
    location: str, runtime: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hidden file is in no manifest, so that nothing would notice another one in its place."""
    pytest.importorskip(runtime)
    model = onnx.load(bundle / MODEL)
    onnx.save(
        model, bundle / MODEL, save_as_external_data=True, location=location, size_threshold=0
    )
    for name in os.listdir(bundle):
        if name.endswith("weights"):
            shutil.copy(bundle / name, bundle.parent / name)
            if not name.startswith("."):
                (bundle / name).unlink()
    rehash(bundle, (bundle / MODEL).read_bytes())
    monkeypatch.chdir(bundle.parent)  # where ONNX Runtime looks for the weights of bytes
    with pytest.raises(EngineError, match="in other files"):
        load_engine(Bundle.open(bundle), threads=1, runtime=runtime)


def test_a_graph_that_names_other_files_is_handed_to_nobody(bundle: Path, tmp_path: Path) -> None:
    """A pack, a Triton repository: another program opens them by their path."""
    model = onnx.load(bundle / MODEL)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    (bundle / MODEL).write_bytes(model.SerializeToString())
    rehash(bundle, (bundle / MODEL).read_bytes())
    opened, out = Bundle.open(bundle), tmp_path / "out"
    actions: list[Callable[[], object]] = [
        lambda: opened.read(MODEL),
        lambda: image_tower(opened),
        lambda: write_model_repository(opened, out),
        lambda: read_model(bundle),
    ]
    for action in actions:
        with pytest.raises(BundleError, match="in other files"):
            action()
    assert not out.exists()


def rehash(bundle: Path, data: bytes) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["files"][MODEL] = {"sha256": files.sha256_bytes(data), "size": len(data)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_one_process_at_a_time_holds_a_folder(tmp_path: Path) -> None:
    folder, inside = tmp_path / "out", threading.Event()

    def second() -> None:
        with files.held(folder):
            inside.set()

    with files.held(folder):
        thread = threading.Thread(target=second)
        thread.start()
        assert not inside.wait(0.2)
    thread.join(10)
    assert inside.is_set()
    (tmp_path / "file").touch()
    with files.held(tmp_path / "file" / "x"):  # cannot be made: what writes there says so
        pass


def test_a_link_to_a_bundle_stays_a_link(tmp_path: Path) -> None:
    place, link = tmp_path / "disk" / "a.regcache", tmp_path / "a.regcache"
    place.parent.mkdir()
    write_bundle(tiny_plan(), place)
    link.symlink_to(place)
    before = Bundle.open(link).manifest["files"]
    add_files(link, {"note.txt": b"new"})
    assert link.is_symlink()
    assert set(Bundle.open(place).manifest["files"]) - set(before) == {"note.txt"}
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "a.regcache"}
    assert [path.name for path in place.parent.iterdir()] == ["a.regcache"]
