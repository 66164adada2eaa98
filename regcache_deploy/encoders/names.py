"""The words of `--model` and `--pretrained`, as far as they can be read without any library."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import ConfigError, ModelError
from .settings import DEMO

TIMM = "timm/"
ONNX = "onnx:"
NATURAL = "natural-vit-s14"


def random_seed(pretrained: str | None) -> int | None:
    """The seed of `random[:SEED]`, or None for other words.

    Raises:
        ConfigError: the seed is no whole number.
    """
    kind, _, seed = (pretrained or "").partition(":")
    if kind != "random":
        return None
    if seed and not seed.isdecimal():
        raise ConfigError(f"--pretrained {pretrained}: the seed must be a whole number")
    return int(seed or 0)


def looks_like_path(text: str) -> bool:
    suffixes = {".pt", ".pth", ".bin", ".safetensors", ".npz", ".ckpt", ".tar"}
    return "/" in text or Path(text).suffix in suffixes


def tag_and_path(pretrained: str, tags: Sequence[str]) -> tuple[str | None, Path | None]:
    """What `TAG`, `PATH` or `TAG=PATH` says of an architecture with these tags."""
    tag, separator, path = pretrained.partition("=")
    if separator and tag in tags:
        return tag, Path(path)
    return (None, Path(pretrained)) if looks_like_path(pretrained) else (pretrained, None)


def check_tag(name: str, pretrained: str | None, tags: Sequence[str]) -> None:
    """Hold `--pretrained` against the tags of an architecture of open_clip.

    Raises:
        ConfigError: nothing is said, or a seed that is no number.
        ModelError: no such tag or file.
    """
    if pretrained is None:
        raise ConfigError(
            f"--model {name} needs --pretrained: a tag ({', '.join(tags) or 'none known'}), "
            "a checkpoint path, TAG=PATH, or random[:SEED]"
        )
    if random_seed(pretrained) is not None:
        return
    tag, path = tag_and_path(pretrained, tags)
    if path is not None and not path.is_file():
        raise missing_file(name, pretrained, path, tags)
    if tag is not None and tag not in tags:
        raise unknown_tag(name, tag, tags)


def unknown_model(name: str, known: Iterable[str]) -> ModelError:
    return ModelError(f"unknown model '{name}'{suggest(name, [DEMO, NATURAL, *known])}")


def unknown_tag(name: str, tag: str, tags: Sequence[str]) -> ModelError:
    return ModelError(f"{name} has no pretrained tag '{tag}'{suggest(tag, tags)}")


def missing_file(name: str, pretrained: str, path: Path, tags: Sequence[str]) -> ModelError:
    """Where `path` is no file: of `TAG=PATH` with an unknown tag, that."""
    tag, separator, file = pretrained.partition("=")
    if separator and tag not in tags and Path(file).is_file():
        return unknown_tag(name, tag, tags)
    return ModelError(f"no checkpoint file at {path}")


def suggest(name: str, known: Sequence[str]) -> str:
    """`; did you mean: ...?`, or nothing where no known name is near."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"; did you mean: {', '.join(close)}?" if close else ""
