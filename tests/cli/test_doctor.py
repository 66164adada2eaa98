"""`regcache doctor` knows what is installed and what follows."""

from __future__ import annotations

import json

import pytest

from regcache_deploy.cli import doctor
from regcache_deploy.cli.main import main
from regcache_engines.errors import EngineError


def test_json(capsys):
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {"regcache_deploy", "python", "packages", "works", "warnings"} <= findings.keys()


def test_warns_of_two_onnxruntimes(capsys, monkeypatch):
    versions = {"onnxruntime": "1.30.0", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    main(["doctor"])
    assert "onnxruntime and onnxruntime-gpu are both installed" in capsys.readouterr().out


def test_an_onnxruntime_that_does_not_load_is_no_runtime(capsys, monkeypatch):
    def broken():
        raise EngineError("this needs onnxruntime, which does not load (libc is too old)")

    monkeypatch.setattr(doctor, "import_onnxruntime", broken)
    main(["doctor", "--json"])
    findings = json.loads(capsys.readouterr().out)
    assert not findings["works"]["a bundle on the CPU: run, verify, time, evaluate"]
    assert any("libc is too old" in text for text in findings["warnings"])


def test_a_gpu_without_a_driver_runs_nothing(monkeypatch):
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ['x; extra == "gpu"'])
    monkeypatch.setattr(doctor, "_version", {"x": "1.0"}.get)
    for driver in (None, "580.1"):
        monkeypatch.setattr(doctor, "_nvidia_driver", lambda driver=driver: driver)
        works = doctor.diagnose()["works"]["a bundle on an NVIDIA GPU, ONNX Runtime"]
        assert works is (driver is not None)


@pytest.mark.parametrize(
    ("versions", "advice"),
    [
        ({"onnxruntime-gpu": "1.30.0"}, "install an NVIDIA driver"),
        ({"onnxruntime": "1.30.0"}, "[gpu]' after pip uninstall onnxruntime"),
    ],
)
def test_advice_is_what_is_missing(monkeypatch, versions, advice):
    """Not the extra where that is there, nor taking away what is not."""
    lines = ['onnxruntime; extra == "cpu"', 'onnxruntime-gpu; extra == "gpu"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: lines)
    monkeypatch.setattr(doctor, "_version", versions.get)
    monkeypatch.setattr(doctor, "_nvidia_driver", lambda: None)
    findings = doctor.diagnose()
    assert findings["packages"] == versions
    (line,) = (text for text in doctor._lines(findings) if "GPU, ONNX Runtime" in text)
    assert line.endswith(advice)
    assert ("pip" in line) is ("onnxruntime" in versions)


def test_requirements(monkeypatch):
    lines = [
        "numpy>=1.26",
        'torch>=2.10; extra == "search"',
        'regcache-deploy[export,cpu]; extra == "search"',
        'onnx>=1.21; extra == "export"',
        'onnxruntime; extra == "cpu"',
        'tomli; python_version < "3.11" and extra == "dev"',
    ]
    versions = {"torch": "2.9.1+cpu", "onnxruntime": "1.30.0"}
    monkeypatch.setattr("importlib.metadata.requires", lambda name: lines)
    monkeypatch.setattr(doctor, "_version", versions.get)
    findings = doctor.diagnose()
    assert findings["missing"] == {
        "search": ["torch>=2.10", "onnx>=1.21"],
        "export": ["onnx>=1.21"],
        "cpu": [],
    }
    assert findings["works"]["a bundle on the CPU: run, verify, time, evaluate"]
    assert not findings["works"]["search and export (regcache export)"]
    assert findings["warnings"] == ["torch 2.9.1+cpu is installed; needed: torch>=2.10"]


@pytest.mark.parametrize(
    ("version", "warnings"),
    [
        ("10.16.1", []),
        ("11.2.0", []),
        ("10.2.0", ["trt 10.2.0 is installed; needed: trt<11,>=10.14 or trt>=11,<12"]),
    ],
)
def test_one_of_several_releases_is_enough(monkeypatch, version, warnings):
    lines = ['trt>=11,<12; extra == "trt"', 'trt<11,>=10.14; extra == "trt10"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: lines)
    monkeypatch.setattr(doctor, "_version", {"trt": version}.get)
    assert doctor.diagnose()["warnings"] == warnings


@pytest.mark.parametrize(
    ("versions", "found", "expected"),
    [
        (">=10.14,<11", "10.16.1", True),
        ("<11,>=10.14", "11.0.0", False),
        (">=2.10", "2.9.1", False),
        (">=2.10", "2.10.0rc1", True),
        ("", "0.1", True),
        (">=1", None, False),
    ],
)
def test_versions(versions, found, expected):
    assert doctor.Requirement("x", versions, found).satisfied is expected
