"""What /proc/cpuinfo says about integer products."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from regcache_engines import cpu_flags
from regcache_engines.cpu_flags import has_exact_products, int8_flags, may_saturate

HASWELL = "processor : 0\nmodel name : has avx512_vnni in its name only\nflags : fpu avx2\n"
ICE_LAKE = "processor : 0\nflags : fpu avx512_vnni avx2\n"
ARM = "processor : 0\nFeatures : fp asimddp i8mm\n"


@pytest.mark.parametrize(
    ("text", "flags", "exact"),
    [
        (HASWELL, ["avx2"], False),
        (ICE_LAKE, ["avx2", "avx512_vnni"], True),
        (ARM, ["asimddp", "i8mm"], True),
        ("processor : 0\n", [], None),
        (None, [], None),
    ],
)
def test_flags_are_read(
    text: str | None, flags: list[str], exact: bool | None, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if text is not None:
        cpuinfo.write_text(text)
    assert int8_flags(cpuinfo) == flags
    assert has_exact_products(cpuinfo) is exact


@pytest.mark.parametrize(
    ("machine", "text", "saturates"),
    [
        ("x86_64", HASWELL, True),
        ("AMD64", None, True),  # Windows does not say
        ("x86_64", ICE_LAKE, False),
        ("aarch64", "Features : fp\n", False),
        ("arm64", None, False),
    ],
)
def test_only_x86_without_vnni_saturates(
    machine: str, text: str | None, saturates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if text is not None:
        cpuinfo.write_text(text)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert may_saturate(cpuinfo) is saturates


@pytest.mark.parametrize(("asked", "saturates"), [(False, True), (True, False), (None, False)])
def test_an_emulator_that_shows_its_hosts_file_is_seen_through(
    asked: bool | None, saturates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(ICE_LAKE)
    monkeypatch.setattr(cpu_flags, "CPUINFO", cpuinfo)
    monkeypatch.setattr(cpu_flags, "_cpuid_says_vnni", lambda: asked)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert may_saturate(cpuinfo) is saturates


def test_numpy_tells_what_the_cpu_says() -> None:
    """With this numpy; another one may hide it, and then the file alone counts."""
    if platform.machine() == "x86_64":
        assert cpu_flags._cpuid_says_vnni() is not None
