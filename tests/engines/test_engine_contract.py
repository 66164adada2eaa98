"""What every engine owes its callers: threads, close during use, fork."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regcache_engines.engine import Array, FloatArray
from regcache_engines.engine_base import BaseEngine
from regcache_engines.errors import EngineError
from regcache_engines.load import load_engine
from regcache_engines.tensorrt.engine import TensorRTEngine
from regcache_export.bundle import write_bundle
from tests.engines import tensorrt_fakes
from tests.tiny_plans import tiny_images, tiny_plan

THREADS, CALLS = 4, 60
KINDS = ("onnxruntime", "onnxruntime in pieces", "onnxruntime mapped", "openvino", "tensorrt")


@dataclass
class Loaded:
    """An engine, how to load another one, and a batch of its own for every thread."""

    engine: Any
    again: Callable[[], Any]
    batches: list[Array]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tiny_plan(), tmp_path_factory.mktemp("contract") / "tiny.regcache")


@pytest.fixture(params=KINDS)
def loaded(
    request: pytest.FixtureRequest, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Loaded]:
    runtime, _, form = request.param.partition(" ")
    folder = tmp_path / "mapped" if form == "mapped" else None

    def load() -> Any:
        if runtime == "tensorrt":
            tensorrt_fakes.fake_machine(monkeypatch)
            return TensorRTEngine(tensorrt_fakes.write(tmp_path))
        pytest.importorskip(runtime)
        threads = 2 if form else 1
        return load_engine(bundle, threads=threads, runtime=runtime, mmap_folder=folder)

    if runtime == "tensorrt":
        batches: list[Array] = [tensorrt_fakes.images(count) for count in range(1, THREADS + 1)]
    else:
        images = tiny_images(4 * THREADS).numpy()
        each = 4 if form else 1
        batches = [images[each * i : each * (i + 1)] for i in range(THREADS)]
    engine = load()
    yield Loaded(engine, load, batches)
    engine.close()


def run_threads(work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)


def test_every_thread_gets_its_own_features(loaded: Loaded) -> None:
    alone = [loaded.engine.infer(batch) for batch in loaded.batches]
    assert not np.array_equal(alone[0][0], alone[1][0])
    right = [0] * THREADS

    def work(index: int) -> None:
        for _ in range(CALLS):
            right[index] += np.array_equal(loaded.engine.infer(loaded.batches[index]), alone[index])

    run_threads(work)
    assert right == [CALLS] * THREADS


def test_close_waits_for_who_is_inside(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, order = loaded.engine, list[str]()
    expected = engine.infer(loaded.batches[0])
    inside, go = threading.Event(), threading.Event()
    features, release = engine._features, engine._release

    def slow(images: Array) -> FloatArray:
        inside.set()
        assert go.wait(timeout=30)
        result: FloatArray = features(images)
        order.append("features")
        return result

    def releases() -> None:
        order.append("release")
        release()

    monkeypatch.setattr(engine, "_features", slow)
    monkeypatch.setattr(engine, "_release", releases)
    got = list[FloatArray]()
    caller = threading.Thread(target=lambda: got.append(engine.infer(loaded.batches[0])))
    caller.start()
    assert inside.wait(timeout=30)
    closers = [threading.Thread(target=engine.close) for _ in range(2)]
    for closer in closers:
        closer.start()
    for _ in range(3000):
        if engine._gate._closed:
            break
        time.sleep(0.01)
    with pytest.raises(EngineError, match="closed"):
        engine.infer(loaded.batches[1])
    assert order == []
    go.set()
    for thread in (caller, *closers):
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert order == ["features", "release"]
    np.testing.assert_array_equal(got[0], expected)


def test_close_under_load(loaded: Loaded) -> None:
    """Right features or 'closed', for all; and nobody waits for ever."""
    alone = [loaded.engine.infer(batch) for batch in loaded.batches]
    begun, wrong = threading.Barrier(THREADS + 1), list[object]()

    def work(index: int) -> None:
        begun.wait(timeout=30)
        while True:
            try:
                features = loaded.engine.infer(loaded.batches[index])
            except EngineError as error:
                if "closed" not in str(error):
                    wrong.append(error)
                return
            if not np.array_equal(features, alone[index]):
                wrong.append(index)

    closer = threading.Thread(target=lambda: (begun.wait(timeout=30), loaded.engine.close()))
    closer.start()
    run_threads(work)
    closer.join(timeout=30)
    assert not closer.is_alive()
    assert not wrong


def test_a_thread_inside_cannot_close(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal's handler may try; it would wait for its own thread."""

    def closes(images: Array) -> FloatArray:
        loaded.engine.close()
        raise AssertionError("closed from inside")

    monkeypatch.setattr(loaded.engine, "_features", closes)
    with pytest.raises(EngineError, match="inside"):
        loaded.engine.infer(loaded.batches[0])


@pytest.mark.parametrize("action", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_engine_is_not_pickled(action: Callable[[Any], Any], loaded: Loaded) -> None:
    """A spawned process gets the path; Python's own words were of a lock inside."""
    with pytest.raises(EngineError, match="pass the bundle's path"):
        action(loaded.engine)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_is_refused_and_loads_its_own(loaded: Loaded) -> None:
    expected = loaded.engine.infer(loaded.batches[0])
    child = os.fork()
    if child == 0:
        outcome = 1
        try:
            signal.alarm(20)  # ends a child that waits for ever
            outcome = in_child(loaded, expected)
        finally:
            os._exit(outcome)
    _, status = os.waitpid(child, 0)
    assert not os.WIFSIGNALED(status), "the child hung"
    assert os.waitstatus_to_exitcode(status) == 0
    np.testing.assert_array_equal(loaded.engine.infer(loaded.batches[0]), expected)


def in_child(loaded: Loaded, expected: FloatArray) -> int:
    try:
        loaded.engine.infer(loaded.batches[0])
    except EngineError as error:
        if "fork" not in str(error):
            return 2
    else:
        return 3
    loaded.engine.close()
    loaded.engine = loaded.again()  # drops the parent's, whose destructor would join its threads
    with loaded.engine:
        return 0 if np.array_equal(loaded.engine.infer(loaded.batches[0]), expected) else 4


def test_a_fork_while_others_are_inside(loaded: Loaded) -> None:
    """The child finds the gate as the parent's threads held it, and does not wait for them."""
    assert isinstance(loaded.engine, BaseEngine)
    gate = loaded.engine._gate
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with gate._changed:
            held.set()
            go.wait(timeout=30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(timeout=30)
    gate._pid -= 1  # as a child sees it
    try:
        with pytest.raises(EngineError, match="fork"):
            loaded.engine.infer(loaded.batches[0])
        loaded.engine.close()
    finally:
        gate._pid += 1
        go.set()
        holder.join(timeout=30)


CHILD_ENDS = """
import os, sys
import numpy as np
from regcache_engines import load_engine
engine = load_engine(sys.argv[1], threads=2, runtime=sys.argv[2])
engine.infer(np.zeros((8, 3, *engine.image_size), np.float32))
child = os.fork()
if child == 0:
    sys.exit(3)  # through the interpreter's end, which destroys what is left
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_forked_child_ends(runtime: str, bundle: Path) -> None:
    """Its runtime's destructors would wait for threads that it does not have."""
    pytest.importorskip(runtime)
    known = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", CHILD_ENDS, str(bundle), runtime]
    process = subprocess.Popen(command, env=known, start_new_session=True)
    try:
        assert process.wait(timeout=60) == 3
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the child, too
