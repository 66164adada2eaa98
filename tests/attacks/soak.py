"""`python -m tests.attacks.soak [N]`: open and close an engine N times; memory must not grow."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.attacks.fault import Place
from tests.attacks.faults_service import opened_often, resident
from tests.attacks.kit import make_kit


def main(times: int) -> int:
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        place = Place(Path(scratch) / "place", make_kit(Path(scratch)))
        before = resident()
        wrong = opened_often(place, times)
        grown = (resident() - before) / 2**20
        print(f"{times} openings, with a batch of 16 each: {grown:+.1f} MiB since the first one")
    for line in wrong:
        print(line)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
