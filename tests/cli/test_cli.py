"""The command line: speed, errors in one line, exit codes, configuration files."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from regcache_deploy import errors
from regcache_deploy.cli import common
from regcache_deploy.cli import main as cli
from regcache_deploy.cli.common import Parser
from regcache_deploy.run.options import ExportOptions

HEAVY = ("torch", "torchvision", "open_clip", "timm", "onnx", "onnxruntime", "sklearn", "scipy")


def error_line(capsys) -> str:
    """The single line that a failing command left on stderr."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("regcache: error: ")
    return lines[0].removeprefix("regcache: error: ")


def configuration(capsys, *arguments: str) -> dict:
    """What `--dry-run` resolves the arguments to."""
    code = cli.export_main([*arguments, "--dry-run", "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


@pytest.mark.parametrize("rich", [True, False])
def test_a_log_line_names_control_characters(rich, capsys, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200)
    monkeypatch.setattr(common, "stderr_console", lambda: console if rich else None)
    common.setup_logging(common.NORMAL)
    try:
        logging.getLogger("regcache_deploy").warning("%s: not read", "cat\x1b[2J\r[b].jpg\nx")
    finally:
        monkeypatch.undo()
        common.setup_logging(common.NORMAL)
    said = screen.getvalue() if rich else capsys.readouterr().err
    assert r"cat\x1b[2J\r[b].jpg x: not read" in re.sub(r"\x1b\[[\d;]*m", "", said)


def test_the_observer_is_an_option_of_every_command_that_calibrates(capsys):
    assert configuration(capsys, "--baseline", "naive", "--observer", "mse")["observer"] == "mse"
    words = ["search", "--baseline", "naive", "--observer", "percentile"]
    assert cli.main([*words, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["observer"] == "percentile"
    for command in (["search"], ["export"], ["calibrate", "plan", "--data", "demo"]):
        assert cli.main([*command, "--observer", "median"]) == 2
        assert "minmax, percentile, mse" in error_line(capsys)
    assert cli.main(["search", "--baseline", "repqvit", "--observer", "mse"]) == 2
    assert "--baseline naive" in error_line(capsys)
    assert cli.main([*words, "--ablation"]) == 2
    assert "--ablation" in error_line(capsys)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["export", "--help"], ["doctor"], ["export", "--dry-run"]]
)
def test_answers_without_heavy_imports(arguments):
    code = (
        "import sys; from regcache_deploy.cli.main import main; code = main(sys.argv[1:]); "
        f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    # doctor loads the runtime that it speaks of, and nothing else
    loaded = "['onnxruntime']" if arguments == ["doctor"] else "[]"
    assert done.stderr.splitlines()[-1] == loaded


@pytest.mark.parametrize(("missing", "extra"), [("torch", "search"), ("onnxruntime", "cpu")])
def test_missing_extra_is_named_before_any_work(missing, extra):
    code = (
        f"import sys; sys.modules[{missing!r}] = None; "
        "from regcache_deploy.cli.main import export_main; sys.exit(export_main([]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=600,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"regcache: error: this command needs {missing}")
    assert done.stderr.endswith(f"pip install 'regcache-deploy[{extra}]'\n")


class TestHelp:
    def test_names_every_command_and_exit_code(self, capsys):
        assert cli.main(["--help"]) == 0
        text = capsys.readouterr().out
        for command in cli.COMMANDS:
            assert f"\n  {command} " in text
        assert "6 verification" in text

    def test_without_command(self, capsys):
        assert cli.main([]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "usage: regcache <command>" in captured.err

    def test_every_option_of_a_command_is_explained(self):
        for command in cli.COMMANDS:
            parser = Parser(prog=command)
            cli._module(command).add_arguments(parser)
            unexplained = [a.option_strings for a in parser._actions if not a.help]
            assert unexplained == []


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["exprot"], "no command 'exprot'; did you mean export?"),
            (["-v", "export"], "unknown argument"),
            (["export", "--basline", "naive"], "--basline; did you mean --baseline?"),
            (["export", "--base", "naive"], "unknown argument --base"),
            (["export", "stray"], "unknown argument stray"),
            (["export", "--limit"], "--limit: expected one argument"),
            (["export", "--limit", "ten"], "--limit: invalid int value: 'ten'"),
            (["export", "--baseline", "foo"], "'foo'; take one of: naive, ptq4vit, repqvit"),
            (["export", "--model", ""], "--model is empty"),
            (["export", "--prefix-count", "65"], "--prefix-count 65 is out of range"),
            (["export", "--target", "tensorrt", "--probes", "2"], "take --target onnx or onnx"),
            (["export", "--prefix-count=-1"], "take 0 to 64"),
            (["export", "--delete-count=-1"], "take at least 0"),
            (["export", "--prefix-block=-1"], "--prefix-block -1"),
            (["export", "--bits", "W8"], "W<weights>A<activations>"),
            (["export", "--bits", "W8A16"], "2 to 8 bits"),
            (["export", "--limit", "1"], "--limit 1"),
            (["export", "--batch-size", "0"], "--batch-size 0"),
            (["export", "--threads", "0"], "--threads 0"),
            (["export", "--seed=-1"], "--seed -1"),
            (["export", "--eval-data", "/tmp"], "--eval-data needs --data"),
            (["report", "run", "--output", "."], "--output . is a folder"),
        ],
    )
    def test_mistakes_exit_2_with_one_line(self, capsys, arguments, expected):
        assert cli.main(arguments) == 2
        assert expected in error_line(capsys)

    def test_missing_image_folder_exits_4(self, capsys, tmp_path):
        assert cli.main(["export", "--data", str(tmp_path / "no"), "--dry-run"]) == 4
        assert "there is no folder" in error_line(capsys)

    def test_output_under_a_file(self, capsys, tmp_path):
        (tmp_path / "file").write_text("")
        assert cli.main(["export", "--output", str(tmp_path / "file" / "run"), "--dry-run"]) == 2
        assert "file is no folder; choose another --output" in error_line(capsys)


class TestGuard:
    @pytest.mark.parametrize(
        ("kind", "code"),
        [
            ("ConfigError", 2),
            ("ModelError", 3),
            ("UnsupportedEncoderError", 3),
            ("DataError", 4),
            ("BundleError", 5),
            ("VerificationError", 6),
            ("EngineError", 7),
        ],
    )
    def test_typed_errors(self, capsys, kind, code):
        def fail() -> int:
            raise getattr(errors, kind)("two\nlines")

        assert cli.guard(fail) == code
        assert error_line(capsys) == "two lines"

    def test_interrupt(self, capsys):
        def interrupt() -> int:
            raise KeyboardInterrupt

        assert cli.guard(interrupt) == 130
        assert error_line(capsys) == "interrupted"

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
    def test_full_disk(self, capsys, number):
        def write() -> int:
            raise OSError(number, "Device says no", "/data/out/plan.json")

        assert cli.guard(write) == 2
        assert "cannot use /data/out/plan.json: Device says no" in error_line(capsys)

    @pytest.mark.parametrize("number", [errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR])
    def test_a_path_that_does_not_fit(self, capsys, number):
        def write() -> int:
            raise OSError(number, "Says why", "/data/out")

        assert cli.guard(write) == 2
        assert error_line(capsys) == "cannot use /data/out: Says why; check the path"

    def test_a_missing_file_without_a_name_is_a_bug(self):
        def bug() -> int:
            raise FileNotFoundError(errno.ENOENT, "Says why")

        with pytest.raises(FileNotFoundError):
            cli.guard(bug)

    def test_a_full_disk_for_real(self):
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full here")
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "regcache_deploy.cli.main", "doctor"],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                timeout=600,
            )
        assert done.returncode == 2
        assert "regcache: error: cannot use the output: No space left on device" in done.stderr
        assert "Traceback" not in done.stderr

    def test_bugs_keep_their_traceback(self):
        def bug() -> int:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            cli.guard(bug)

    def test_closed_pipe(self):
        done = subprocess.run(
            f"{sys.executable} -m regcache_deploy.cli.main export --help | true",
            shell=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            timeout=600,
        )
        assert done.stderr == ""


