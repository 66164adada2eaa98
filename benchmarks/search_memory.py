"""Peak memory of `regcache search` by the number of images, against the memory it was given.

    python benchmarks/search_memory.py --data PHOTOGRAPHS --output FILE.csv

The photographs are repeated in a list of files to each number, and every search runs in a process
of its own. The encoder is the embedded demo (synthetic, planted sinks): small, so that 50,000
images end in minutes, and what is measured is memory only. `--memory` bounds the hidden states
that are held; what is beyond it lies in files (`spilled_mib`). Pixels are held whole
(`pixels_mib`, computed), and once more, with as many copies, where the ways are raced.
`anonymous_mib` is the most without pages of files, which the system takes back when it needs them;
sampled. `growth_mib` is that over the one of the first number.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regcache_deploy.bench.environment import describe_machine
from regcache_deploy.encoders.load import load_model

HELD_OUT = 200
COLUMNS = (
    "images",
    "memory_mib",
    "pixels_mib",
    "states_mib",
    "spilled_mib",
    "peak_mib",
    "anonymous_mib",
    "growth_mib",
    "block_forwards",
    "seconds",
    "cpu",
)
SUFFIXES = {".jpg", ".jpeg", ".png"}


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    photographs = [p for p in sorted(args.data.rglob("*")) if p.suffix.lower() in SUFFIXES]
    height, width = load_model("demo").encoder.spec.image_size
    cpu = describe_machine()["cpu"]
    rows: list[dict[str, Any]] = []
    for count in args.images:
        cost, peak, anonymous = search(photographs, count, args)
        anonymous_mib = round(anonymous / 2**20, 1)
        rows.append(
            {
                "images": count,
                "memory_mib": round(args.memory * 1024),
                "pixels_mib": round((count + HELD_OUT) * 3 * height * width / 2**20, 1),
                "states_mib": round(cost["hidden_state_bytes"] / 2**20, 1),
                "spilled_mib": round(cost["spilled_state_bytes"] / 2**20, 1),
                "peak_mib": round(peak / 2**20, 1),
                "anonymous_mib": anonymous_mib,
                "growth_mib": round(
                    anonymous_mib - (rows[0]["anonymous_mib"] if rows else anonymous_mib), 1
                ),
                "block_forwards": cost["block_forwards"],
                "seconds": cost["seconds"],
                "cpu": cpu,
            }
        )
        print(rows[-1], flush=True)
        with args.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return 0


def search(photographs: list[Path], count: int, args: argparse.Namespace) -> tuple[Any, int, int]:
    """What the search says it took, and the most bytes that its process held: all, anonymous."""
    with tempfile.TemporaryDirectory(dir=args.scratch) as name:
        folder = Path(name)
        names = itertools.islice(itertools.cycle(photographs), count + HELD_OUT)
        (folder / "list.txt").write_text("".join(f"{path.absolute()}\n" for path in names))
        words = ["search", "--model", "demo", "--baseline", "naive", "--threads", "1", "--json"]
        words += ["--data", str(folder / "list.txt"), "--search-images", str(count), "--quiet"]
        words += ["--limit", str(HELD_OUT), "--memory", str(args.memory)]
        words += ["--budget-fraction", str(args.budget_fraction), "--output", str(folder / "run")]
        code = (
            "from regcache_deploy.cli.main import main;"
            "from regcache_deploy.work.count import peak_memory;"
            f"code = main({words!r}); print(peak_memory()); raise SystemExit(code)"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        anonymous = [0]
        watch = threading.Thread(target=_watch, args=(process, anonymous))
        watch.start()
        said, _ = process.communicate()
        watch.join()
    if process.returncode:
        raise SystemExit(f"regcache search of {count} images failed")
    if not anonymous[0]:
        raise SystemExit("anonymous memory is read from Linux's /proc, which is not here")
    document, peak = said.rstrip().rsplit("\n", 1)
    return json.loads(document)["search_cost"], int(peak), anonymous[0]


def _watch(process: subprocess.Popen[str], most: list[int]) -> None:
    """The most anonymous memory of a process, until it ends."""
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("RssAnon"):
                most[0] = max(most[0], 1024 * int(line.split()[1]))
        time.sleep(0.02)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--images", type=int, nargs="+", default=[512, 5000, 50000])
    parser.add_argument("--memory", type=float, default=0.25, help="GiB, as of regcache search")
    parser.add_argument("--budget-fraction", type=float, default=0.005, help="of the search")
    parser.add_argument("--scratch", type=Path, help="folder for runs, on a real disk")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
