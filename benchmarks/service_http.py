"""A service with two worker processes, restarted under load: no request may fail.

    python benchmarks/service_http.py BUNDLE --seconds 60

`examples/server.py` runs in uvicorn with two workers. Clients send photographs, each request on a
connection of its own, and compare every answer with the embedding of that photograph in this
process. Every `--restart` seconds the workers are replaced, one by one (SIGHUP); a restart counts
once all old processes are gone. Needs Linux, fastapi and uvicorn (extra `examples`).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import regcache_engines

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 60


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server(bundle: Path, workers: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Uvicorn's process and address, once it answers."""
    port = free_port()
    paths = [str(ROOT / name) for name in ("", "export", "engines")] + sys.path
    environment = os.environ | {
        "REGCACHE_BUNDLE": str(bundle),
        "REGCACHE_THREADS": "2",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    words = ["-m", "uvicorn", "--app-dir", str(ROOT / "examples"), "server:app"]
    words += ["--port", str(port), "--workers", str(workers), "--log-level", "warning"]
    # a busy machine takes longer than uvicorn's 5 s to load a worker, which gives the restart up
    words += ["--timeout-worker-healthcheck", str(TIMEOUT_S)]
    process = subprocess.Popen([sys.executable, *words], env=environment)
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}/healthz")
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT_S)


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    """Ask until the service answers."""
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise SystemExit("the service does not start")


def workers_of(process: subprocess.Popen[bytes]) -> set[str]:
    """Process ids of the service's workers."""
    place = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return {pid for pid in place.read_text(encoding="ascii").split() if not _is_tracker(pid)}


def _is_tracker(pid: str) -> bool:
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended meanwhile
        return False


def replace_workers(process: subprocess.Popen[bytes]) -> bool:
    """Ask for new workers; whether all old ones are gone in time."""
    before = workers_of(process)
    process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 2 * TIMEOUT_S
    while time.monotonic() < end:
        now = workers_of(process)
        if len(now) == len(before) and not before & now:
            return True
        time.sleep(0.1)
    return False


def photographs(count: int) -> list[bytes]:
    """PNG files of noise, in several sizes."""
    found = []
    for seed in range(count):
        draw = np.random.default_rng(seed)
        pixels = draw.integers(0, 256, (*draw.integers(40, 90, 2), 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        found.append(file.getvalue())
    return found


def send(address: str, image: bytes) -> list[float]:
    """The embedding that the service gives."""
    request = urllib.request.Request(
        f"{address}/embed", image, {"Content-Type": "application/octet-stream"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        embedding: list[float] = json.load(answer)["embedding"]
        return embedding


def load_service(
    bundle: Path, seconds: float, restart: float, clients: int = 4, workers: int = 2
) -> dict[str, Any]:
    """Send, restart, compare; what happened, in numbers."""
    images = photographs(8)
    with regcache_engines.open(bundle, threads=1) as clip:
        wanted = [clip.embed_images(image)[0] for image in images]
    lock, times, failed = threading.Lock(), list[float](), list[str]()
    wrong, restarts, stop = 0, list[bool](), threading.Event()
    with server(bundle, workers) as (process, address):
        end = time.monotonic() + seconds

        def work(seed: int) -> None:
            nonlocal wrong
            choose = random.Random(seed)
            while not stop.is_set():
                index = choose.randrange(len(images))
                started = time.perf_counter()
                try:
                    found = send(address, images[index])
                except OSError as error:
                    with lock:
                        failed.append(repr(error))
                    continue
                with lock:
                    times.append(time.perf_counter() - started)
                    wrong += not np.allclose(found, wanted[index], atol=1e-6)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(clients)]
        for thread in threads:
            thread.start()
        try:
            while time.monotonic() < end:
                time.sleep(restart)
                restarts.append(replace_workers(process))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    p50, p99 = np.percentile(times, [50, 99]) * 1e3 if times else (np.nan, np.nan)
    return {
        "answers": len(times),
        "failed": len(failed),
        "wrong": wrong,
        "restarts": sum(restarts),
        "restarts_given_up": len(restarts) - sum(restarts),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "failures": failed[:3],
    }


def main(arguments: list[str] | None = None) -> int:
    """Run and print; returns 6 where a request failed or an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--restart", type=float, default=10)
    args = parser.parse_args(arguments)
    found = load_service(args.bundle, args.seconds, args.restart)
    print(json.dumps(found))
    bad = found["failed"] or found["wrong"] or found["restarts_given_up"]
    return 6 if bad or not found["answers"] else 0


if __name__ == "__main__":
    sys.exit(main())
