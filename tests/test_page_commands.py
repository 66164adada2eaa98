"""Every command on every page is run, here or by the test that is named, or says what it needs.

The tutorial runs as a whole in `test_documents.py`, which also holds every option of every page
against its parser.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from regcache_deploy.cli.main import main
from tests.engines.deployed import deployed_folder
from tests.test_documents import BLOCK, ROOT, commands, words_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIAL = ROOT / "docs" / "tutorial.md"

ELSEWHERE = {
    # weights, images or a machine that are not here
    r"regcache export --model ViT-B-16 --pretrained openai": "needs weights and ImageNet",
    r"regcache export --baseline repqvit --model ViT-B-16": "needs weights and ImageNet",
    r"regcache search --baseline naive --model ViT-B-16": "needs weights and ImageNet",
    r"regcache (build|report) runs/ViT-B-16": "needs the run of those weights",
    r"regcache check runs/b16": "needs the run of those weights",
    r"(\.venv/bin/)?regcache build \S+ --engine tensorrt": "needs a GPU",
    r"regcache report RUN --triton models --engine": "needs a GPU",
    r"regcache_classify --provider tensorrt": "needs a GPU",
    r"python benchmarks/gpu(_probe|_ceiling)?\.py": "needs a GPU: tests/benchmarks/test_gpu_*.py",
    r"regcache embed clip\.regcache --data 's3://": "needs a cluster: tests/run/test_embed*.py",
    r"head=|ray (start|stop)|srun ": "needs a cluster: tests/run/test_ray_team.py",
    # minutes
    r"make export": "the tutorial's export: tests/test_documents.py",
    r"make bench": "needs 15 minutes: tests/benchmarks/test_peers.py",
    r"python benchmarks/calibration_memory\.py": "needs minutes",
    r"regcache calibrate runs/x": "tests/run/test_calibrate.py",
    r"regcache-export --target \S+ \.\.\.": "tests/export/test_targets.py",
    r"(\.venv/bin/)?regcache report (runs|RUN)": "tests/report, tests/test_documents.py",
    r"regcache search": "tests/search",
    r"regcache pack X\.regcache": "needs a square encoder with a text tower: tests/pack",
    # compilers and installations
    r"make cpp": "needs a compiler: tests/cpp/test_builds.py",
    r"cmake ": "needs a compiler: tests/cpp/test_builds.py",
    r"(build/cpp/)?regcache_classify": "needs a compiler: tests/cpp/test_classify.py",
    r"dpkg |apt-get ": "needs root: make test-edge",
    r"pip install|python3 -m venv": "installs: make test-clean, make test-package",
    r"regcache completion": "writes beside the shell's own files: tests/cli/test_guidance.py",
}
"""Beginnings of commands that are not run here, with what they need or the test that runs them."""

OUTPUT = re.compile(r'^\{"')
"""A line that is printed, not typed."""

STANDS_FOR = {
    **dict.fromkeys(("runs/X/X.regcache", "X.regcache", "clip.regcache", "BUNDLE"), "t.regcache"),
    **dict.fromkeys(("A.regcache", "B.regcache"), "t.regcache"),
    **dict.fromkeys(("/data/imagenet/val", "/data/photographs", "/data/train"), "data"),
    **dict.fromkeys(("DIR", "A", "B", "C"), "data"),
    **dict.fromkeys(("cat.jpg", "dog.png"), "data/cat/0.png"),
    "/data/embeddings": "embeddings-2",
}
"""Words of the pages, and what they are in the folder of `deployed_folder`."""

ENGINE = "--engine onnxruntime"
SMALLER = {
    "bench": f"--rounds 2 --no-memory {ENGINE}",
    "build": f"--seconds 0.5 --threads 1 {ENGINE}",
    "export": "--dry-run",  # options, model and folders; tests/run has exports with each
}
"""Behind a command, unless the page says otherwise."""


def lines_of(page: Path) -> list[str]:
    """Commands in indented blocks and in fences of a shell."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.S)
    joined = [re.sub(r"\\\n\s*", " ", block) for block in fenced]
    inside = [line.strip() for block in joined for line in block.splitlines()]
    return commands(page) + [line for line in inside if line and not line.startswith("#")]


def all_lines() -> list[tuple[str, str]]:
    found = [
        (page.relative_to(ROOT).as_posix(), line)
        for page in PAGES
        if page != TUTORIAL
        for line in lines_of(page)
        if not OUTPUT.match(line)
    ]
    return list({line: (page, line) for page, line in found}.values())


def reason(line: str) -> str | None:
    typed = line.split("  #")[0].strip()
    return next((why for start, why in ELSEWHERE.items() if re.match(start, typed)), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = deployed_folder(tmp_path_factory.mktemp("pages"))
    for image in (place / "data" / "cat").glob("*.png"):
        for name in "abc":
            (image.parent / f"{image.stem}{name}.png").write_bytes(image.read_bytes())
    (place / "names.txt").write_text("cat\ndog\nfour\n", encoding="utf-8")
    (place / "prompts.txt").write_text("a photo of a {}\n", encoding="utf-8")
    for name in ("pets", "head"):
        words = ["head", "t.regcache", "--classes", "cat,dog,four,beach"]
        target = str(place / f"{name}.safetensors")
        assert main([words[0], str(place / words[1]), *words[2:], "--output", target, "-q"]) == 0
    return place


@pytest.mark.parametrize(("page", "line"), all_lines(), ids=lambda value: value[:60])
def test_a_command_of_a_page(
    page: str,
    line: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if reason(line):
        return
    words = words_of(line)
    assert words is not None, f"{page}: neither run nor named in ELSEWHERE: {line}"
    monkeypatch.chdir(folder)
    command = words[0]
    if command == "embed" and "jsonl" not in words:
        pytest.importorskip("pyarrow")
    if command == "build" and "--data" not in words:
        words += ["--data", "data"]  # the certificate's images are too few here
    if command == "head" and "--output" not in words:
        words += ["--output", str(tmp_path / "head.safetensors")]
    words = [STANDS_FOR.get(word, word) for word in words]
    words = [str(tmp_path / "csv") if "benchmarks/results" in word else word for word in words]
    more = SMALLER.get(command, "")
    words += (more.replace(ENGINE, "") if "--engine" in words else more).split()
    assert main([*words, "-q"]) == 0, (line, capsys.readouterr().err)


def test_no_reason_is_left_over() -> None:
    lines = [line.split("  #")[0].strip() for _, line in all_lines()]
    for start in ELSEWHERE:
        assert any(re.match(start, line) for line in lines), start


def test_the_tests_that_are_named_are_there() -> None:
    for why in ELSEWHERE.values():
        for name in re.findall(r"tests/[\w/.*]+", why):
            assert list(ROOT.glob(name)), name
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for why in ELSEWHERE.values():
        for name in re.findall(r"make ([\w-]+)", why):
            assert f"\n{name}:" in targets, name


def test_no_block_is_missed() -> None:
    """An indented block is seen even behind a list or at the end of a page."""
    text = "- item\n\n    regcache doctor\n\nend\n\n    regcache models\n"
    assert [m.strip() for m in BLOCK.findall(text)] == ["regcache doctor", "regcache models"]


def test_a_command_without_a_reason_is_found() -> None:
    assert reason("rm -rf /") is None
    assert words_of("rm -rf /") is None
    assert reason("make bench    # slow") == ELSEWHERE["make bench"]
    assert shlex.split("regcache doctor  # now", comments=True) == ["regcache", "doctor"]
