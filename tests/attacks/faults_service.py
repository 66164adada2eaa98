"""What a service does to an engine: threads, forks, replacement, many openings, little memory."""

from __future__ import annotations

import gc
import os
import resource
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import regcache_engines
from regcache_deploy.errors import EngineError, RegCacheError
from regcache_engines import load_engine
from tests.attacks.children import call_child
from tests.attacks.fault import Act, Fault, Outcome, Place

IMAGES = np.random.default_rng(3).normal(size=(16, 3, 32, 24)).astype(np.float32)


def checked(check: Callable[[Place], list[str]]) -> Act:
    """A check that returns what it found wrong."""
    return lambda place: Outcome(0, faults=tuple(check(place)))


def together(work: Callable[[int], None], count: int = 4) -> list[str]:
    """The work of `count` threads; what they raised."""
    raised: list[str] = []

    def run(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            raised.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if any(thread.is_alive() for thread in threads):
        raised.append("a thread hangs")
    return raised


def own_answers(place: Place) -> list[str]:
    with load_engine(place.bundle(), threads=2) as engine:
        expected = [engine.infer(IMAGES[i : i + 4]) for i in range(4)]

        def work(index: int) -> None:
            for _ in range(60):
                np.testing.assert_array_equal(
                    engine.infer(IMAGES[index : index + 4]), expected[index]
                )

        return together(work)


def closed_in_use(place: Place) -> list[str]:
    """Every call gives the right answer or EngineError."""
    bundle = place.bundle()
    with load_engine(bundle, threads=2) as engine:
        expected = engine.infer(IMAGES)
    wrong: list[str] = []
    for _ in range(10):
        engine = load_engine(bundle, threads=2)

        def work(index: int, engine: Any = engine) -> None:
            if index == 0:
                engine.close()
                return
            try:
                for _ in range(20):
                    np.testing.assert_array_equal(engine.infer(IMAGES), expected)
            except EngineError:
                return

        wrong += together(work)
    return wrong


def forked(place: Place) -> list[str]:
    """A prefork server that warms up first."""
    with load_engine(place.bundle(), threads=2) as engine:
        expected = engine.infer(IMAGES)

        def child() -> None:
            try:
                np.testing.assert_array_equal(engine.infer(IMAGES), expected)
            except EngineError as error:
                if "fork" not in str(error):
                    raise

        problems = [call_child(child, 30) for _ in range(3)]
        np.testing.assert_array_equal(engine.infer(IMAGES), expected)
    return [problem for problem in problems if problem]


def replaced(place: Place) -> list[str]:
    """Readers open the bundle while it is exchanged; each gets one whole bundle."""
    from regcache_export.bundle import add_files

    bundle, stop, wrong = place.bundle(), threading.Event(), list[str]()

    def read() -> None:
        while not stop.is_set():
            try:
                load_engine(bundle, threads=1).close()
            except RegCacheError as error:
                wrong.append(str(error))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for index in range(20):
        add_files(bundle, {"note.txt": str(index).encode()})
    stop.set()
    for reader in readers:
        reader.join(60)
    left = [path.name for path in bundle.parent.iterdir() if path.name.startswith(".")]
    return [*wrong[:3], *(f"an orphan: {name}" for name in left)]


def opened_often(place: Place, times: int = 200) -> list[str]:
    """No growth once it is warm; 1 MiB for what the allocator keeps."""
    bundle = place.bundle()

    def once() -> None:
        with load_engine(bundle, threads=2) as engine:
            engine.infer(IMAGES)

    for _ in range(times // 4):
        once()
    gc.collect()
    before, files = resident(), open_files()
    for _ in range(times):
        once()
    gc.collect()
    grown = resident() - before
    wrong = [f"grew by {grown / 2**20:.1f} MiB in {times} openings"] if grown > 4 << 20 else []
    if open_files() > files:
        wrong.append(f"{open_files() - files} files stay open")
    return wrong


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mixed_inputs(place: Place) -> list[str]:
    """Wrong inputs of one thread harm no other."""
    with load_engine(place.bundle(), threads=2) as engine:
        expected = engine.infer(IMAGES)

        def work(index: int) -> None:
            for _ in range(40):
                if index == 0:
                    try:
                        engine.infer(IMAGES[:, :, :5])
                    except EngineError:
                        continue
                    raise AssertionError("a wrong size was taken")
                np.testing.assert_array_equal(engine.infer(IMAGES), expected)

        return together(work)


def little_memory(place: Place) -> list[str]:
    """A batch that does not fit is an error, and the next one that does is answered."""
    bundle = place.bundle()

    def child() -> None:
        with load_engine(bundle, threads=1) as engine:
            expected = engine.infer(IMAGES)
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + (600 << 20)
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            try:
                large = np.zeros((40_000, 3, 32, 24), np.float32)
                engine.infer(large)
                large = np.concatenate([large, large, large])
                raise SystemError("all of it fitted")
            except (MemoryError, EngineError):
                pass
            np.testing.assert_array_equal(engine.infer(IMAGES), expected)

    problem = call_child(child, 60)
    return [problem] if problem else []


def no_descriptors(place: Place) -> list[str]:
    """Connections hold all of them: what is open goes on, and opening is an error of its own."""
    bundle = place.bundle()
    pixels = np.zeros((8, 32, 24, 3), np.uint8)

    def child() -> None:
        with regcache_engines.open(bundle, threads=2) as clip:
            expected = clip.embed_images(pixels[:1])[0]
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            held = [os.open(os.devnull, os.O_RDONLY)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 1, most))
            try:
                while True:
                    held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                pass
            if not (clip.embed_images(pixels) == expected).all():
                raise SystemError("other embeddings")
            try:
                regcache_engines.open(bundle)
                raise SystemError("a bundle was opened without a file")
            except RegCacheError:
                pass

    problem = call_child(child, 60)
    return [problem] if problem else []


def verify(place: Place) -> list[str]:
    return ["verify", str(place.bundle())]


fault = partial(Fault, "service", error=None, seconds=120)

FAULTS = [
    fault("threads", "four threads, one engine, images of their own", checked(own_answers)),
    fault("close", "closed while others are inside", checked(closed_in_use)),
    fault("fork", "forked after it has answered", checked(forked)),
    fault("replaced", "the bundle is exchanged under readers", checked(replaced)),
    fault("often", "opened and closed 200 times", checked(opened_often), quick=False),
    fault("mixed", "wrong inputs among right ones", checked(mixed_inputs)),
    fault(
        "quiet",
        "a verification, traced: no connection, nothing of it at home",
        verify,
        quick=False,
        traced=True,
    ),
    fault("descriptors", "no file descriptor left", checked(no_descriptors)),
    fault("memory", "a batch beyond the memory limit", checked(little_memory), quick=False),
]
