"""Options, defined once: a field of a frozen dataclass says its default and its words of help.

Every room has settings of its own, which hold what it reads. `cli/arguments.py` makes the command
line (and with it the configuration file) from the fields, `run/options.py` one object from the
rooms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError

MAX_THREADS = 1024

AUTO_WORKERS, RAY_URL = "auto", "ray://"
"""Words of `--workers` for a running cluster."""


def setting(default: Any, text: str, metavar: str | None = None) -> Any:
    """A field of a settings class.

    Args:
        default: its value where the user says nothing; None means that the command decides.
        text: for `--help`.
        metavar: stands for the value there.
    """
    return field(default=default, metadata={"help": text, "metavar": metavar})


def in_range(option: str, value: float | None, low: float, high: float | None = None) -> None:
    """Raise ConfigError unless `low <= value <= high`; None is in range, infinity never is."""
    if value is None or (low <= value < math.inf and (high is None or value <= high)):
        return
    limits = f"at least {low}" if high is None else f"{low} to {high}"
    raise ConfigError(f"{option} {value} is out of range: take {limits}")


def one_of(option: str, value: str, words: tuple[str, ...]) -> None:
    """Raise ConfigError unless the value is one of the words."""
    if value not in words:
        raise ConfigError(f"{option} {value}: take one of {', '.join(words)}")


def check_seed(seed: int) -> None:
    """Raise ConfigError where numpy's generators would refuse `seed`."""
    in_range("--seed", seed, 0, 2**32 - 1)


def split_names(text: str) -> tuple[str, ...]:
    """Words between commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


@dataclass(frozen=True)
class MachineSettings:
    """What a run takes of the machine, and its seed. Raises ConfigError out of range."""

    batch_size: int = setting(32, "images per forward pass", "N")
    threads: int | None = setting(None, "CPU threads (default: what affinity and quota leave)", "N")
    device: str = setting(
        "auto", "where torch computes: auto (a GPU if there is one), cpu, cuda, cuda:N, mps", "NAME"
    )
    seed: int = setting(0, "for every random choice", "N")

    def __post_init__(self) -> None:
        in_range("--batch-size", self.batch_size, 1)
        in_range("--threads", self.threads, 1, MAX_THREADS)
        check_seed(self.seed)


@dataclass(frozen=True)
class WorkerSettings:
    """Who computes beside this process. Raises ConfigError for other words."""

    workers: str | None = setting(
        None,
        "compute in N processes of this machine, auto: on a running Ray cluster, or on that of "
        "ray://HOST:PORT; takes the extra scale (default: in this process)",
        "N|auto|URL",
    )

    def __post_init__(self) -> None:
        if self.workers is None or self.workers == AUTO_WORKERS:
            return
        if self.workers.isdecimal() and 1 <= int(self.workers) <= MAX_THREADS:
            return
        if not self.workers.startswith(RAY_URL):
            raise ConfigError(
                f"--workers {self.workers}: take a number from 1 to {MAX_THREADS}, "
                f"{AUTO_WORKERS} for a running Ray cluster, or {RAY_URL}HOST:PORT"
            )
