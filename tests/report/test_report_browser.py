"""The page in a headless Chromium: desktop and phone width, light and dark, offline."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from regcache_deploy.cli.main import main
from regcache_deploy.report.plots import write_plots
from regcache_deploy.work.json_file import write_json
from tests.report.test_report import a_document, some_arrays

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

PROBE = """
<script>
addEventListener('load', () => {
  const frame = document.querySelector('iframe'), page = frame.contentDocument;
  const style = name => getComputedStyle(page.querySelector(name));
  const loaded = [...page.images].every(i => i.complete && i.naturalWidth > 0);
  const found = {
    width: page.documentElement.scrollWidth, frame: frame.clientWidth, loaded,
    images: page.images.length, ground: style('html').backgroundColor, ink: style('body').color,
    cards: page.querySelectorAll('.card').length,
    font: parseFloat(style('td').fontSize),
    requests: performance.getEntriesByType('resource').length
      + frame.contentWindow.performance.getEntriesByType('resource')
        .filter(e => !e.name.startsWith('data:')).length,
  };
  document.title = JSON.stringify(found);
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    document = a_document()
    document["plots"] = write_plots(folder / "plots", document, some_arrays())
    write_json(folder / "search.json", document)
    assert main(["report", str(folder), "-q"]) == 0
    return folder / "report.html"


def chromium(*arguments):
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    done = subprocess.run(
        [str(CHROMIUM), *flags, "--virtual-time-budget=3000", *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def scheme(dark):
    return f"--blink-settings=preferredColorScheme={0 if dark else 1}"


def brightness(colour):
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3]) / 3


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (360, True)])
def test_layout_and_colours(page, tmp_path, width, dark):
    inner = html.escape(page.read_text(encoding="utf-8"), quote=True)
    wrapper = tmp_path / "w.html"
    wrapper.write_text(
        '<!doctype html><meta name="color-scheme" content="light dark">'
        f'<iframe style="width:{width}px;height:800px;border:0" srcdoc="{inner}"></iframe>{PROBE}',
        encoding="utf-8",
    )
    dom = chromium(scheme(dark), "--window-size=1400,900", "--dump-dom", wrapper.as_uri())
    title = re.search(r"<title>(\{.*?\})</title>", dom)
    assert title is not None
    found = json.loads(html.unescape(title[1]))
    assert found["loaded"]
    assert found["images"] == 5
    assert found["cards"] == 3
    assert found["frame"] == width
    assert found["width"] <= width  # nothing makes the page scroll sideways
    assert found["font"] >= 14
    assert found["requests"] == 0
    light, ink = brightness(found["ground"]), brightness(found["ink"])
    assert (light < 60 and ink > 190) if dark else (light > 240 and ink < 70)


@pytest.mark.parametrize("dark", [False, True])
def test_plots_follow_the_colour_scheme(page, tmp_path, dark):
    svg = page.parent / "plots" / "sensitivity.svg"
    wrapper = tmp_path / "p.html"
    ground = "#12161d" if dark else "#fff"
    wrapper.write_text(
        '<!doctype html><meta name="color-scheme" content="light dark">'
        f'<body style="margin:0;background:{ground}"><img width=600 src="{svg.as_uri()}">'
    )
    shot = tmp_path / "shot.png"
    chromium(scheme(dark), "--window-size=600,700", f"--screenshot={shot}", wrapper.as_uri())
    grey = np.asarray(Image.open(shot).convert("L"), dtype=float)
    around = np.median(grey)
    assert (around < 40) if dark else (around > 250)
    contrast = np.abs(grey - around)
    assert (contrast > 150).mean() > 0.005  # letters and axes stand out from the ground
