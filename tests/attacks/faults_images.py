"""Images, folders, shards and lists of names that are not what they should be."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image

from regcache_deploy.errors import ConfigError, DataError
from tests.attacks.fault import FIXED, SMALL, Act, Fault, Outcome, Place
from tests.attacks.watch import run_apart


def images(change: Callable[[Path, Place], object], *more: str) -> Act:
    """An export on a folder of images behind a change of it."""

    def act(place: Place) -> list[str]:
        folder = place.images()
        change(folder, place)
        return [*place.export(images=folder), *more]

    return act


def every(change: Callable[[Path], object], share: int = 1) -> Callable[[Path, Place], object]:
    """Change one image in `share`."""

    def apply(folder: Path, place: Place) -> None:
        for index, path in enumerate(sorted(folder.rglob("*.png"))):
            if index % share == 0:
                change(path)

    return apply


def evaluated(make: Callable[[Path], object], *more: str) -> Act:
    """An evaluation of a bundle on a folder that `make` fills."""

    def act(place: Place) -> list[str]:
        folder = place.given / "data"
        folder.mkdir()
        make(folder)
        return ["eval", str(place.bundle()), "--data", str(folder), *more]

    return act


def emptied(folder: Path, place: Place) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def one_file(folder: Path, place: Place) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


def one_class(folder: Path, place: Place) -> None:
    for path in list(folder.iterdir())[1:]:
        shutil.rmtree(path)


def one_image(folder: Path, place: Place) -> None:
    path = next(folder.rglob("*.png"))
    kept = path.read_bytes()
    emptied(folder, place)
    (folder / "only.png").write_bytes(kept)


def listed(make: Callable[[list[str]], str], name: str = "metadata.jsonl") -> Act:
    """An export on lists of its own for the search and the evaluation."""

    def act(place: Place) -> list[str]:
        first = place.images()
        second = Path(shutil.copytree(first, place.given / "others"))
        for folder in (first, second):
            names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
            (folder / name).write_text(make(names))
        return [*place.export(images=first), "--eval-data", str(second)]

    return act


def rows(names: list[str], more: str) -> str:
    good = (f'{{"file_name": "{name}", "label": "{name[:3]}"}}' for name in names)
    return "\n".join([*good, more])


def captions(*more: dict[str, object], caption: str | None = "a cat") -> Act:
    """An evaluation on captions of images of one folder, and on more of them."""

    def act(place: Place) -> list[str]:
        data = place.images() / "cat"
        entries = [{"id": i, "file_name": f"{i:02}.png"} for i in range(4)]
        texts = [{"image_id": i, "caption": caption} for i in range(4)]
        document = {"images": [*entries, *more], "annotations": texts}
        file = place.given / "captions.json"
        file.write_text(json.dumps(document))
        words = ["eval", str(place.bundle()), "--task", "retrieval", "--data", str(data)]
        return [*words, "--captions", str(file)]

    return act


def class_in_latin(folder: Path, place: Place) -> None:
    (folder / "cat").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9"))


def splits(folder: Path, place: Place) -> None:
    for name in ("train", "val"):
        shutil.copytree(folder, place.temporary / "x")
        shutil.move(place.temporary / "x", folder / name)
    for path in list(folder.iterdir()):
        if path.name not in ("train", "val"):
            shutil.rmtree(path)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def waiting(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def bomb(path: Path) -> None:
    """A PNG of 40,000 x 40,000 pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    size = struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 5001 * 100)
    data = chunk(b"IHDR", size) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def chunk_bomb(path: Path) -> None:
    """A text chunk that unpacks to a gigabyte."""
    image = io.BytesIO()
    Image.new("RGB", (40, 36)).save(image, "PNG")
    data = image.getvalue()
    text = b"Comment\0\0" + zlib.compress(b"\0" * (1 << 26))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + text))
    path.write_bytes(data[:33] + chunk + data[33:])


def circle(folder: Path, place: Place) -> None:
    (folder / "cat" / "again").symlink_to(folder)


def dead_links(folder: Path, place: Place) -> None:
    for name, target in (("circle", "circle"), ("long", "x" * 300)):
        (folder / name).symlink_to(target)


def linked_out(folder: Path, place: Place) -> None:
    """A class is a link to a folder without images."""
    (folder / "secret").symlink_to(place.outside)


