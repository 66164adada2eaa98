"""`python -m tests.fuzz [SECONDS] [TARGET ...]`: fuzz with coverage; needs the extra `fuzz`.

Every target runs in a process of its own. A crash leaves its input in `build/fuzz-python/`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BUILD = Path(__file__).parents[2] / "build/fuzz-python"


def fuzz(name: str, seconds: int) -> None:
    """One target; never returns."""
    import atheris

    ours = ["regcache_deploy", "regcache_export", "regcache_engines"]
    with atheris.instrument_imports(include=ours):
        from tests.attacks.kit import make_kit
        from tests.fuzz.targets import attempt, scratch_folder, targets

    folder = scratch_folder()
    (Path(folder.name) / "kit").mkdir()
    kit = make_kit(Path(folder.name) / "kit")
    target = targets(kit, Path(folder.name))[name]
    corpus = BUILD / name
    corpus.mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(target.seeds):
        (corpus / f"seed{index}").write_bytes(seed)
    most = max(4096, 2 * max(len(seed) for seed in target.seeds))
    words = [sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-max_len={most}"]
    words += [f"-artifact_prefix={BUILD}/{name}-", "-timeout=25", "-rss_limit_mb=4096"]
    atheris.Setup([*words, "-print_final_stats=1"], lambda data: attempt(target, data))
    atheris.Fuzz()


def main(words: list[str]) -> int:
    if words and words[0] == "--one":
        fuzz(words[1], int(words[2]))
    seconds = int(words.pop(0)) if words and words[0].isdigit() else 60
    failed = []
    for name in words or NAMES:
        print(f"== {name}, {seconds} s", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", "--one", name, str(seconds)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        lines = done.stderr.splitlines()
        kept = [
            line for line in lines if line.startswith(("stat::", "Done", "==")) or "rror" in line
        ]
        print("\n".join(kept[-12:]), flush=True)
        if done.returncode != 0:
            failed.append(name)
            print("\n".join(lines[-25:]), flush=True)
    print(f"failed: {', '.join(failed)}" if failed else "clean")
    return int(bool(failed))


NAMES = (
    *("plan", "plan-tensors", "manifest", "certificate", "preprocess", "head", "classes"),
    *(
        "templates",
        "prompts",
        "names",
        "text",
        "captions",
        "yaml",
        "encoder",
        "spec",
        "sidecar",
        "onnx",
        "words",
    ),
)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
