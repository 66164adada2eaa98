"""What a command says before it works: missing images, wrong paths, examples, completion."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from regcache_deploy.cli.build import engine_for
from regcache_deploy.cli.main import COMMANDS, main, parser_of
from regcache_export.bundle import write_bundle
from regcache_export.targets import GraphOptions
from tests.tiny_plans import tiny_plan


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) != 0
    return capsys.readouterr().err


@pytest.mark.parametrize("command", ["export", "search"])
def test_an_encoder_needs_images_of_its_own(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command, "--model", "ViT-B-32", "--pretrained", "random", "--dry-run"]
    assert main(words) == 2
    assert "--model ViT-B-32 needs --data DIR" in capsys.readouterr().err
    assert main([*words, "--data", "demo"]) == 0
    assert 'data: "demo"' in capsys.readouterr().out
    assert main([command, "--model", "demo-dense", "--dry-run"]) == 0


@pytest.mark.parametrize("command", ["verify", "eval", "build", "bench", "calibrate"])
def test_wrong_paths_are_answered_before_anything_large_is_imported(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("torch was to be imported")

    # `common` last: a module that is imported only now would keep what it finds there
    for module in ("build", "calibrate", "eval", "common"):
        monkeypatch.setattr(f"regcache_deploy.cli.{module}.load_libraries", refuse)
    more = ["--data", "demo"] if command in ("eval", "build", "calibrate") else []
    told = error_of(capsys, command, str(tmp_path / "nope"), *more)
    assert "nope" in told
    assert "..." not in told  # no stage had begun


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_its_parser_takes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = parser_of(name, f"regcache {name}")
    text = parser.format_help()
    assert max(map(len, text.splitlines())) <= 80
    assert "--config FILE.yaml" in text
    lines = text.split("examples:\n")[1].split("\n\n")[0].replace("\\\n", " ").splitlines()
    assert lines
    for line in lines:
        words = line.split("#")[0].split(">")[0].replace("'", "").split()
        assert words[:2] == ["regcache", name]
        parser.parse_args(words[2:])


def test_the_list_of_commands_fits_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"\n  {name} " in text for name in COMMANDS)


def test_a_list_in_a_configuration_file(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("runs: [/nope/a, /nope/b]\nbench: [/nope/c.csv, /nope/d.csv]\n")
    assert main(["report", "--config", str(file)]) == 2
    assert "--bench goes with one run, not with 2" in capsys.readouterr().err


def test_the_engine_that_this_machine_has(tmp_path: Path) -> None:
    bundle = write_bundle(tiny_plan(), tmp_path / "t.regcache", options=GraphOptions())
    assert engine_for(bundle) == "onnxruntime"
    assert engine_for(tmp_path / "file.onnx") == "tensorrt"


def test_the_shell_completes_commands_and_options(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "regcache"
    script.write_text(capsys.readouterr().out)
    for words, wanted in (("regcache bui", "build"), ("regcache build --max-d", "--max-drop")):
        count = len(words.split()) - 1
        asked = f"source {script}; COMP_WORDS=({words}); COMP_CWORD={count}; _shtab_regcache"
        done = subprocess.run(
            ["bash", "-c", f'{asked}; echo "${{COMPREPLY[@]}}"'],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == [wanted]


def test_a_pattern_of_unsupported_encoders_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("regcache_deploy.run.survey.open_clip_architectures", lambda: ["RN50"])
    monkeypatch.setattr("regcache_deploy.run.survey.timm_architectures", list)
    assert main(["models", "RN50", "-q"]) == 0
    found = capsys.readouterr()
    assert found.out == ""
    assert "none is supported; --refused says why" in found.err
