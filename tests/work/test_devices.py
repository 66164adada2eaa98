"""`--device` and `--threads`: what is refused, what is halved, and what is asked of OpenMP."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from regcache_deploy.cli.main import guard
from regcache_deploy.errors import ConfigError, RegCacheError
from regcache_deploy.work import threads
from regcache_deploy.work.devices import describe, find_device, fitting_batch, halving, line, wide


@pytest.mark.parametrize("text", ["gpu", "cuda:x", "cpu:1", "", "cuda:-1"])
def test_an_unknown_device_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="take auto, cpu"):
        find_device(text)


def test_a_device_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for text in ("cuda", "cuda:1", "mps"):
        with pytest.raises(ConfigError, match=f"--device {text}"):
            find_device(text)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")


def test_a_gpu_is_found_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda") == torch.device("cuda", 0)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert find_device("auto").type == "cuda"
    with pytest.raises(ConfigError, match="there are 2 GPUs"):
        find_device("cuda:2")


def test_a_batch_fits_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fitting_batch(torch.device("cpu"), 64, 197, 3072) == 64
    for free, size in ((80 * 2**30, 64), (2**30, 18), (2**20, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        assert fitting_batch(torch.device("cuda", 0), 64, 197, 3072) == size


def test_the_cpu_says_what_it_is() -> None:
    assert describe(torch.device("cpu")) == {"device": "cpu"}
    assert line(torch.device("cpu")) == "cpu"
    assert wide(torch.zeros(1)) == torch.float64


def test_halves_come_in_order() -> None:
    sizes = []

    def run(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return x * 2

    x = torch.arange(11)
    assert torch.equal(torch.cat(halving(run, x)), 2 * x)
    assert sizes[0] == 11
    assert max(s for s in sizes if s <= 3) == 3


def test_a_single_image_that_is_too_much_says_what_to_do() -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    with pytest.raises(RegCacheError, match=r"CUDA out of memory\).*--device cpu"):
        halving(run, torch.arange(4))


def test_a_full_device_ends_a_command_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def action() -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. More.")

    assert guard(action) == RegCacheError.exit_code
    error = capsys.readouterr().err
    assert error.startswith("regcache: error: the device's memory is full (CUDA out of memory)")
    assert len(error.splitlines()) == 1


def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        halving(lambda x: 1 // 0, torch.arange(4))


def test_openmp_is_asked_to_sleep_before_torch_is_there() -> None:
    code = (
        "import os, sys; from regcache_deploy.cli.main import main; main(['doctor', '--help']);"
        "print({k: os.environ.get(k) for k in ('OMP_WAIT_POLICY', 'KMP_BLOCKTIME')},"
        "'torch' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in threads.ASLEEP}

    def last(**more: str) -> str:
        path = {"PYTHONPATH": os.pathsep.join(sys.path)}
        found = subprocess.run(
            [sys.executable, "-c", code],
            env=environment | path | more,
            capture_output=True,
            text=True,
            check=True,
        )
        return found.stdout.splitlines()[-1]

    assert last() == "{'OMP_WAIT_POLICY': 'PASSIVE', 'KMP_BLOCKTIME': '0'} False"
    own = last(OMP_WAIT_POLICY="ACTIVE")
    assert own == "{'OMP_WAIT_POLICY': 'ACTIVE', 'KMP_BLOCKTIME': None} False"


def test_threads_keep_to_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(threads, "within_cpu_limit", lambda cores: min(cores, 3))
    threads.settle_threads(None)
    threads.settle_threads(5)
    assert asked == [3, 5]


def test_a_busy_machine_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (40.0, 1.0, 1.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    hint = threads.busy_hint({})
    assert hint is not None
    assert "load 40.0 on 8 CPUs" in hint
    assert "--threads 1" in hint
    assert threads.busy_hint({"OMP_NUM_THREADS": "1"}) is None
    monkeypatch.setattr(os, "getloadavg", lambda: (8.0, 1.0, 1.0))
    assert threads.busy_hint({}) is None
