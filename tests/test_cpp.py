"""The C++ runtime against Python: the same pixels, the same embeddings, the same refusals."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from regcache_deploy.data.images import Images
from regcache_deploy.data.preprocess import Preprocess
from regcache_deploy.errors import DataError
from regcache_engines import Bundle, load_engine
from regcache_engines.engine import zero_shot
from regcache_export.bundle import write_bundle
from tests.awkward_images import write_awkward_images
from tests.tiny_plans import PREPROCESS, tiny_plan

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "engines/cpp/build.py"
MISSING = 77

CONFIGS: dict[str, dict[str, Any]] = {
    "square": {"size": [32, 32], "interpolation": "bicubic", "resize_mode": "shortest"},
    "oblong": {"size": [32, 24], "interpolation": "bilinear", "resize_mode": "shortest"},
    "squash": {"size": [24, 40], "interpolation": "bilinear", "resize_mode": "squash"},
    "longest": {"size": 32, "interpolation": "bicubic", "resize_mode": "longest", "fill_color": 9},
    "timm": {"size": [32, 32], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"},
    "timm oblong": {"size": [32, 24], "interpolation": "bilinear", "crop_pct": 0.8},
    "timm squash": {"size": [32, 24], "interpolation": "bicubic", "crop_mode": "squash"},
    "timm border": {"size": [32, 24], "interpolation": "bilinear", "crop_mode": "border"},
}


def build(*options: str) -> Path:
    """The build folder of a kind; skips where something is missing, fails where it is broken."""
    done = subprocess.run(
        [sys.executable, BUILD, *options], capture_output=True, text=True, check=False
    )
    if done.returncode == MISSING:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def release() -> Path:
    return build()


@pytest.fixture(scope="module")
def sanitized() -> Path:
    return build("--sanitize")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    made = write_awkward_images(tmp_path_factory.mktemp("awkward"))
    golden = (ROOT / "tests/golden").iterdir()
    return made + sorted(path for path in golden if path.suffix in (".png", ".jpg"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quantized, with a head; 32 x 24 pixels; random weights."""
    return write_bundle(tiny_plan(), tmp_path_factory.mktemp("bundles") / "tiny.regcache")


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy.regcache"))


def float_bundle(folder: Path, config: dict[str, Any]) -> Path:
    """An encoder with random float weights for a preprocessing."""
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    plan = tiny_plan(quantized=False, image_size=(height, width))
    return write_bundle(replace(plan, preprocess=PREPROCESS | config), folder)


