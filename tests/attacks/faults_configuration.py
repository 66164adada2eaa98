"""Options and configuration files that cannot be meant, or that attack."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from regcache_deploy.errors import ConfigError
from tests.attacks.fault import Act, Fault, Place


def configured(text: str | bytes) -> Act:
    """An export with a configuration file."""

    def act(place: Place) -> list[str]:
        path = place.given / "options.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return ["export", "--config", str(path), "--output", str(place.out)]

    return act


def file_of(make: Callable[[Path], object]) -> Act:
    def act(place: Place) -> list[str]:
        path = place.given / "options.yaml"
        make(path)
        return ["export", "--config", str(path), "--output", str(place.out)]

    return act


def options(*words: str) -> Act:
    """A whole export with further words."""
    return lambda place: [*place.export(), *words]


def written_to(make: Callable[[Place], object]) -> Act:
    def act(place: Place) -> list[str]:
        return [*place.export(), "--output", str(make(place))]

    return act


def a_file(place: Place) -> Path:
    path = place.given / "file"
    path.write_bytes(b"")
    return path


def table_to(make: Callable[[Path], object], command: str = "eval", option: str = "--csv") -> Act:
    """A file of results in place of something that is no file."""

    def act(place: Place) -> list[str]:
        path = place.given / "table.csv"
        make(path)
        words = [command, str(place.bundle()), option, str(path)]
        if command == "eval":
            return [*words, "--data", str(place.images())]
        return [*words, *(("--classes", "cat,dog") if command == "head" else ())]

    return act


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def program(place: Place) -> list[str]:
    path = place.given / "options.yaml"
    path.write_text(f"limit: !!python/object/apply:os.system ['touch {place.canary}']\n")
    return ["export", "--config", str(path), "--output", str(place.out)]


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30)
)

fault = partial(Fault, "configuration", error=ConfigError)

FAULTS = [
    fault("command", "an unknown command", lambda p: ["exprot"], says="did you mean export"),
    fault("option", "an unknown option", options("--basline", "x"), says="did you mean"),
    fault("key", "an unknown key", configured("limmit: 3\n"), says="did you mean"),
    fault("type", "a word for a number", configured("limit: many\n")),
    fault("list", "a list for a number", configured("limit: [1, 2]\n")),
    fault("mapping", "a mapping for a number", configured("limit: {a: 1}\n")),
    fault("no-mapping", "a file that is a list", configured("- limit\n- 3\n")),
    fault("twice", "a key twice", configured("limit: 3\nlimit: 4\n")),
    fault("syntax", "no YAML", configured("limit: [3\n")),
    fault("encoding", "Latin-1", configured("output: caf\xe9\n".encode("latin-1"))),
    fault("zero-byte", "a zero byte", configured(b"limit: 3\0\n")),
    fault("deep", "100,000 lists in each other", configured("limit: " + "[" * 100_000)),
    fault("laughs", "aliases that stand for 10**29 words", configured(LAUGHS)),
    fault("program", "a YAML tag that runs a program", program),
    fault("folder", "a folder as the file", file_of(Path.mkdir)),
    fault("absent", "no file", file_of(lambda path: None)),
    fault("pipe", "a pipe as the file", file_of(os.mkfifo)),
    fault("bits", "99 bits", options("--bits", "W99A8")),
    fault("negative", "a negative number of images", options("--calibration-images", "-3")),
    fault("nothing", "no images to search on", options("--search-images", "0")),
    fault("seed", "a seed beyond 64 bits", options("--seed", "9" * 30)),
    fault("threads", "0 threads", options("--threads", "0")),
    fault("batch", "images in batches of 0", options("--batch-size", "0")),
    fault("share", "a budget of NaN", options("--budget-fraction", "nan")),
    fault("target", "an unknown target", options("--target", "tensorflow")),
    fault("layer", "a linear that there is not", options("--sensitive-layer", "blocks.9.mlp.fc2")),
    fault("block", "a prefix from block 99", options("--prefix-block", "99")),
    fault("all-tokens", "more deleted tokens than there are", options("--delete-count", "12")),
    fault("keep", "a linear in float that there is not", options("--keep-float", "blocks.9.fc2")),
    fault("contradiction", "a recipe against a fixed choice", options("--recipe", "smoothed")),
    fault("merge", "a schedule that is none", options("--merge", "(3,")),
    fault("size", "0 pixels", options("--img-size", "0")),
    fault("output-file", "a file as the output folder", written_to(a_file)),
    fault("output-below", "a folder below a file", written_to(lambda p: a_file(p) / "more")),
    fault("output-proc", "an output folder in /proc", written_to(lambda p: "/proc/regcache")),
    fault("output-long", "a name of 5,000 letters", written_to(lambda p: p.root / ("x" * 5000))),
    fault("data-long", "images at a name of 5,000 letters", options("--data", "x" * 5000)),
    fault("csv-pipe", "a pipe as the table of an evaluation", table_to(os.mkfifo), says="--csv"),
    fault("csv-socket", "a socket as the table of a benchmark", table_to(a_socket, "bench"),
          says="--csv"),
    fault("head-pipe", "a pipe as the file of a head", table_to(os.mkfifo, "head", "--output"),
          says="--output"),
    fault("from", "the choice of a search that is none", lambda p: [
        "export", "--from", str(p.images()), "--output", str(p.out)]),
]  # fmt: skip
