"""`examples/browser` in headless Chromium: its embeddings are those of the runtime for Python.

It takes npm's registry and a browser, so `make test-examples` alone runs it.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import regcache_engines
from regcache_deploy.encoders.text_side import TextSide
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.plan import make_plan
from regcache_export.plan import Plan
from tests.text_bundles import small_clip, text_bundle, text_side
from tests.tiny_plans import PREPROCESS, tiny_encoder

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "browser"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("REGCACHE_TEST_EXAMPLES"),
        reason="installs from npm's registry: make test-examples",
    ),
    pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]

PAGE = """<!doctype html>
<script type="importmap">%s</script>
<script type="module">
  const post = (value) => fetch("/result", { method: "POST", body: JSON.stringify(value) });
  window.onerror = (message) => post({ error: String(message) });
  window.onunhandledrejection = (event) => post({ error: String(event.reason) });
  const { openBundle } = await import("./clip.js");
  const clip = await openBundle("bundle");
  const images = [], texts = [];
  for (const name of %s)
    images.push(await clip.embedImage(await (await fetch(name)).blob())
      .then((found) => [...found], (error) => error.message));
  for (const sentence of %s) texts.push([...await clip.embedText(sentence)]);
  await post({ images, texts });
</script>
"""

SENTENCES = ["a photo of a dog", "the beach", "A Cat on the beach " * 9, "naïve “quotes” &amp; ﬁn"]
"""One is longer than the tower's 20 tokens."""


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, and one place to post a result to."""

    posted: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def do_POST(self) -> None:
        self.posted.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def in_chromium(site: Path, page: str) -> dict[str, Any]:
    """What the page posts."""
    (site / "test.html").write_text(page, encoding="utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/test.html"
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={site}/profile"]
        browser = subprocess.Popen(
            [str(CHROMIUM), *options, "--remote-debugging-port=0", address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return Handler.posted.get(timeout=120)
        finally:
            browser.terminate()
            browser.wait(30)
            server.shutdown()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its packages."""
    place = tmp_path_factory.mktemp("site") / "browser"
    shutil.copytree(EXAMPLE, place, ignore=shutil.ignore_patterns("node_modules", "bundle"))
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"npm could not install: {done.stderr[-200:]}")
    return place


def square_plan(mode: str) -> Plan:
    """A quantized encoder for 32 x 32 pixels with random weights."""
    encoder = tiny_encoder(image_size=(32, 32))
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    calibrated = make_baseline("naive").calibrate(encoder, encoder.embed(images))
    preprocess = PREPROCESS | {"size": [32, 32], "resize_mode": mode}
    return make_plan(calibrated, preprocess=preprocess, provenance={"model": "tiny"})


INTEGER = {
    "model.onnx": {"QuantizeLinear", "DequantizeLinear"},
    "text/model.onnx": {"DynamicQuantizeLinear", "MatMulInteger"},
}
"""Operators that say that a tower is one in INT8."""


def int8_side() -> TextSide:
    """A text tower with random weights, small enough in its blocks to be kept in INT8."""
    model = small_clip()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "transformer.resblocks" in name and "ln_" not in name:
                parameter.mul_(0.5)
    return text_side(model)


@pytest.mark.parametrize("mode", ["squash", "shortest"])
def test_both_towers_give_the_runtimes_embeddings(mode: str, site: Path) -> None:
    pytest.importorskip("tokenizers")
    plan = square_plan(mode)
    shutil.rmtree(site / "bundle", ignore_errors=True)
    bundle = text_bundle(site / "bundle", int8_side(), plan)
    for name, kinds in INTEGER.items():
        assert kinds <= {node.op_type for node in onnx.load(bundle / name).graph.node}
    names = [f"{index}.png" for index in range(6)]
    for index, name in enumerate(names):
        shape = (20 + 17 * index, 90 - 11 * index, 3)
        pixels = np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(site / name)
    html = (EXAMPLE / "index.html").read_text(encoding="utf-8")
    imports = html.split('<script type="importmap">', 1)[1].split("</script>", 1)[0]
    found = in_chromium(site, PAGE % (imports, json.dumps(names), json.dumps(SENTENCES)))
    assert "error" not in found, found
    with regcache_engines.open(bundle) as clip:
        images = clip.embed_images([site / name for name in names])
        texts = clip.embed_text(SENTENCES)
    cosines = (np.array(found["images"]) * images).sum(axis=1)
    print(f"{mode}: lowest cosine of an image {cosines.min():.7f}")
    assert (cosines >= 0.9999).all()
    cosines = (np.array(found["texts"]) * texts).sum(axis=1)
    print(f"{mode}: lowest cosine of a text {cosines.min():.7f}")
    assert (cosines >= 0.9999).all()


def test_photographs_are_taken_as_stored_or_refused(site: Path) -> None:
    """Turned by EXIF as phones do, grey, CMYK; what a browser shows otherwise is refused."""
    shutil.rmtree(site / "bundle", ignore_errors=True)
    bundle = text_bundle(site / "bundle", int8_side(), square_plan("shortest"))
    draw = np.random.default_rng(0)
    small = Image.fromarray(draw.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    image, turned = small.resize((90, 60), Image.Resampling.BICUBIC), Image.Exif()
    turned[0x0112] = 6
    taken = {"t.jpg": image, "t.png": image, "t.webp": image}
    for name, each in taken.items():
        each.save(site / name, exif=turned)
    taken |= {"p.jpg": image, "l.png": image.convert("L"), "opaque.png": image.convert("RGBA")}
    taken |= {"cmyk.jpg": image.convert("CMYK")}
    clear = image.convert("RGBA")
    clear.putalpha(254)
    sixteen = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    refused = {"clear.png": clear, "palette.png": image.convert("P"), "sixteen.png": sixteen}
    refused |= {"clear.webp": clear, "x.gif": image.convert("P")}
    for name, each in (taken | refused).items():
        if not (site / name).exists():
            each.save(site / name)
    (site / "cut.jpg").write_bytes((site / "t.jpg").read_bytes()[:30])
    html = (EXAMPLE / "index.html").read_text(encoding="utf-8")
    imports = html.split('<script type="importmap">', 1)[1].split("</script>", 1)[0]
    names = [*taken, *refused, "cut.jpg"]
    found = in_chromium(site, PAGE % (imports, json.dumps(names), "[]"))
    assert "error" not in found, found
    answers = dict(zip(names, found["images"], strict=True))
    with regcache_engines.open(bundle) as clip:
        for name in taken:
            cosine = float(np.dot(answers[name], clip.embed_images(site / name)[0]))
            assert cosine >= 0.9999, name
    for name in refused:
        assert "this example takes" in answers[name], name
    assert isinstance(answers["cut.jpg"], str)
