"""What a fault is: an injection, and what the command must answer to it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from regcache_deploy.errors import RegCacheError
from tests.attacks.kit import Kit


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        code: exit code; a negative one is the signal that ended it.
        seconds: wall time.
        out: of stdout.
        err: of stderr.
        opened: files that it opened, and whether to write.
        faults: what else was seen that must not be, in words.
    """

    code: int
    seconds: float = 0.0
    out: str = ""
    err: str = ""
    opened: frozenset[tuple[str, bool]] = frozenset()
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """The folders of one fault: what the command is given, writes to, and must not touch.

    Attributes:
        root: of all.
        kit: whole things to damage copies of.
        quiet: the command says no more than it must.
    """

    root: Path
    kit: Kit = field(repr=False)

    def __post_init__(self) -> None:
        for folder in (self.given, self.outside, self.temporary, self.home):
            folder.mkdir(parents=True)
        (self.outside / "secret").write_bytes(b"secret")

    @property
    def given(self) -> Path:
        """Inputs. Nothing in it may change."""
        return self.root / "given"

    @property
    def out(self) -> Path:
        """Where results go; not there before the command."""
        return self.root / "out"

    @property
    def outside(self) -> Path:
        """Nothing in it may be opened; `canary` in it is written by code that must not run."""
        return self.root / "outside"

    @property
    def canary(self) -> Path:
        return self.outside / "canary"

    @property
    def temporary(self) -> Path:
        """TMPDIR. Empty afterwards."""
        return self.root / "tmp"

    @property
    def home(self) -> Path:
        return self.root / "home"

    def encoder(self) -> Path:
        """A copy of a whole encoder file (see `encoder_file`)."""
        return Path(shutil.copy(self.kit.encoder, self.given / "encoder.safetensors"))

    def images(self) -> Path:
        """A copy of four classes of 16 images."""
        return Path(shutil.copytree(self.kit.images, self.given / "images"))

    def run(self) -> Path:
        """A copy of a run folder: plan, and a bundle with head and certificate."""
        return Path(shutil.copytree(self.kit.run, self.given / "run"))

    def bundle(self) -> Path:
        """The bundle of a copied run folder."""
        return self.run() / "tiny.regcache"

    def export(self, encoder: Path | None = None, images: Path | None = None) -> list[str]:
        """A whole export of these, with a fixed choice."""
        words = ["export", "--model", "natural-vit-s14", "--output", str(self.out)]
        words += ["--pretrained", str(encoder or self.encoder())]
        words += ["--data", str(images or self.images())]
        return [*words, *SMALL, *FIXED]

    def search(self) -> list[str]:
        """A whole search."""
        words = ["search", "--model", "natural-vit-s14", "--output", str(self.out)]
        words += ["--pretrained", str(self.encoder()), "--data", str(self.images())]
        return [*words, *SMALL]


SMALL = [
    *("--baseline", "naive", "--search-images", "24", "--calibration-images", "8"),
    *("--limit", "16", "--threads", "1"),
]
FIXED = [
    *("--recipe", "regcache", "--prefix-block", "1", "--prefix-count", "2"),
    *("--delete-count", "2", "--certificate-images", "2"),
]

Act = Callable[[Place], Sequence[str] | Outcome]
"""Damages something, and gives the words of the command, or runs it itself."""


@dataclass(frozen=True)
class Fault:
    """One row of the catalogue.

    Attributes:
        group: weights, images, ...
        name: unique in its group.
        what: the injection, in words.
        act: damages, and says what to run.
        error: class whose exit code the command must end with; None where it must go on.
        seconds: within which it must, on a machine that others use.
        says: words that must be among what it says.
        leaves: names in the output folder that may be there after an error.
        quick: part of `make test`.
        traced: run by itself under strace, where there is one, so that files opened by native code
            are seen, too.
    """

    group: str
    name: str
    what: str
    act: Act = field(repr=False)
    error: type[RegCacheError] | None
    seconds: float = 60.0
    says: str = ""
    leaves: tuple[str, ...] = ()
    quick: bool = True
    traced: bool = False

    @property
    def id(self) -> str:
        return f"{self.group}/{self.name}"

    @property
    def code(self) -> int:
        """The exit code that it must end with."""
        return 0 if self.error is None else self.error.exit_code