def run(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a program of the build; a sanitizer's report ends it with another code."""
    environment = os.environ | {
        "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1",
        "LSAN_OPTIONS": f"suppressions={ROOT}/engines/cpp/tests/lsan.supp:print_suppressions=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    if program.parent.name == "cpp-sanitize":
        # the sanitizer's own dlopen does not know where our library looks
        library = program.parent / "onnxruntime/libonnxruntime.so.1"
        environment["REGCACHE_ONNXRUNTIME"] = str(library)
    done = subprocess.run(
        [program, *map(str, words)], capture_output=True, text=True, env=environment, check=False
    )
    assert "Sanitizer" not in done.stderr, done.stderr
    assert "runtime error" not in done.stderr, done.stderr
    assert done.returncode >= 0, f"ended by signal {-done.returncode}: {done.stderr}"
    return done


def dump(
    folder: Path, bundle: Path, images: list[Path], out: Path
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Statuses, pixels `[n, H, W, 3]` and features `[n, E]` of the C++ runtime."""
    done = run(folder / "regcache_dump", bundle, out, *images)
    statuses = [line for line in done.stdout.splitlines() if not line.startswith("probe ")]
    shape = Bundle.open(bundle).manifest["graph"]["input"]["shape"]
    height, width = shape[2:] if shape[1] == 3 else shape[1:3]
    pixels = np.fromfile(f"{out}.pixels", np.uint8).reshape(-1, height, width, 3)
    features = np.fromfile(f"{out}.features", np.float32)
    return statuses, pixels, features.reshape(len(pixels), -1) if len(pixels) else features


def python_results(bundle: Path, images: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """The same from open_clip with Pillow, and from our Python engine."""
    opened = Bundle.open(bundle)
    preprocess = Preprocess(opened.preprocess)
    pixels = torch.from_numpy(np.stack([preprocess.read(path) for path in images]))
    data = Images(pixels, preprocess.config.mean, preprocess.config.std, "test")
    with load_engine(opened, threads=1) as engine:
        layout = getattr(engine, "pixels", None)
        if layout is None:
            feed = [batch.numpy() for batch in data.batches(1)]
        else:
            raw = pixels if layout == "nhwc" else pixels.permute(0, 3, 1, 2)
            feed = [np.ascontiguousarray(image[None].numpy()) for image in raw]
        features = np.concatenate([engine.infer(batch) for batch in feed])
    return pixels.numpy(), features


def python_reads(bundle: Path, path: Path) -> bool:
    try:
        Preprocess(Bundle.open(bundle).preprocess).read(path)
    except DataError:
        return False
    return True


def assert_equal_results(folder: Path, bundle: Path, images: list[Path], out: Path) -> None:
    statuses, pixels, features = dump(folder, bundle, images, out)
    # a picture that becomes less than one pixel wide is refused by both
    good = [path for path in images if python_reads(bundle, path)]
    assert [status == "ok" for status in statuses] == [path in good for path in images]
    assert len(good) >= len(images) - 2
    images = good
    wanted_pixels, wanted_features = python_results(bundle, images)
    worst = np.abs(pixels.astype(int) - wanted_pixels).max(axis=(1, 2, 3))
    different = {path.name: int(d) for path, d in zip(images, worst, strict=True) if d > 1}
    assert not different
    norms = np.linalg.norm(features, axis=1) * np.linalg.norm(wanted_features, axis=1)
    assert (((features * wanted_features).sum(1) / norms) >= 0.99999).all()


# ---- the same results ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_pixels_and_embeddings_are_pythons(
    name: str, release: Path, images: list[Path], tmp_path: Path
) -> None:
    made = float_bundle(tmp_path / f"{name}.regcache", CONFIGS[name])
    assert_equal_results(release, made, images, tmp_path / "out")


def test_a_quantized_bundle_gives_pythons_classes(
    release: Path, bundle: Path, images: list[Path]
) -> None:
    done = run(release / "regcache_classify", "--json", "--threads", 1, bundle, *images)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [entry["image"] for entry in results] == [str(path) for path in images]
    opened = Bundle.open(bundle)
    _, features = python_results(bundle, images)
    logits = zero_shot(features, opened.text_features, opened.logit_scale).astype(np.float64)
    scores = np.exp(logits - logits.max(1, keepdims=True))
    scores /= scores.sum(1, keepdims=True)
    for entry, row in zip(results, scores, strict=True):
        assert [top["index"] for top in entry["top"]] == list(np.argsort(-row, kind="stable"))
        for top in entry["top"]:
            assert top["label"] == opened.labels[top["index"]]
            assert top["score"] == pytest.approx(row[top["index"]], abs=1e-4)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_bundle_that_takes_raw_pixels(
    layout: str, release: Path, images: list[Path], tmp_path: Path
) -> None:
    from regcache_export.targets import GraphOptions

    options = GraphOptions(pixels=layout)  # type: ignore[arg-type]
    made = write_bundle(tiny_plan(), tmp_path / "raw.regcache", options=options)
    assert_equal_results(release, made, images, tmp_path / "out")


# ---- the outlier monitor ------------------------------------------------------------------------


def noise_images(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed:03}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
def test_probes_count_what_python_counts_and_change_no_feature(
    target: str, release: Path, images: list[Path], tmp_path: Path
) -> None:
    from regcache_engines.monitor import probe_rates
    from regcache_export.targets import GraphOptions

    plain = write_bundle(
        tiny_plan(), tmp_path / "plain.regcache", options=GraphOptions(target=target)
    )
    options = GraphOptions(target=target, probes=3)
    watched = write_bundle(tiny_plan(), tmp_path / "watched.regcache", options=options)
    _, _, features = dump(release, plain, images, tmp_path / "plain")
    _, _, again = dump(release, watched, images, tmp_path / "watched")
    np.testing.assert_allclose(again, features, rtol=1e-5, atol=1e-6)

    opened = Bundle.open(watched)
    preprocess = Preprocess(opened.preprocess)
    pixels = torch.from_numpy(np.stack([preprocess.read(path) for path in images]))
    data = Images(pixels, preprocess.config.mean, preprocess.config.std, "test")
    rates = probe_rates(opened, (batch.numpy() for batch in data.batches(1)), threads=1)
    done = run(release / "regcache_dump", watched, tmp_path / "out", *images)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("probe ")]
    assert len(lines) == len(rates) == 3
    for (_, saturated, codes, *_), rate in zip(lines, rates.values(), strict=True):
        assert int(saturated) / int(codes) == pytest.approx(rate, abs=1e-4)
    assert max(rates.values()) > 0  # noise of full contrast is beyond what was calibrated


def test_the_monitor_warns_where_the_data_leaves_the_calibrated_range(
    release: Path, tmp_path: Path
) -> None:
    from regcache_export.targets import GraphOptions

    images = noise_images(tmp_path / "noise", 40)
    for rate, warns in ((1e-9, True), (1.0, False)):
        options = GraphOptions(probes=2)
        made = write_bundle(tiny_plan(), tmp_path / f"{warns}.regcache", options=options)
        graph = Bundle.open(made).manifest["graph"]
        constants = {t.name: t for t in onnx.load(made / "model.onnx").graph.initializer}
        for probe in graph["probes"]:  # the code of zero is common
            name = probe["output"].replace("/QuantizeLinear", ".input_zero_point")
            zero = int(onnx.numpy_helper.to_array(constants[name]))
            probe.update(low=zero, high=zero)
        outputs = [probe["output"] for probe in graph["probes"]]
        found = {"calibrated_rates": dict.fromkeys(outputs, rate)}
        changed(graph=graph, monitor=found)(made)
        done = run(release / "regcache_dump", made, tmp_path / "out", *images)
        assert ("leave the calibrated range" in done.stderr) == warns
        assert done.stderr.count("\n") <= 2  # once per probe


# ---- refusals -----------------------------------------------------------------------------------


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def manifest_of(data: bytes) -> Callable[[Path], Any]:
    return lambda bundle: (bundle / "manifest.json").write_bytes(data)


def changed(**entries: Any) -> Callable[[Path], None]:
    return lambda bundle: edit_manifest(bundle, lambda manifest: manifest.update(entries))


def replace_file(bundle: Path, name: str, data: bytes) -> None:
    """Exchange a file and its hash, as somebody with bad intent would."""
    (bundle / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    edit_manifest(bundle, lambda manifest: manifest["files"].update({name: entry}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path) -> None:
    target = path.with_name(".moved")
    path.rename(target)
    path.symlink_to(target)


def lists(name: str) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        entry = {"sha256": "0" * 64, "size": 1}
        edit_manifest(bundle, lambda manifest: manifest["files"].update({name: entry}))

    return damage


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


HEAD = "text_features.safetensors"
DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "no folder": ("BUNDLE_NOT_FOUND", shutil.rmtree),
    "no manifest": ("BUNDLE_NOT_FOUND", lambda b: (b / "manifest.json").unlink()),
    "truncated model": ("BUNDLE_DAMAGED", lambda b: truncate(b / "model.onnx")),
    "changed model": ("BUNDLE_CHECKSUM", lambda b: flip(b / "model.onnx")),
    "changed head": ("BUNDLE_CHECKSUM", lambda b: flip(b / HEAD)),
    "missing model": ("BUNDLE_DAMAGED", lambda b: (b / "model.onnx").unlink()),
    "linked model": ("BUNDLE_DAMAGED", lambda b: link(b / "model.onnx")),
    "folder as model": (
        "BUNDLE_DAMAGED",
        lambda b: make_folder(b / "model.onnx"),
    ),
    "unlisted file": ("BUNDLE_DAMAGED", lambda b: (b / "extra.so").write_bytes(b"x")),
    "newer schema": (
        "BUNDLE_SCHEMA_UNKNOWN",
        changed(schema=2),
    ),
    "schema as text": ("BUNDLE_SCHEMA_UNKNOWN", changed(schema="1")),
    "no JSON": ("BUNDLE_DAMAGED", manifest_of(b"{")),
    "empty manifest": ("BUNDLE_DAMAGED", manifest_of(b"")),
    "deep manifest": (
        "BUNDLE_DAMAGED",
        lambda b: (b / "manifest.json").write_bytes(b"[" * 500_000),
    ),
    "bad UTF-8": ("BUNDLE_DAMAGED", manifest_of(b'{"\xff": 1}')),
    "list of files": ("BUNDLE_DAMAGED", changed(files=[])),
    "no graph": ("BUNDLE_DAMAGED", lambda b: edit_manifest(b, lambda m: m.pop("graph"))),
    "traversal": ("BUNDLE_UNSAFE_NAME", lists("../../etc/passwd")),
    "absolute": ("BUNDLE_UNSAFE_NAME", lists("/etc/passwd")),
    "backslash": ("BUNDLE_UNSAFE_NAME", lists("..\\model.onnx")),
    "parent": ("BUNDLE_UNSAFE_NAME", lists("..")),
    "empty name": ("BUNDLE_UNSAFE_NAME", lists("")),
    "zero byte": ("BUNDLE_UNSAFE_NAME", lists("model.onnx\0")),
    "itself": ("BUNDLE_UNSAFE_NAME", lists("manifest.json")),
    "no ONNX": ("RUNTIME_FAILED", lambda b: replace_file(b, "model.onnx", b"not a model")),
    "empty model": ("RUNTIME_FAILED", lambda b: replace_file(b, "model.onnx", b"")),
    "other size": (
        "RUNTIME_FAILED",
        lambda b: replace_file(b, "preprocess_cfg.json", b'{"size": 64}'),
    ),
    "bad preprocessing": (
        "BUNDLE_DAMAGED",
        lambda b: replace_file(b, "preprocess_cfg.json", b'{"size": 1e99}'),
    ),
    "unknown preprocessing": (
        "BUNDLE_DAMAGED",
        lambda b: replace_file(b, "preprocess_cfg.json", b'{"gamma": 2}'),
    ),
    "short head": ("BUNDLE_DAMAGED", lambda b: replace_file(b, HEAD, b"\xff")),
    "huge head": ("BUNDLE_DAMAGED", lambda b: replace_file(b, HEAD, b"\xff" * 64)),
    "no tensor": ("BUNDLE_DAMAGED", lambda b: replace_file(b, HEAD, header(b"{}"))),
    "lying head": (
        "BUNDLE_DAMAGED",
        lambda b: replace_file(
            b,
            HEAD,
            header(
                b'{"text_features":{"dtype":"F32","shape":[4294967297,4294967296],'
                b'"data_offsets":[0,0]}}'
            ),
        ),
    ),
}


def test_refused_bundles(release: Path, sanitized: Path, bundle: Path, tmp_path: Path) -> None:
    """Every damage, in both builds; one test, because a build is found once a process."""
    for number, (what, (status, damage)) in enumerate(DAMAGES.items()):
        damaged = Path(shutil.copytree(bundle, tmp_path / f"{number}.regcache"))
        damage(damaged)
        for folder in (release, sanitized):
            done = run(folder / "regcache_dump", damaged, tmp_path / "out")
            assert done.stdout.startswith(f"REGCACHE_{status} "), (what, done.stdout)
            assert done.returncode == (7 if status.startswith("RUNTIME") else 5)
            assert len(done.stdout.split()) > 3, "no message"


def bad_images(folder: Path) -> dict[Path, str]:
    """Files and the statuses that they must be refused with."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    files: dict[str, tuple[str, bytes]] = {
        "empty.jpg": ("IMAGE_NOT_READABLE", b""),
        "text.jpg": ("IMAGE_FORMAT", b"this is no image"),
        "short.png": ("IMAGE_FORMAT", b"\x89PNG"),
        "short.jpg": ("IMAGE_DAMAGED", b"\xff\xd8\xff"),
        "head.png": ("IMAGE_DAMAGED", b"\x89PNG\r\n\x1a\n"),
    }
    for kind in ("png", "jpeg", "gif"):
        Image.fromarray(noise).save(folder / f"whole.{kind}")
    files["whole.gif"] = ("IMAGE_FORMAT", (folder / "whole.gif").read_bytes())
    for kind in ("png", "jpeg"):
        data = (folder / f"whole.{kind}").read_bytes()
        (folder / f"whole.{kind}").unlink()
        for part in (0.3, 0.6, 0.9):
            files[f"{part}.{kind}"] = ("IMAGE_DAMAGED", data[: int(len(data) * part)])
    # bombs: a large size in the header, and hardly any data
    from tests.awkward_images import png

    bomb = bytearray(png(1, 1, 8, 2, b"abc"))
    import struct
    import zlib

    bomb[16:24] = struct.pack(">II", 50_000, 50_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    files["bomb.png"] = ("IMAGE_TOO_LARGE", bytes(bomb))
    files["long.png"] = ("IMAGE_TOO_LARGE", png(2_000_000, 1, 8, 0, bytes(2_000_000)))
    frame = bytearray()
    for name, (_, data) in files.items():
        (folder / name).write_bytes(data)
    jpeg = folder / "bomb.jpg"
    Image.fromarray(noise).save(jpeg)
    frame = bytearray(jpeg.read_bytes())
    at = frame.index(b"\xff\xc0")
    frame[at + 5 : at + 9] = struct.pack(">HH", 65_500, 65_500)
    jpeg.write_bytes(bytes(frame))
    expected = {folder / name: status for name, (status, _) in files.items()}
    return expected | {jpeg: "IMAGE_TOO_LARGE", folder: "IMAGE_NOT_READABLE"}


def test_refused_images(release: Path, sanitized: Path, bundle: Path, tmp_path: Path) -> None:
    expected = bad_images(tmp_path / "bad")
    for folder in (release, sanitized):
        statuses, pixels, _ = dump(folder, bundle, list(expected), tmp_path / "out")
        assert len(pixels) == 0
        for (path, status), line in zip(expected.items(), statuses, strict=True):
            assert line.startswith(f"REGCACHE_{status} "), (path.name, line)


def test_one_bad_image_does_not_hide_the_others(
    release: Path, bundle: Path, images: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    done = run(release / "regcache_classify", "--json", bundle, images[0], bad, images[1])
    assert done.returncode == 4
    assert [e["image"] for e in json.loads(done.stdout)["results"]] == [*map(str, images[:2])]
    assert "bad.jpg is empty" in done.stderr


def test_usage_mistakes_end_with_code_2(release: Path) -> None:
    for words in ((), ("x",), ("--bench", "0", "b", "i"), ("--wrong", "b", "i")):
        assert run(release / "regcache_classify", *words).returncode == 2


# ---- sanitizers, fuzzer, package ----------------------------------------------------------------


def test_the_api_in_both_builds(
    release: Path, sanitized: Path, bundle: Path, images: list[Path]
) -> None:
    picture = next(path for path in images if path.name == "131x97-RGB.png")
    for folder in (release, sanitized):
        done = run(folder / "test_api", bundle, picture)
        assert done.returncode == 0, done.stdout


def test_the_sanitized_build_reads_every_awkward_image(
    sanitized: Path, bundle: Path, images: list[Path], tmp_path: Path
) -> None:
    assert_equal_results(sanitized, bundle, images, tmp_path / "out")


def test_bench_reports_percentiles_and_memory(
    release: Path, bundle: Path, images: list[Path]
) -> None:
    done = run(release / "regcache_classify", "--json", "--bench", 20, bundle, images[0])
    bench = json.loads(done.stdout)["bench"]
    assert bench["runs"] == 20
    assert 0 < bench["p50_ms"] <= bench["p90_ms"] <= bench["p99_ms"]
    assert bench["images_per_second"] > 0
    assert bench["peak_memory_mib"] > 0


def test_the_fuzzer_finds_nothing_in_a_short_run(tmp_path: Path) -> None:
    folder = build("--fuzzer")
    corpus = tmp_path / "corpus"
    subprocess.run([sys.executable, ROOT / "engines/cpp/fuzz/seeds.py", corpus], check=True)
    done = subprocess.run(
        [folder / "regcache_fuzz", corpus, "-runs=20000", "-max_total_time=10", "-seed=1",
         "-max_len=4096", "-timeout=10", f"-artifact_prefix={tmp_path}/"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    log = [line for line in done.stderr.splitlines() if not line.startswith(("#", "\tNEW_"))]
    assert done.returncode == 0, "\n".join(log)[:8000]
    assert "Done" in done.stderr


def test_find_package_builds_a_consumer(
    release: Path, bundle: Path, images: list[Path], tmp_path: Path
) -> None:
    prefix = tmp_path / "prefix"
    for command in (
        ["cmake", "--install", release, "--prefix", prefix, "--strip"],
        ["cmake", "-S", ROOT / "engines/cpp/tests/consumer", "-B", tmp_path / "consumer",
         f"-DCMAKE_PREFIX_PATH={prefix}"],
        ["cmake", "--build", tmp_path / "consumer"],
    ):  # fmt: skip
        words = [str(word) for word in command]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    library = next(path for path in prefix.glob("lib*/**/libregcache.so.*") if path.is_file())
    assert library.stat().st_size < 2 * 2**20
    environment = os.environ | {
        "REGCACHE_ONNXRUNTIME": str(release / "onnxruntime/libonnxruntime.so.1")
    }
    done = subprocess.run(
        [tmp_path / "consumer/consumer", bundle, images[0]],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[0] in Bundle.open(bundle).labels
    # without ONNX Runtime: an error, no crash
    lost = environment | {"REGCACHE_ONNXRUNTIME": "/no/such/library.so"}
    done = subprocess.run(
        [tmp_path / "consumer/consumer", bundle, images[0]],
        capture_output=True, text=True, env=lost, check=False,
    )  # fmt: skip
    assert done.returncode == 7
    assert "REGCACHE_ONNXRUNTIME" in done.stderr
