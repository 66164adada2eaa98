"""Embed every photograph under a folder, once: a matrix and the names of its rows.

    python examples/embed_folder.py clip.regcache ~/Pictures embeddings.npz

What cannot be read is said and left out. Memory holds one batch of images, not the folder.
Needs: pip install 'regcache-deploy[cpu]'.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np

import regcache_engines

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
BATCH = 64


def main(bundle: str, folder: str, output: str) -> int:
    """Write `embeddings [n, E]`, of length 1, `names [n]` and the model's hash.

    Returns:
        The exit code.
    """
    if not Path(output).absolute().parent.is_dir():  # before the work, not behind it
        raise regcache_engines.ConfigError(f"there is no folder for {output}")
    files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
    names: list[str] = []
    rows = []
    with regcache_engines.open(bundle) as clip:
        waiting = iter(files)
        while batch := list(itertools.islice(waiting, BATCH)):
            try:
                found = clip.embed_images(batch)
            except regcache_engines.DataError:  # one of them: find it
                good = [path for path in batch if _reads(clip, path)]
                if not good:
                    continue
                batch, found = good, clip.embed_images(good)
            names += [str(path.relative_to(folder)) for path in batch]
            rows.append(found)
            print(f"\r{len(names)} of {len(files)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    if not rows:
        raise regcache_engines.DataError(f"{folder} holds no image that can be read")
    maker = np.array(clip.bundle.manifest["files"]["model.onnx"]["sha256"])
    np.savez(output, embeddings=np.concatenate(rows), names=np.array(names), model=maker)
    return 0


def _reads(clip: regcache_engines.Clip, path: Path) -> bool:
    try:
        clip.preprocess.read(path)
    except regcache_engines.DataError as error:
        print(f"left out: {path}: {error}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        sys.exit(main(*sys.argv[1:]))
    except regcache_engines.RegCacheError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
