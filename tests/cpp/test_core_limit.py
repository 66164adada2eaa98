"""C++ reads the limits of a container as Python does: the same table of the kernel's files."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cpp.programs import ROOT
from tests.engines.test_container import CASES

SOURCE = ROOT / "engines/cpp/src"
COMPILER = shutil.which("c++")
PROGRAM = """#include "cpu.h"
#include <cstdio>
int main(int count, char **words) {
    for (int i = 1; i < count; ++i) std::printf("%d\\n", regcache::core_limit(words[i]));
    return regcache::usable_cores() < 1;
}
"""


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_the_limit_is_pythons(tmp_path: Path) -> None:
    (tmp_path / "main.cpp").write_text(PROGRAM)
    program = tmp_path / "program"
    words = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{SOURCE}", "-o", str(program)]
    files = [str(tmp_path / "main.cpp"), str(SOURCE / "cpu.cpp")]
    subprocess.run([str(COMPILER), *words, *files], check=True)
    roots = []
    for index, (files_of, _, _) in enumerate(CASES.values()):
        roots.append(tmp_path / str(index))
        for name, text in files_of.items():
            path = roots[-1] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    done = subprocess.run([str(program), *map(str, roots)], check=True, capture_output=True)
    expected = [0 if cores is None else math.ceil(cores) for _, cores, _ in CASES.values()]
    assert [int(word) for word in done.stdout.split()] == expected
