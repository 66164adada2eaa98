"""Make the awkward images of this folder. Run: python tests/engines/golden/make.py

They are files, not made anew by each test, so that a change in an encoder library shows up as a
changed result and not as a changed input. Same Pillow, same bytes; the tests do not depend on it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent


def picture(width: int, height: int, channels: int = 3) -> np.ndarray:
    """A gradient with smooth waves and a little noise, uint8 `[H, W, C]`."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(width * 10_000 + height).integers(
        0, 24, (height, width, channels)
    )
    waves = [np.sin(x / 9 + c) * 50 + np.cos(y / 7 - c) * 40 + 110 for c in range(channels)]
    return np.clip(np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)


def main() -> None:
    """Write every image."""
    Image.fromarray(picture(213, 157)).save(HERE / "odd_size.jpg", quality=85)
    Image.fromarray(picture(97, 131)[..., 0]).save(HERE / "grey.png")
    Image.fromarray(picture(96, 80, 4), "RGBA").save(HERE / "alpha.png")
    Image.fromarray(picture(64, 48)[..., 0]).convert("LA").save(HERE / "grey_alpha.png")
    deep = picture(70, 90)[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(HERE / "sixteen_bit.png")
    Image.fromarray(picture(120, 90, 4), "CMYK").save(HERE / "cmyk.jpg", quality=85)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(picture(140, 60)).save(HERE / "rotated.jpg", quality=85, exif=exif)
    Image.fromarray(picture(1, 1)).save(HERE / "one_pixel.png")
    Image.fromarray(picture(3, 2)).save(HERE / "tiny.png")
    Image.fromarray(picture(900, 6)).save(HERE / "wide.png")
    Image.fromarray(picture(5, 700)).save(HERE / "tall.png")
    Image.fromarray(picture(60, 60)).convert("P", palette=Image.Palette.ADAPTIVE).save(
        HERE / "palette.gif"
    )
    Image.fromarray(picture(50, 70)[..., 0]).convert("1").save(HERE / "bilevel.png")


if __name__ == "__main__":
    main()
