"""Batches in pieces: the same features, pieces that fit, work for every thread."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from regcache_engines.engine import Array, FloatArray
from regcache_engines.errors import EngineError
from regcache_engines.load import load_engine
from regcache_engines.pieces import PiecewiseRun, physical_cores, piece_counts, piece_size
from regcache_export.bundle import write_bundle
from regcache_export.targets import GraphOptions
from tests.tiny_plans import tiny_images, tiny_plan


@pytest.mark.parametrize(
    ("tokens", "size"), [(197, 2), (50, 8), (257, 1), (577, 1), (4000, 1), (1, 400)]
)
def test_a_piece_is_about_as_many_tokens_as_the_cache_holds(tokens: int, size: int) -> None:
    assert piece_size(tokens) == size


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("images", [1, 2, 3, 7, 8, 33])
def test_pieces_are_small_equal_and_enough(images: int, size: int, workers: int) -> None:
    counts = piece_counts(images, size, workers)
    assert sum(counts) == images
    assert max(counts) <= size
    assert max(counts) - min(counts) <= 1
    assert len(counts) == images or len(counts) % workers == 0


class Recorder:
    """Stands for a session: writes down its calls, and gives each image's first pixel back."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.threads: set[threading.Thread] = set()
        self.both = threading.Barrier(2)

    def __call__(self, images: Array) -> FloatArray:
        self.sizes.append(len(images))
        self.threads.add(threading.current_thread())
        return images.reshape(len(images), -1)[:, :1]

    def together(self, images: Array) -> FloatArray:
        self.both.wait(timeout=10)  # breaks unless two pieces run at the same time
        return self(images)


def numbered(count: int) -> Array:
    return np.arange(count, dtype=np.float32)[:, None]


def test_one_thread_takes_piece_after_piece() -> None:
    whole = Recorder()
    run = PiecewiseRun(2, 1, whole, lambda: pytest.fail("a second session"))
    assert np.array_equal(run(numbered(5)), numbered(5))
    assert whole.sizes == [2, 2, 1]
    assert whole.threads == {threading.current_thread()}


def test_every_thread_takes_pieces_of_its_own_and_the_order_stays() -> None:
    whole, single, opened = Recorder(), Recorder(), Counter[str]()

    def open_single() -> Any:
        opened["single"] += 1
        return single.together

    run = PiecewiseRun(2, 2, whole, open_single)
    assert np.array_equal(run(numbered(1)), numbered(1))
    assert (whole.sizes, opened["single"]) == ([1], 0)  # one image: all threads on it
    for _ in range(2):
        assert np.array_equal(run(numbered(8)), numbered(8))
    assert single.sizes == [2] * 8
    assert opened["single"] == 1
    assert threading.current_thread() not in single.threads
    run.close()
    assert not any(thread.is_alive() for thread in single.threads)


def test_one_copy_runs_pieces_for_all_threads_in_turn() -> None:
    whole = Recorder()
    run = PiecewiseRun(2, 2, whole, None)
    assert np.array_equal(run(numbered(9)), numbered(9))
    assert whole.sizes == [2, 2, 2, 2, 1]
    run.open()
    assert whole.threads == {threading.current_thread()}


@pytest.mark.parametrize(("pieces", "sessions"), [(None, [1, 2]), (True, [2, 2]), (False, [1, 1])])
def test_the_second_copy_is_loaded_when_it_is_asked_for(
    pieces: bool | None, sessions: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regcache_engines import onnxruntime_session

    made, really = [0], onnxruntime_session.open_session

    def counting(*arguments: Any, **options: Any) -> Any:
        made[0] += 1
        return really(*arguments, **options)

    monkeypatch.setattr("regcache_engines.onnxruntime_engine.open_session", counting)
    path = write_bundle(tiny_plan(), tmp_path / "tiny.regcache")
    images, found = tiny_images(4).numpy(), []
    with load_engine(path, threads=2, pieces=pieces) as engine:
        found.append(made[0])
        features = engine.infer(images)
        found.append(made[0])
    assert found == sessions
    with load_engine(path, threads=1) as engine:
        assert np.array_equal(features, engine.infer(images))


def test_an_error_in_a_piece_reaches_the_caller() -> None:
    def fail(images: Array) -> FloatArray:
        raise EngineError("out of memory")

    run = PiecewiseRun(1, 2, fail, lambda: fail)
    with pytest.raises(EngineError, match="out of memory"):
        run(numbered(4))
    run.close()


@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
@pytest.mark.parametrize("threads", [1, 2])
def test_features_are_equal_bit_for_bit(
    target: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    options = GraphOptions(target=target)
    path = write_bundle(tiny_plan(), tmp_path / "tiny.regcache", options=options)
    images = tiny_images(7).numpy()
    monkeypatch.setattr("regcache_engines.onnxruntime_engine.piece_size", lambda tokens: 10**6)
    with load_engine(path, threads=1) as engine:
        expected = engine.infer(images)
    asked: list[int] = []

    def two(tokens: int) -> int:
        asked.append(tokens)
        return 2

    monkeypatch.setattr("regcache_engines.onnxruntime_engine.piece_size", two)
    with load_engine(path, threads=threads) as engine:
        assert np.array_equal(engine.infer(images), expected)
        assert np.array_equal(engine.infer(images[:1]), expected[:1])
    with pytest.raises(EngineError, match="closed"):
        engine.infer(images)
    assert asked == [tiny_plan().encoder.num_tokens]


def test_what_runs_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")

    def never(tokens: int) -> int:
        raise AssertionError(f"{tokens} tokens were asked about")

    monkeypatch.setattr("regcache_engines.onnxruntime_engine.piece_size", never)
    images = tiny_images(3).numpy()
    free = write_bundle(tiny_plan(), tmp_path / "free.regcache")
    fixed = write_bundle(tiny_plan(), tmp_path / "two.regcache", options=GraphOptions(batch=2))
    with load_engine(free, threads=1, optimize=False) as engine:
        assert engine.infer(images).shape == (3, 20)
    with load_engine(fixed, threads=1) as engine:
        assert engine.infer(images).shape == (3, 20)


def test_physical_cores_are_no_more_than_the_process_may_use() -> None:
    import os

    assert 1 <= physical_cores() <= (os.cpu_count() or 1)


def test_threads_sleep_between_calls(tmp_path: Path) -> None:
    path = write_bundle(tiny_plan(), tmp_path / "tiny.regcache")
    with load_engine(path, threads=2) as engine:
        options = cast(Any, engine)._session.get_session_options()
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"
