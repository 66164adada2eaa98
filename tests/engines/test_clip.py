"""`regcache_engines.open`: photographs in, embeddings and classes out."""

from __future__ import annotations

import io
import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import regcache_engines
from regcache_engines import Clip, ConfigError, DataError, EngineError, preprocess
from regcache_engines.ahead import AHEAD
from regcache_engines.preprocess import Preprocess
from regcache_engines.probe_rates import probe_rates
from regcache_export.bundle import write_bundle
from regcache_export.targets import GraphOptions
from tests.cpp.damaging import changed
from tests.data.awkward_images import jpeg_of_scans
from tests.tiny_plans import tiny_plan

GOLDEN = sorted(
    p for p in (Path(__file__).parent / "golden").iterdir() if p.suffix in (".png", ".jpg", ".gif")
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = GraphOptions(probes=2)
    return write_bundle(
        tiny_plan(), tmp_path_factory.mktemp("clip") / "t.regcache", options=options
    )


@pytest.fixture(scope="module")
def clip(bundle: Path) -> Iterator[Clip]:
    with regcache_engines.open(bundle, threads=1, batch_size=4, workers=2) as opened:
        yield opened


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def test_embeddings_are_the_engines_on_the_librarys_pixels(bundle: Path, clip: Clip) -> None:
    opened = regcache_engines.Bundle.open(bundle)
    preprocess = Preprocess(opened.preprocess)
    with regcache_engines.load_engine(opened, threads=1) as engine:
        pixels = np.stack([preprocess.read(path) for path in GOLDEN])
        wanted = engine.infer(preprocess.normalized(pixels))
    assert np.array_equal(clip.embed_images(GOLDEN, normalize=False), wanted)
    unit = clip.embed_images(GOLDEN)
    assert unit.dtype == np.float32
    assert np.allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    assert np.allclose(unit * np.linalg.norm(wanted, axis=1, keepdims=True), wanted, atol=1e-5)


def test_every_kind_of_input_is_the_same_image(clip: Clip, tmp_path: Path) -> None:
    pixels = noise()
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    wanted = clip.embed_images(path)
    assert wanted.shape == (1, clip.output_dim)
    kinds: list[Any] = [str(path), path.read_bytes(), Image.open(path), pixels, [path]]
    for same in (*kinds, pixels[None]):
        assert np.array_equal(clip.embed_images(same), wanted)
    both: list[Any] = [pixels, path]
    two = clip.embed_images(iter(both))
    assert np.array_equal(two, np.concatenate([wanted, wanted]))


def test_an_answer_does_not_depend_on_the_batch(bundle: Path, clip: Clip) -> None:
    alone = np.concatenate([clip.embed_images(path) for path in GOLDEN])
    for size in (1, 5, 64):
        with regcache_engines.open(bundle, threads=1, batch_size=size) as other:
            assert np.array_equal(other.embed_images(GOLDEN), alone), size


def test_only_a_few_images_are_in_memory_at_once(clip: Clip) -> None:
    alive, most, lock = 0, 0, threading.Lock()

    def images() -> Iterator[np.ndarray]:
        nonlocal alive, most
        for index in range(200):
            with lock:
                alive += 1
                most = max(most, alive)
            yield noise(index)

    infer = clip._infer

    def counting(pixels: np.ndarray) -> np.ndarray:
        nonlocal alive
        with lock:
            alive -= len(pixels)
        return infer(pixels)

    clip._infer = counting  # type: ignore[method-assign]
    try:
        assert clip.embed_images(images()).shape[0] == 200
    finally:
        del clip._infer
    assert most <= 2 * AHEAD + 4 + 1


def test_classes_are_those_of_the_head(clip: Clip) -> None:
    found = clip.classify(GOLDEN, top=2)
    logits = regcache_engines.zero_shot(
        clip.embed_images(GOLDEN, normalize=False),
        clip.bundle.text_features,
        clip.bundle.logit_scale,
    )
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    assert [best.index for best, _ in found] == logits.argmax(axis=1).tolist()
    for row, (best, second) in zip(scores, found, strict=True):
        assert best.label == clip.labels[best.index]
        assert best.score == pytest.approx(row.max(), abs=1e-5)
        assert best.score >= second.score
    assert len(clip.classify(GOLDEN[0], top=99)[0]) == len(clip.labels) == 4


def test_threads_get_their_own_answers(clip: Clip) -> None:
    alone = [clip.embed_images(path) for path in GOLDEN]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(clip.embed_images, GOLDEN * 4))
    assert all(np.array_equal(a, b) for a, b in zip(found, alone * 4, strict=True))