def awkward_names(folder: Path, place: Place) -> None:
    for index, path in enumerate(sorted((folder / "cat").iterdir())):
        name = os.fsdecode(
            [b"a\nb.png", b"\xff\xfe.png", "画像.png".encode(), b"-v.png"][index % 4]
        )
        path.rename(path.with_name(f"{index}{name}"))


def shard(change: Callable[[Path], object], names: bytes = b"bus\ncat\ndog\nsun\n") -> Act:
    def make(folder: Path) -> None:
        (folder / "classnames.txt").write_bytes(names)
        with tarfile.open(folder / "000.tar", "w") as archive:
            for index in range(24):
                image = io.BytesIO()
                Image.new("RGB", (40, 36), (index * 9, 80, 200)).save(image, "PNG")
                label = str(index % 4).encode()
                for end, data in (("png", image.getvalue()), ("cls", label)):
                    entry = tarfile.TarInfo(f"{index:04}.{end}")
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
        change(folder / "000.tar")

    return evaluated(make)


def cut_archive(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 - 700])


def climbing(path: Path) -> None:
    with tarfile.open(path, "a") as archive:
        entry = tarfile.TarInfo("../../../outside/canary")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"text"))


def hard_link(path: Path) -> None:
    """As tar packs the second name of a file."""
    with tarfile.open(path, "a") as archive:
        entry = tarfile.TarInfo("0024.png")
        entry.type, entry.linkname = tarfile.LNKTYPE, "0023.png"
        archive.addfile(entry)


def one_name(path: Path) -> None:
    """The last image once more, under its own name."""
    with tarfile.open(path, "a") as archive:
        image = io.BytesIO()
        Image.new("RGB", (40, 36)).save(image, "PNG")
        entry = tarfile.TarInfo("0023.png")
        entry.size = len(image.getvalue())
        archive.addfile(entry, io.BytesIO(image.getvalue()))


def archive_among_images(folder: Path, place: Place) -> None:
    """One class, packed and left where it was."""
    with tarfile.open(folder / "cat.tar", "w") as archive:
        for path in sorted((folder / "cat").iterdir()):
            archive.add(path, path.name)


