"""On which machine a figure was measured: CPU, versions, and the GPU's clocks and power."""

from __future__ import annotations

import importlib
import os
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from regcache_engines.container import usable_cpus
from regcache_engines.cpu_flags import CPUINFO, int8_flags

BUSY = 0.5
"""Load average a core above which the machine counts as busy."""

DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13",
    "numpy",
    "torch",
)


def describe_machine(cpuinfo: Path = CPUINFO) -> dict[str, Any]:
    """CPU, cores, load, operating system, versions and GPU, as plain JSON.

    `load` is the load average of the last minute before the measurement: above 0.5 a core, other
    work was going on.
    """
    try:
        load = round(os.getloadavg()[0], 2)
    except OSError:
        load = None
    gpu, why = read_gpu()
    return {
        "cpu": _cpu_name(cpuinfo),
        "cpu_flags": int8_flags(cpuinfo),
        "cores": usable_cpus(),
        "load": load,
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: found for name in DISTRIBUTIONS if (found := _version(name))},
        "gpu": gpu,
        "no_gpu": why,
    }


def read_gpu() -> tuple[dict[str, Any] | None, str | None]:
    """The first GPU's name, driver, clocks, power and temperature at this moment.

    Returns:
        The state, or None and the reason. Asked through nvidia-ml-py (`pynvml`); what a GPU does
        not tell is None.
    """
    try:
        nvml, handle = _open_nvml()
    except OSError as error:
        return None, str(error)
    try:

        def ask(question: str, *arguments: Any, scale: float = 1.0) -> Any:
            try:
                value = getattr(nvml, question)(*arguments)
            except nvml.NVMLError:
                return None
            return round(value * scale, 1) if isinstance(value, int | float) else value

        sm, memory = nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM
        return {
            "name": _text(ask("nvmlDeviceGetName", handle)),
            "driver": _text(ask("nvmlSystemGetDriverVersion")),
            "sm_clock_mhz": ask("nvmlDeviceGetClockInfo", handle, sm),
            "max_sm_clock_mhz": ask("nvmlDeviceGetMaxClockInfo", handle, sm),
            "memory_clock_mhz": ask("nvmlDeviceGetClockInfo", handle, memory),
            "power_w": ask("nvmlDeviceGetPowerUsage", handle, scale=1e-3),
            "power_limit_w": ask("nvmlDeviceGetEnforcedPowerLimit", handle, scale=1e-3),
            "temperature_c": ask("nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
        }, None
    finally:
        nvml.nvmlShutdown()


def gpu_used_mib() -> float | None:
    """Memory in use on the first GPU, by all processes, or None where nobody tells."""
    try:
        nvml, handle = _open_nvml()
    except OSError:
        return None
    try:
        return round(int(nvml.nvmlDeviceGetMemoryInfo(handle).used) / 2**20, 1)
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def _open_nvml() -> tuple[Any, Any]:
    """nvidia-ml-py, started, and the first GPU's handle; raises OSError with the reason."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError as error:
        raise OSError("nvidia-ml-py is not installed") from error
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise OSError(f"no NVIDIA GPU ({error})") from error
    try:
        return nvml, nvml.nvmlDeviceGetHandleByIndex(0)
    except nvml.NVMLError as error:
        nvml.nvmlShutdown()
        raise OSError(f"the NVIDIA driver does not describe its GPU ({error})") from error


def busy_warning(load: float | None, cores: int) -> str:
    """One sentence where other work was going on before the measurement, else nothing.

    Turns meet the same machine, but not equally: a neighbour that fills the shared cache slows a
    large float file more than a small INT8 file, and no control of equal files shows that.
    """
    if load is None or load <= BUSY * cores:
        return ""
    return (
        f"the machine was busy before the measurement (load {load:g}, cores: {cores}): figures "
        "are worse than on a quiet one, and ratios may favour the smaller file"
    )


def environment_name(machine: Mapping[str, Any]) -> str:
    """`amd-epyc-2cores-onnxruntime1.31.1`, for the name of a results file."""
    what = machine["gpu"]["name"] if machine["gpu"] else f"{machine['cpu']} {machine['cores']}cores"
    versions = machine["versions"]
    runtime = next((n for n in ("onnxruntime", "onnxruntime-gpu") if n in versions), None)
    text = f"{what} {runtime}{versions[runtime]}" if runtime else what
    text = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*ghz", " ", text.lower())
    return re.sub(r"[^a-z0-9.]+", "-", text).strip("-")


def environment_columns(machine: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """A machine as flat CSV columns.

    The GPU's state is that behind everything; a row of a benchmark has its own.
    """
    gpu = after["gpu"] or {}
    return {
        "cpu": machine["cpu"],
        "cpu_flags": " ".join(machine["cpu_flags"]),
        "cores": machine["cores"],
        "load": machine["load"],
        "os": machine["os"],
        "versions": " ".join(f"{k}={v}" for k, v in machine["versions"].items()),
        "gpu": gpu.get("name") or "",
    } | gpu_columns(gpu)


def gpu_columns(gpu: Mapping[str, Any]) -> dict[str, Any]:
    """Clock, power and temperature of `read_gpu` as CSV columns; empty where it did not tell."""
    return {
        f"gpu_{name}": gpu.get(name) or "" for name in ("sm_clock_mhz", "power_w", "temperature_c")
    }


def _cpu_name(cpuinfo: Path) -> str:
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    return fields.get("model name") or fields.get("hardware") or platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
