"""What `--model` names where that is no architecture: a folder, or a repository of the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, ModelError, UnsupportedEncoderError
from .hub import cache_folder, unreachable
from .model_files import Folder, ModelFiles, Repository, read_list
from .names import looks_like_path, random_seed

HUB, LOCAL = "hf-hub:", "local-dir:"
"""open_clip's words in front of a repository and of a folder."""

OPEN_CLIP_CONFIG = "open_clip_config.json"
CONFIG = "config.json"
MODULES = "modules.json"
"""sentence-transformers' list of the parts of a model."""

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")


@dataclass(frozen=True)
class Source:
    """Where a model's files are.

    Attributes:
        files: the folder that its configuration lies in.
        open_clip: the same in open_clip's words, where the layout is open_clip's, else None.
    """

    files: ModelFiles
    open_clip: str | None = None


def find_source(name: str, pretrained: str | None = None, download: bool = True) -> Source | None:
    """Where the files of `name` are; None where it names neither a folder nor a repository.

    Args:
        name: `--model`.
        pretrained: `--pretrained`.
        download: False looks only into the hub's cache; a repository that is not there is then
            an error without a network, and None with one.

    Raises:
        ConfigError: a tag for a model that brings its own weights.
        ModelError: no such folder or repository, or none of a known layout.
        UnsupportedEncoderError: sentence-transformers' model is more than its image tower.
    """
    files = named_files(name, pretrained, download)
    if files is None:
        return None
    if files.find(OPEN_CLIP_CONFIG) is not None:
        if pretrained is not None:
            raise ConfigError(f"{name} brings its own weights; leave --pretrained out")
        prefix = HUB if isinstance(files, Repository) else LOCAL
        return Source(files, prefix + files.title)
    if files.find(CONFIG) is not None:
        return Source(files)
    modules = files.find(MODULES)
    if modules is not None:
        return Source(files.below(_clip_module(modules)))
    if isinstance(files, Folder):
        raise ModelError(
            f"{files.title} has neither {OPEN_CLIP_CONFIG} nor {CONFIG}: it is no model in the "
            "layout of open_clip or transformers"
        )
    why = unreachable()
    if why is None and not download:
        return None
    if why is None:
        raise ModelError(
            f"the repository {files.title} has neither {OPEN_CLIP_CONFIG} nor {CONFIG}: it is no "
            "model in the layout of open_clip or transformers"
        )
    raise ModelError(
        f"unknown model '{name}', or one that was never downloaded: the files of {files.title} "
        f"are not in the cache {cache_folder()}, and {why}; download the repository on a "
        "machine with network, copy its folder here, and pass --model FOLDER"
    )


def named_files(name: str, pretrained: str | None, download: bool) -> Folder | Repository | None:
    """The folder or repository that `name` is, before a look inside; else None.

    Raises:
        ConfigError: a tag for a model that brings its own weights.
        ModelError: there is no such folder, or what it says is no repository.
    """
    files = _files_of(name, download)
    if files and random_seed(pretrained) is None and not looks_like_path(pretrained or "/"):
        raise ConfigError(f"{name} brings its own weights; leave --pretrained out")
    return files


def _files_of(name: str, download: bool) -> Folder | Repository | None:
    if name.startswith(LOCAL):
        path = Path(name.removeprefix(LOCAL))
        if not path.is_dir():
            raise ModelError(f"there is no folder {path}")
        return Folder(path)
    if name.startswith(HUB):
        repository = name.removeprefix(HUB)
        if REPOSITORY.fullmatch(repository) is None:
            raise ModelError(f"'{name}' is no hub repository; write {HUB}ORG/NAME")
        return Repository(repository, download=download)
    if Path(name).is_dir():
        return Folder(Path(name))
    if REPOSITORY.fullmatch(name):
        return Repository(name, download=download)
    if "/" in name:
        raise ModelError(f"unknown model '{name}': there is no such folder")
    return None


def _clip_module(modules: Path) -> str:
    """The folder of the CLIP in sentence-transformers' list of modules."""
    try:
        listed = [(str(m["type"]).rpartition(".")[2], str(m["path"])) for m in read_list(modules)]
    except (KeyError, TypeError) as error:
        raise ModelError(f"{modules} is no list of modules") from error
    # a norm behind it changes no cosine
    kinds = [(kind, path) for kind, path in listed if kind != "Normalize"]
    if [kind for kind, _ in kinds] != ["CLIPModel"]:
        names = ", ".join(kind for kind, _ in kinds) or "nothing"
        raise UnsupportedEncoderError(
            f"{modules} lists {names}; of sentence-transformers' models a CLIPModel alone is read"
        )
    return kinds[0][1]
