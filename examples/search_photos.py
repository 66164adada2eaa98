"""Search photographs by a sentence.

    python examples/embed_folder.py clip.regcache ~/Pictures embeddings.npz
    python examples/search_photos.py clip.regcache embeddings.npz "a dog on the beach"

The bundle needs a text tower. Needs: pip install 'regcache-deploy[cpu]'.
"""

from __future__ import annotations

import sys
import zipfile

import numpy as np

import regcache_engines


def main(bundle: str, embeddings: str, *sentences: str) -> int:
    """Print the ten nearest photographs of every sentence; returns the exit code."""
    try:
        with np.load(embeddings) as stored:
            names, rows, model = (stored[name] for name in ("names", "embeddings", "model"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise regcache_engines.DataError(
            f"{embeddings} is not what embed_folder.py writes ({error})"
        ) from error
    with regcache_engines.open(bundle) as clip:
        if model != clip.bundle.manifest["files"]["model.onnx"]["sha256"]:
            raise regcache_engines.DataError(f"{embeddings} is of another bundle; embed again")
        queries = clip.embed_text(sentences)
    for sentence, cosines in zip(sentences, queries @ rows.T, strict=True):
        print(sentence)
        for index in np.argsort(-cosines)[:10]:
            print(f"  {cosines[index]:.4f}  {names[index]}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        sys.exit(main(*sys.argv[1:]))
    except regcache_engines.RegCacheError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
