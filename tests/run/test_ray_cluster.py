"""`--workers auto` and `--workers ray://HOST:PORT`: a cluster that runs already. Needs Ray."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from regcache_deploy.cli.main import main
from tests.worker_commands import write_run

if find_spec("ray") is None:
    pytest.skip("Ray is not installed: pip install '.[scale]'", allow_module_level=True)

ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join(str(ROOT / name) for name in ("", "export", "engines"))
WORDS = ("auto", "client")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """Environment of a driver; `CLIENT` is the word of `--workers` for Ray's client."""
    port, client = free_port(), free_port()
    folder = tempfile.mkdtemp(prefix="ray")  # names of sockets must be short
    words = ["start", "--head", "--block", f"--port={port}", f"--ray-client-server-port={client}"]
    words += ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"]
    env = os.environ | {"PYTHONPATH": PATHS, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "ray.scripts.scripts", *words, f"--temp-dir={folder}"]
    head = subprocess.Popen(
        command,
        env=env | {"RAY_worker_niceness": "0"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield env | {"RAY_ADDRESS": f"127.0.0.1:{port}", "CLIENT": f"ray://127.0.0.1:{client}"}
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("word", WORDS)
def test_a_running_cluster_finds_what_one_process_finds(
    word: str, cluster: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    words = ["calibrate", str(tmp_path), "--data", str(tmp_path / "data"), "--batch-size", "3"]
    words += ["--threads", "1", "-q", "--json"]
    assert main([*words, "--output", str(tmp_path / "alone")]) == 0
    capsys.readouterr()
    workers = cluster["CLIENT"] if word == "client" else word
    env = {name: value for name, value in cluster.items() if name != "CLIENT"}
    if word == "client":
        del env["RAY_ADDRESS"]
    together = [*words, "--output", str(tmp_path / "together"), "--workers", workers]
    done = subprocess.run(
        [sys.executable, "-m", "regcache_deploy.cli.main", *together],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    plans = [(tmp_path / name / "plan.json").read_text() for name in ("alone", "together")]
    assert plans[0] == plans[1]
