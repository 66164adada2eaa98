"""Peak memory is that of this program, whatever started it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from regcache_deploy.work.count import STATUS, peak_memory


@pytest.mark.skipif(not STATUS.exists(), reason="this system does not tell VmHWM")
def test_the_peak_is_not_that_of_the_program_that_started_it() -> None:
    ballast = bytearray(b"x") * 2**28
    code = "from regcache_deploy.work.count import peak_memory; print(peak_memory())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) < len(ballast) < peak_memory()
