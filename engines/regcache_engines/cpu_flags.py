"""What a CPU's instructions say about integer products: how fast they are, and whether exact."""

from __future__ import annotations

import importlib
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

INT8_FLAGS = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Instructions that decide how fast integer products are."""

EXACT_FLAGS = frozenset(INT8_FLAGS) - {"avx2"}
"""Those that sum u8s8 products in 32 bits; with AVX2 alone, pairs are summed in saturating 16."""


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Names of the CPU's instruction sets as Linux knows them; empty where nobody tells."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    # x86 calls them flags, ARM features
    named = (line.partition(":") for line in lines)
    words = (text for name, _, text in named if name.strip().lower() in ("flags", "features"))
    return frozenset(word for text in words for word in text.split())


def int8_flags(cpuinfo: Path = CPUINFO) -> list[str]:
    """Which of `INT8_FLAGS` this CPU has, in their order."""
    flags = cpu_flags(cpuinfo)
    return [flag for flag in INT8_FLAGS if flag in flags]


def has_exact_products(cpuinfo: Path = CPUINFO) -> bool | None:
    """Whether u8s8 products are exact on this CPU, or None where that cannot be found out."""
    flags = cpu_flags(cpuinfo)
    if cpuinfo == CPUINFO and "avx512_vnni" in flags and _cpuid_says_vnni() is False:
        return False  # an emulator shows its host's file
    return bool(flags & EXACT_FLAGS) if flags else None


def _cpuid_says_vnni() -> bool | None:
    """What numpy found by asking the CPU itself; None where it does not tell."""
    for module in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):
        try:
            features = importlib.import_module(module).__cpu_features__
        except (ImportError, AttributeError):
            continue
        return None if "AVX512VNNI" not in features else bool(features["AVX512VNNI"])
    return None


def may_saturate(cpuinfo: Path = CPUINFO) -> bool:
    """Whether sums of two u8s8 products may saturate at 16 bits: only on x86, without VNNI.

    True as well on an x86 that does not say what it has.
    """
    is_x86 = platform.machine().lower() in ("x86_64", "amd64", "i686", "i386")
    return is_x86 and has_exact_products(cpuinfo) is not True
