"""The environment of a benchmark: CPU, versions, GPU, and a busy machine."""

from __future__ import annotations

import sys
import types
from typing import Any

from regcache_deploy.bench.environment import (
    busy_warning,
    describe_machine,
    environment_name,
    gpu_used_mib,
    read_gpu,
)


def test_environment_is_read_and_named(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name : Intel(R) Xeon(R) CPU @ 2.60GHz\nflags : a avx2\n")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    machine = describe_machine(info)
    assert machine["cpu_flags"] == ["avx2"]
    assert machine["gpu"] is None
    assert "nvidia-ml-py" in machine["no_gpu"]
    name = environment_name(machine | {"cores": 4, "versions": {"onnxruntime": "1.2.3"}})
    assert name == "intel-xeon-4cores-onnxruntime1.2.3"


def fake_nvml(**broken):
    """nvidia-ml-py with one GPU that does not tell its power."""
    module: Any = types.ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})
    module.NVML_CLOCK_SM, module.NVML_CLOCK_MEM, module.NVML_TEMPERATURE_GPU = 1, 2, 0

    def refuse(*arguments):
        raise module.NVMLError("not supported")

    answers = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetHandleByIndex": "gpu",
        "nvmlDeviceGetName": b"Test GPU 80GB",
        "nvmlSystemGetDriverVersion": "1.2",
        "nvmlDeviceGetMaxClockInfo": 1980,
        "nvmlDeviceGetEnforcedPowerLimit": 350000,
        "nvmlDeviceGetTemperature": 41,
    }
    for question, answer in answers.items():
        setattr(module, question, lambda *arguments, answer=answer: answer)
    module.nvmlDeviceGetClockInfo = lambda handle, kind: {1: 1755, 2: 2619}[kind]
    module.nvmlDeviceGetPowerUsage = refuse
    module.nvmlDeviceGetMemoryInfo = lambda handle: types.SimpleNamespace(used=3 << 20)
    for question in broken:
        setattr(module, question, refuse)
    return module


def test_gpu_clocks_and_power_come_from_nvml(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    gpu, why = read_gpu()
    assert why is None
    assert gpu is not None
    assert (gpu["name"], gpu["sm_clock_mhz"], gpu["memory_clock_mhz"]) == (
        "Test GPU 80GB",
        1755,
        2619,
    )
    assert gpu["power_limit_w"] == 350.0
    assert gpu["power_w"] is None
    assert environment_name(describe_machine()).startswith("test-gpu-80gb")
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlInit=True))
    assert read_gpu() == (None, "no NVIDIA GPU (not supported)")


def test_a_busy_machine_is_said():
    assert busy_warning(0.9, 2) == busy_warning(None, 2) == ""
    assert "load 1.5, cores: 2" in busy_warning(1.5, 2)


def test_memory_of_the_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    assert gpu_used_mib() == 3.0
    for broken in ("nvmlInit", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMemoryInfo"):
        monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(**{broken: True}))
        assert gpu_used_mib() is None
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlDeviceGetHandleByIndex=True))
    assert read_gpu() == (None, "the NVIDIA driver does not describe its GPU (not supported)")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_used_mib() is None
