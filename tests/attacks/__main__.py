"""`python -m tests.attacks [WORD ...]`: execute the catalogue and print the score.

Words choose faults whose id holds one of them. The exit code is 1 where one was not handled, and 2
where none was chosen.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from tests.attacks.catalogue import FAULTS
from tests.attacks.judge import Verdict, execute
from tests.attacks.kit import make_kit


def main(words: list[str]) -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # of what killed processes had made: it is cleared away, and told of behind the score
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    chosen = [fault for fault in FAULTS if not words or any(word in fault.id for word in words)]
    if not chosen:
        print(f"no fault of the catalogue has {' or '.join(words)} in its id", file=sys.stderr)
        return 2
    verdicts: dict[str, list[Verdict]] = defaultdict(list)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="attacks-") as scratch:
        kit = make_kit(Path(scratch))
        for index, fault in enumerate(chosen):
            verdict = execute(fault, kit, Path(scratch) / str(index))
            verdicts[fault.group].append(verdict)
            state = "handled" if not verdict.wrong else "NOT HANDLED"
            seconds = verdict.outcome.seconds
            print(f"{state:<12}{seconds:7.2f} s  {fault.id}: {fault.what}", flush=True)
            for wrong in verdict.wrong:
                print(f"{'':<12}{wrong}", flush=True)
    print(f"\n{'group':<16}{'handled':>10}{'slowest':>12}")
    for group, found in verdicts.items():
        slowest = max(verdict.outcome.seconds for verdict in found)
        print(f"{group:<16}{_score(found):>10}{slowest:>10.1f} s")
    everything = [verdict for found in verdicts.values() for verdict in found]
    print(f"\n{time.monotonic() - begin:.0f} s in all\n{_score(everything)}")
    return int(any(verdict.wrong for verdict in everything))


def _score(verdicts: list[Verdict]) -> str:
    return f"{sum(not verdict.wrong for verdict in verdicts)}/{len(verdicts)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
