"""Name what is on photographs.

    python examples/classify.py clip.regcache cat.jpg dog.jpg

The classes are those of the bundle's zero-shot head. Needs: pip install 'regcache-deploy[cpu]'.
"""

from __future__ import annotations

import sys

import regcache_engines


def main(bundle: str, *images: str) -> int:
    """Print the five likeliest classes of every image; returns the exit code."""
    with regcache_engines.open(bundle) as clip:
        if clip.caution:
            print(f"Note: {clip.caution}.")
        for image, found in zip(images, clip.classify(images), strict=True):
            print(image)
            for best in found:
                print(f"  {best.score:7.2%}  {best.label}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        sys.exit(main(*sys.argv[1:]))
    except regcache_engines.RegCacheError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