def label_out_of_range(path: Path) -> None:
    with tarfile.open(path, "a") as archive:
        image = io.BytesIO()
        Image.new("RGB", (40, 36)).save(image, "PNG")
        for end, data in (("png", image.getvalue()), ("cls", b"99")):
            entry = tarfile.TarInfo(f"9999.{end}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def nothing(path: Path) -> None:
    """The whole thing."""


def templates(text: bytes) -> Act:
    def act(place: Place) -> list[str]:
        path = place.given / "templates.txt"
        path.write_bytes(text)
        words = [
            "export",
            "--model",
            "ViT-B-32",
            "--pretrained",
            "random",
            "--templates",
            str(path),
        ]
        return [*words, "--data", str(place.images()), "--output", str(place.out), *SMALL, *FIXED]

    return act


def postscript(place: Place) -> Outcome:
    """PostScript named .jpg, where there is a Ghostscript to start."""
    folder, program = place.images(), place.root / "bin" / "gs"
    for path in folder.rglob("*.png"):
        box = b"%%BoundingBox: 0 0 40 36\n%%EndComments\n%%EOF\n"
        path.with_suffix(".jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n" + box)
        path.unlink()
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{place.canary}'\n")
    program.chmod(0o755)
    found = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    words = ["eval", str(place.bundle()), "--data", str(folder)]
    return run_apart(place, words, 60, PATH=found)


def calibrated(change: Callable[[Path, Place], object]) -> Act:
    def act(place: Place) -> list[str]:
        folder, run = place.images(), place.run()
        change(folder, place)
        words = ["calibrate", str(run), "--data", str(folder), "--images", "16"]
        return [*words, "--output", str(place.out)]

    return act


fault = partial(Fault, "images", error=DataError)
goes_on = partial(Fault, "images", error=None, seconds=60, quick=False)

FAULTS = [
    fault("absent", "no folder", images(lambda f, p: shutil.rmtree(f))),
    fault("file", "a file in place of the folder", images(one_file)),
    fault("empty", "an empty folder", images(emptied)),
    fault("single", "one image", images(one_image)),
    fault("one-class", "one class", images(one_class)),
    fault("splits", "splits in place of classes", images(splits), says="train"),
    fault("zero-bytes", "every image of 0 bytes", images(every(lambda p: p.write_bytes(b"")))),
    fault("cut", "every image cut off", images(every(truncated))),
    fault(
        "web-pages",
        "a web page in place of every third image",
        images(every(lambda p: p.write_bytes(b"<html>"), 3)),
    ),
    fault("bombs", "PNGs of 40,000 x 40,000 pixels", images(every(bomb))),
    fault("endless", "links to /dev/zero", images(every(endless))),
    fault("pipes", "pipes named .png", images(every(waiting))),
    fault("dangling", "links to nowhere", images(every(dangling))),
    fault("folders", "folders named .png", images(every(to_folder))),
    fault(
        "same-twice",
        "the evaluation on the images of the search",
        lambda p: [*p.export(images=(folder := p.images())), "--eval-data", str(folder)],
        error=ConfigError,
    ),
    fault("shard-cut", "a shard cut off", shard(cut_archive)),
    fault("shard-label", "a label beyond the classes", shard(label_out_of_range)),
    fault("shard-among", "a tar file in a folder of images, to calibrate",
          calibrated(archive_among_images), says="shards"),
    fault("shard-link", "a shard with an image as a hard link", shard(hard_link), says="link"),
    fault("shard-twice", "a shard with one name twice", shard(one_name), says="twice"),
    fault("list-zero", "a file name with a zero byte", listed(
        lambda n: rows(n, '{"file_name": "a\\u0000.png", "label": "cat"}'))),
    fault("list-half", "a file name with half a surrogate pair", listed(
        lambda n: rows(n, '{"file_name": "\\ud800.png", "label": "cat"}'))),
    fault("list-deep", "100,000 lists in each other in the metadata", listed(
        lambda n: rows(n, "[" * 100_000))),
    fault("list-outside", "metadata that name images outside of their folder", listed(
        lambda n: rows(n, '{"file_name": "../../outside/a.png", "label": "cat"}')), says="outside"),
    fault("captions-outside", "captions of images outside of their folder", captions(
        {"id": 9, "file_name": "../dog/00.png"}), says="outside"),
    fault("captions-twice", "captions of an image that is two files", captions(
        {"id": 0, "file_name": "01.png"}), says="twice"),
    fault("captions-null", "a caption that is null", captions(caption=None), says="no text"),
    fault("class-latin", "a class folder in Latin-1", images(class_in_latin), says="UTF-8"),
    fault("names-gap", "an empty line among the names", shard(nothing, b"bus\n\ndog\nsun\n")),
    fault("names-latin", "names in Latin-1", shard(nothing, b"bus\ncaf\xe9\ndog\nsun\n")),
    fault("names-few", "fewer names than labels", shard(nothing, b"bus\ncat\n")),
    fault("shards-missing", "shards that are not there", lambda p: [
        "eval", str(p.bundle()), "--data", str(p.given / "x-{000..012}.tar")]),
    fault("shards-many", "10**12 shards", lambda p: [
        "eval", str(p.bundle()), "--data", str(p.given / "x-{0..999999999999}.tar")]),
    fault("set-unknown", "a set that torchvision has not", lambda p: [
        "eval", str(p.bundle()), "--data", f"torchvision:CIFAR9:{p.given}"], error=ConfigError),
    fault("image-absent", "an image that is not there", lambda p: [
        "eval", str(p.bundle()), "--images", str(p.given / "cat.jpg")]),
    fault("templates-two", "two places in a template", templates(b"a {} and {}.\n"),
          error=ConfigError),
    fault("templates-latin", "templates in Latin-1", templates(b"a caf\xe9 {}.\n"),
          error=ConfigError),
    fault("templates-empty", "no templates", templates(b"\n"), error=ConfigError),
    fault("calibrate-cut", "every image cut off, to calibrate", calibrated(every(truncated))),
    fault("calibrate-empty", "an empty folder, to calibrate", calibrated(emptied)),
    goes_on("names", "names with line feeds, no UTF-8, and a dash", images(awkward_names)),
    goes_on("dead-links", "links to themselves, and to what cannot be", images(dead_links)),
    goes_on("circle", "a folder that holds itself", images(circle)),
    fault("postscript", "PostScript named .jpg, which Pillow has a program run", postscript,
          quick=False),
    fault("climbing", "a shard with a file named ../../x", shard(climbing)),
    goes_on("text-bombs", "a PNG with 64 MiB of text", images(every(chunk_bomb, 64))),
]  # fmt: skip