def _in_child(clip: Clip, send: multiprocessing.connection.Connection) -> None:
    try:
        clip.embed_images([noise(), noise(1)])
        send.send("answered")
    except EngineError as error:
        send.send(str(error))


def test_a_forked_child_is_refused_and_does_not_hang(clip: Clip) -> None:
    clip.embed_images([noise(), noise(1)])
    receive, send = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(clip, send))
    child.start()
    assert receive.poll(30)
    assert "forked" in receive.recv()
    child.join(30)


def _text_in_child(clip: Clip, send: multiprocessing.connection.Connection) -> None:
    try:
        clip.embed_text("a cat")
    except EngineError as error:
        send.send(str(error))
    clip.close()
    send.send("closed")


def test_a_child_forked_while_the_text_tower_is_loaded_does_not_hang(bundle: Path) -> None:
    held, done = threading.Event(), threading.Event()
    with regcache_engines.open(bundle) as clip:

        def load() -> None:
            with clip._lock:
                held.set()
                done.wait(60)

        thread = threading.Thread(target=load)
        thread.start()
        held.wait(30)
        receive, send = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        child = context.Process(target=_text_in_child, args=(clip, send))
        child.start()
        try:
            for word in ("forked", "closed"):
                assert receive.poll(30)
                assert word in receive.recv()
        finally:
            child.kill()
            done.set()
            thread.join()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "there is no image"),
        (["nowhere.png"], "nowhere.png: No such file"),
        ([noise(), b"junk"], "image 1: cannot identify image file the file"),
        ([noise().astype(np.float32)], "image 0: pixels are float32"),
        (noise()[..., 0], r"pixels are uint8 \[40, 30\]"),
        ([3], "image 0: int is no image"),
        (3, "int holds no images"),
        (["."], ".: not a file"),
    ],
)
def test_what_is_no_image_is_named(clip: Clip, images: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        clip.embed_images(images)  # type: ignore[arg-type]


def test_an_opened_picture_that_cannot_be_decoded_is_named(clip: Clip) -> None:
    """Pillow reads the header alone until the pixels are asked for."""
    file = io.BytesIO()
    Image.fromarray(noise()).save(file, "JPEG")
    data = file.getvalue()
    cut, closed = Image.open(io.BytesIO(data[: len(data) // 2])), Image.open(io.BytesIO(data))
    closed.close()
    for image, message in ((cut, "image 1: image file is truncated"), (closed, "image 1: ")):
        with pytest.raises(DataError, match=message):
            clip.embed_images([noise(), image])


def test_an_opened_picture_is_held_to_the_limits_of_a_file(
    clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service opens an upload with Pillow, which decodes it only here."""
    jpeg = io.BytesIO()
    Image.fromarray(noise()).save(jpeg, "JPEG")
    assert np.array_equal(clip.embed_images(Image.open(jpeg)), clip.embed_images(jpeg.getvalue()))
    scans, program = io.BytesIO(jpeg_of_scans(4000, 200)), io.BytesIO()
    Image.fromarray(noise()).save(program, "EPS")
    for most, file, message in (
        (16_000_000, program, "PostScript is a program"),
        (16_000_000, scans, "too many scans"),
        (1199, jpeg, "30 x 40 pixels are too many"),
    ):
        monkeypatch.setattr(preprocess, "MAX_PIXELS", most)
        image = Image.open(file)
        with pytest.raises(DataError, match=f"image 0: .*{message}"):
            clip.embed_images(image)
        assert image.fp is not None, "it was decoded"
    assert clip.embed_images(noise()).shape == (1, clip.output_dim), "it is in memory already"


def test_a_closed_one_refuses(bundle: Path) -> None:
    with regcache_engines.open(bundle) as opened:
        pass
    with pytest.raises(EngineError, match="closed"):
        opened.embed_images(noise())


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"batch_size": 0}, ConfigError),
        ({"workers": -1}, ConfigError),
        ({"saturation_warning": float("nan")}, ConfigError),
        ({"runtime": "tensorflow"}, EngineError),
        ({"runtime": "openvino", "provider": "cuda"}, ConfigError),
        ({"provider": "rocm"}, EngineError),
        ({"device_id": 1}, EngineError),
        ({"threads": 0}, EngineError),
    ],
)
def test_options_out_of_range(bundle: Path, options: dict, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        regcache_engines.open(bundle, **options)


@pytest.mark.parametrize("options", [{}, {"batch": 3}, {"pixels": "nhwc"}])
def test_the_monitor_counts_every_image_once(options: dict, tmp_path: Path) -> None:
    graph = GraphOptions(probes=2, **options)
    made = write_bundle(tiny_plan(), tmp_path / "m.regcache", options=graph)
    images = [noise(seed) for seed in range(10)]  # no multiple of the fixed batch
    with regcache_engines.open(made, threads=2) as opened:
        opened.warm_up(2)
        assert [probe.codes for probe in opened.saturation()] == [0, 0]
        opened.embed_images(images)
        found = opened.saturation()
        pixels = np.stack([opened.preprocess(Image.fromarray(image)) for image in images])
        feed = opened.preprocess.in_layout(pixels, graph.pixels)
    if graph.batch:  # its tail is a whole batch for the tool that sets the rates
        feed = np.concatenate([feed, feed[-1:], feed[-1:]])
    parts = [feed[start : start + 3] for start in range(0, len(feed), 3)]
    rates = probe_rates(regcache_engines.Bundle.open(made), parts)
    for probe, (low, high) in zip(found, rates.values(), strict=True):
        assert probe.codes > 0
        if not graph.batch:
            assert (probe.low_rate, probe.high_rate) == pytest.approx((low, high), abs=1e-4)
    per_image = {probe.codes // 10 * 10 == probe.codes for probe in found}
    assert per_image == {True}


def test_images_beyond_the_calibrated_range_are_told_once(tmp_path: Path) -> None:
    made = write_bundle(tiny_plan(), tmp_path / "m.regcache", options=GraphOptions(probes=2))
    graph = regcache_engines.Bundle.open(made).manifest["graph"]
    constants = {t.name: t for t in onnx.load(made / "model.onnx").graph.initializer}
    for probe in graph["probes"]:  # the code of zero is common
        name = probe["output"].replace("/QuantizeLinear", ".input_zero_point")
        probe["high"] = int(onnx.numpy_helper.to_array(constants[name]))
    outputs = [probe["output"] for probe in graph["probes"]]
    rates = {"calibrated_rates": {outputs[0]: [1e-9, 1e-9], outputs[1]: [0.9, 0.9]}}
    changed(graph=graph, monitor=rates)(made)
    said: list[str] = []
    images = [noise(seed) for seed in range(80)]
    with regcache_engines.open(made, warn=said.append) as opened:
        opened.embed_images(images[:31])
        assert said == []
        opened.embed_images(images[31:])
    assert len(said) == 1
    assert "upper end, 1e-07 % on the calibration images: these images leave" in said[0]
    with regcache_engines.open(made, warn=said.append, saturation_warning=0) as opened:
        opened.embed_images(images)
    assert len(said) == 1


def test_help_shows_what_is_public(capsys: pytest.CaptureFixture[str]) -> None:
    help(regcache_engines)
    shown = capsys.readouterr().out
    for name in regcache_engines.__all__:
        assert name in shown
        assert getattr(regcache_engines, name).__doc__
        assert name in dir(regcache_engines)
    assert "room" not in shown.lower()
