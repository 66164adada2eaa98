"""Limits of a container, in the files that the kernel would show."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from regcache_deploy.data import folder as data_folder
from regcache_deploy.errors import DataError
from regcache_deploy.work import memory as work_memory
from regcache_engines import onnxruntime_session, pieces
from regcache_engines.ahead import default_workers
from regcache_engines.container import cpu_limit, memory_limit, usable_cpus, within_cpu_limit

GIB = 2**30
V2 = {"proc/self/cgroup": "0::/pod/app\n"}
V1 = {"proc/self/cgroup": "5:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n0::/docker/a\n"}

CASES = {
    "nothing known": ({}, None, None),
    "version 2": (
        V2 | {"sys/fs/cgroup/pod/app/cpu.max": "50000 100000\n",
              "sys/fs/cgroup/pod/app/memory.max": f"{2 * GIB}\n"},
        0.5,
        2 * GIB,
    ),
    "version 2, of a group above": (
        V2 | {"sys/fs/cgroup/pod/app/cpu.max": "400000 100000",
              "sys/fs/cgroup/pod/app/memory.max": "max\n",
              "sys/fs/cgroup/pod/cpu.max": "150000 100000",
              "sys/fs/cgroup/pod/memory.max": str(GIB)},
        1.5,
        GIB,
    ),
    "version 2, no limit": (
        V2 | {"sys/fs/cgroup/pod/app/cpu.max": "max 100000\n",
              "sys/fs/cgroup/pod/app/memory.max": "max\n"},
        None,
        None,
    ),
    "version 2, the group is the root": (
        V2 | {"sys/fs/cgroup/cpu.max": "200000 100000", "sys/fs/cgroup/memory.max": str(GIB)},
        2.0,
        GIB,
    ),
    "version 1": (
        V1 | {"sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_quota_us": "250000\n",
              "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_period_us": "100000\n",
              "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": f"{GIB}\n"},
        2.5,
        GIB,
    ),
    "version 1, inside of the container": (
        V1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",
              "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
              "sys/fs/cgroup/memory/memory.limit_in_bytes": str(GIB)},
        0.5,
        GIB,
    ),
    "version 1, no quota": (
        V1 | {"sys/fs/cgroup/cpu/docker/a/cpu.cfs_quota_us": "-1\n",
              "sys/fs/cgroup/cpu/docker/a/cpu.cfs_period_us": "100000\n"},
        None,
        None,
    ),
    "damaged": (
        {"proc/self/cgroup": "nonsense\n0::\n:::\n", "sys/fs/cgroup/cpu.max": "a b c"},
        None,
        None,
    ),
}  # fmt: skip


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize("case", CASES)
def test_limits_are_read(case: str, tmp_path: Path) -> None:
    files, cpus, memory = CASES[case]
    root = write(tmp_path, files)
    assert cpu_limit(root) == cpus
    assert memory_limit(root) == memory


def test_cores_within_the_limit(tmp_path: Path) -> None:
    assert within_cpu_limit(64, tmp_path) == 64
    root = write(tmp_path, V2 | {"sys/fs/cgroup/pod/app/cpu.max": "150000 100000"})
    assert within_cpu_limit(64, root) == 2
    assert within_cpu_limit(1, root) == 1
    root = write(tmp_path, {"sys/fs/cgroup/pod/app/cpu.max": "1000 100000"})
    assert within_cpu_limit(64, root) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_a_set_of_cpus_is_a_limit() -> None:
    """As `docker run --cpuset-cpus` and `taskset` give one; the machine has more."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        found = usable_cpus(), default_workers(), pieces.physical_cores()
    finally:
        os.sched_setaffinity(0, before)
    assert found == (1, 1, 1)
    assert usable_cpus() == len(before)


def test_the_defaults_keep_the_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pieces, "within_cpu_limit", lambda cores: 1)
    assert pieces.physical_cores() == 1
    monkeypatch.setattr(work_memory, "memory_limit", lambda: 1000)
    with pytest.raises(DataError, match="take fewer with"):
        data_folder.check_memory(tmp_path, 10, (20, 20))


@pytest.mark.parametrize(
    ("limit", "threads", "expected"), [(0.5, None, 1), (0.5, 3, 3), (None, None, 0)]
)
def test_sessions_keep_the_limit(
    limit: float | None,
    threads: int | None,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """0 leaves it to ONNX Runtime, which counts the machine's cores."""
    monkeypatch.setattr(onnxruntime_session, "cpu_limit", lambda: limit)
    monkeypatch.setattr(onnxruntime_session, "physical_cores", lambda: 1)
    options = SimpleNamespace(
        add_session_config_entry=lambda key, value: None, intra_op_num_threads=0
    )
    runtime = SimpleNamespace(SessionOptions=lambda: options)
    onnxruntime_session._session_options(runtime, threads, True, None)
    assert options.intra_op_num_threads == expected