class TestConfigFile:
    def write(self, tmp_path: Path, text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return str(path)

    def test_command_line_over_file_over_default(self, capsys, tmp_path):
        path = self.write(
            tmp_path, "limit: 300\nbaseline: naive\neval-data:\nprefix_count: 4\ndry-run: false\n"
        )
        values = configuration(capsys, "--config", path, "--baseline", "ptq4vit")
        assert (values["limit"], values["prefix_count"]) == (300, 4)
        assert values["baseline"] == "ptq4vit"
        assert values["eval_data"] is None
        assert values["search_images"] == ExportOptions.search_images

    def test_flags(self, capsys, tmp_path):
        path = self.write(tmp_path, "json: true\nquiet: true\ndry-run: true\n")
        assert cli.export_main(["--config", path]) == 0
        json.loads(capsys.readouterr().out)
        assert cli.export_main(["--config", path, "--no-json"]) == 0
        assert "\nbaseline: " in capsys.readouterr().out

    def test_dry_run_output_is_a_configuration_file(self, capsys, tmp_path):
        arguments = ["--output", "a: #b", "--model", "ViT-B-32", "--pretrained", "random:3"]
        arguments += ["--data", "demo"]
        expected = configuration(capsys, *arguments)
        cli.export_main([*arguments, "--dry-run"])
        path = self.write(tmp_path, capsys.readouterr().out)
        assert configuration(capsys, "--config", path) == expected

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("basline: naive", "unknown key 'basline'; did you mean baseline?"),
            ("config: other.yaml", "unknown key 'config'"),
            ("help: true", "unknown key 'help'"),
            ("no-json: true", "unknown key 'no-json'"),
            ("baseline: foo", "unknown baseline 'foo'"),
            ("limit: many", "run.yaml: argument --limit: invalid int value: 'many'"),
            ("limit: 2.5", "invalid int value: '2.5'"),
            ("limit: [1, 2]", "limit takes one value, not [1, 2]"),
            ("limit: true", "limit takes one value, not True"),
            ("json: 'yes'", "json takes true or false, not 'yes'"),
            ("- limit", "must hold `option: value` lines, not a list"),
            ("limit: [1", "not valid YAML: line "),
            ("limit: 1\nlimit: 2", "'limit' stands twice"),
            ("!!python/object/apply:os.system ['false']", "not valid YAML"),
        ],
    )
    def test_mistakes(self, capsys, tmp_path, text, expected):
        path = self.write(tmp_path, text)
        assert cli.export_main(["--config", path, "--dry-run"]) == 2
        assert expected in error_line(capsys)

    def test_missing_file(self, capsys, tmp_path):
        assert cli.export_main(["--config", str(tmp_path / "no.yaml")]) == 2
        assert "no.yaml cannot be read: No such file" in error_line(capsys)

    def test_empty_file(self, capsys, tmp_path):
        path = self.write(tmp_path, "# nothing yet\n")
        assert configuration(capsys, "--config", path)["model"] == "demo"


def test_results_go_where_the_options_say(tmp_path):
    options = ExportOptions(model="hf-hub:org/ViT B", baseline="naive")
    assert options.output_dir == Path("runs/hf-hub-org-ViT-B-naive")
    assert options.bundle_path.name == "hf-hub-org-ViT-B-naive.regcache"
    assert ExportOptions(output=tmp_path).bundle_path == tmp_path / "demo-repqvit.regcache"
    assert (options.weight_bits, options.activation_bits) == (8, 8)
    assert json.dumps(options.to_json())
