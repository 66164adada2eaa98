"""Files that are no images, damaged images, bombs: an error code, no crash, no leak."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.cpp.programs import dump, python_reads, run
from tests.data.awkward_images import jpeg_of_scans, png
from tests.data.odd_pngs import REFUSED, TAKEN


def bad_images(folder: Path) -> dict[Path, str]:
    """Files and the statuses that they must be refused with."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    files: dict[str, tuple[str, bytes]] = {
        "empty.jpg": ("IMAGE_NOT_READABLE", b""),
        "text.jpg": ("IMAGE_FORMAT", b"this is no image"),
        "short.png": ("IMAGE_FORMAT", b"\x89PNG"),
        "short.jpg": ("IMAGE_DAMAGED", b"\xff\xd8\xff"),
        "head.png": ("IMAGE_DAMAGED", b"\x89PNG\r\n\x1a\n"),
        "scans.jpg": ("IMAGE_DAMAGED", jpeg_of_scans(4000, 40)),
    }
    for kind in ("png", "jpeg", "gif"):
        Image.fromarray(noise).save(folder / f"whole.{kind}")
    files["whole.gif"] = ("IMAGE_FORMAT", (folder / "whole.gif").read_bytes())
    for kind in ("png", "jpeg"):
        data = (folder / f"whole.{kind}").read_bytes()
        (folder / f"whole.{kind}").unlink()
        for part in (0.3, 0.6, 0.9):
            files[f"{part}.{kind}"] = ("IMAGE_DAMAGED", data[: int(len(data) * part)])
    # bombs: a large size in the header, and hardly any data
    bomb = bytearray(png(1, 1, 8, 2, b"abc"))
    bomb[16:24] = struct.pack(">II", 50_000, 50_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    files["bomb.png"] = ("IMAGE_TOO_LARGE", bytes(bomb))
    files["long.png"] = ("IMAGE_TOO_LARGE", png(2_000_000, 1, 8, 0, bytes(2_000_000)))
    for name, (_, data) in files.items():
        (folder / name).write_bytes(data)
    jpeg = folder / "bomb.jpg"
    Image.fromarray(noise).save(jpeg)
    frame = bytearray(jpeg.read_bytes())
    at = frame.index(b"\xff\xc0")
    frame[at + 5 : at + 9] = struct.pack(">HH", 65_500, 65_500)
    jpeg.write_bytes(bytes(frame))
    expected = {folder / name: status for name, (status, _) in files.items()}
    os.mkfifo(folder / "pipe.png")
    return expected | {
        jpeg: "IMAGE_TOO_LARGE",
        folder: "IMAGE_NOT_READABLE",
        folder / "pipe.png": "IMAGE_NOT_READABLE",
        folder / "no such file.png": "IMAGE_NOT_READABLE",
    }


def test_refused_images(release: Path, sanitized: Path, bundle: Path, tmp_path: Path) -> None:
    expected = bad_images(tmp_path / "bad")
    for folder in (release, sanitized):
        statuses, pixels, _ = dump(folder, bundle, list(expected), tmp_path / "out")
        assert len(pixels) == 0
        for (path, status), line in zip(expected.items(), statuses, strict=True):
            assert line.startswith(f"REGCACHE_{status} "), (path.name, line)


def test_a_wrong_checksum_is_refused_by_both(release: Path, bundle: Path, tmp_path: Path) -> None:
    """Of chunks that say nothing of the pixels, too."""
    whole = png(40, 40, 8, 2, bytes(40 * 40 * 3))
    paths = []
    for name in (b"tEXt", b"gAMA", b"prIv"):
        chunk = struct.pack(">I", 4) + name + b"\0\1\2\3" + struct.pack(">I", 7)
        paths.append(tmp_path / f"{name.decode()}.png")
        paths[-1].write_bytes(whole[:33] + chunk + whole[33:])
    statuses, _, _ = dump(release, bundle, paths, tmp_path / "out")
    assert all(line.startswith("REGCACHE_IMAGE_DAMAGED ") for line in statuses), statuses
    assert not any(python_reads(bundle, path) for path in paths)


def test_png_files_are_judged_as_in_python(
    release: Path, sanitized: Path, bundle: Path, tmp_path: Path
) -> None:
    """`tests/engines/test_png_chunks.py` has Python's side of the table."""
    files = TAKEN | REFUSED
    paths = [tmp_path / f"{name}.png" for name in files]
    for path, data in zip(paths, files.values(), strict=True):
        path.write_bytes(data)
    for folder in (release, sanitized):
        statuses, *_ = dump(folder, bundle, paths, tmp_path / "out")
        judged = dict(zip(files, (line == "ok" for line in statuses), strict=True))
        assert judged == dict.fromkeys(TAKEN, True) | dict.fromkeys(REFUSED, False)


def test_what_stands_behind_the_rows_of_a_jpeg_is_judged_as_in_python(
    release: Path, sanitized: Path, bundle: Path, tmp_path: Path
) -> None:
    """Where the data break off, the rest is grey; a marker that cannot be there tells."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    middle = whole.index(b"\xff\xda") + 400
    tails = (
        b"", b"\xff\xd9", b"junkjunk", b"\xff\xd0", b"\xff\xfe\0\5abc", b"\xff\xfe\x10\0abc",
        b"\xff\x20\0\0", b"\xff\xda\0\3a", b"\xff\xc4\0\3a", b"\xff\xd8",
    )  # fmt: skip
    paths = []
    for index, tail in enumerate(tails):
        files = (
            whole[:-2] + tail,
            whole[:-2] + tail + b"\xff\xd9",
            whole[:middle] + tail + whole[middle + len(tail) :],
        )
        for kind, data in enumerate(files):
            paths.append(tmp_path / f"{index}-{kind}.jpg")
            paths[-1].write_bytes(data)
    wanted = [python_reads(bundle, path) for path in paths]
    assert 10 < sum(wanted) < len(wanted) - 10
    for folder in (release, sanitized):
        statuses, *_ = dump(folder, bundle, paths, tmp_path / "out")
        assert [line == "ok" for line in statuses] == wanted, statuses


def test_a_text_that_unpacks_to_gigabytes_costs_no_memory(
    release: Path, bundle: Path, tmp_path: Path
) -> None:
    """The chunk is skipped: the picture is good, and no text is ever unpacked."""
    plain = png(40, 40, 8, 2, bytes(40 * 40 * 3))
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    chunks = b""
    for name, data in ((b"zTXt", b"a\0\0" + packed), (b"iCCP", b"b\0\0" + packed)):
        crc = struct.pack(">I", zlib.crc32(name + data))
        chunks += struct.pack(">I", len(data)) + name + data + crc
    after_header = 8 + 12 + 13
    memory = []
    for number, data in enumerate((plain, plain[:after_header] + chunks + plain[after_header:])):
        image = tmp_path / f"{number}.png"
        image.write_bytes(data)
        done = run(release / "regcache_classify", "--json", "--bench", 1, bundle, image)
        assert done.returncode == 0, done.stderr
        memory.append(json.loads(done.stdout)["bench"]["peak_memory_mib"])
    assert memory[1] < memory[0] + 16
