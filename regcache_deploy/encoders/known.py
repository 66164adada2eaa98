"""Is there such a model? Asked before anything is loaded, without weights or a download."""

from __future__ import annotations

import sys
from pathlib import Path

from ..compat import import_open_clip, require
from ..errors import ModelError
from .demo_names import check_demo
from .library_names import open_clip_names, timm_names
from .names import NATURAL, ONNX, TIMM, check_tag, random_seed, suggest, unknown_model
from .settings import DEMO
from .source import CONFIG, find_source, named_files


def check_names(name: str, pretrained: str | None) -> None:
    """Find a mistyped name or tag before the seconds that torch takes to import.

    What passes need not be there: this asks the libraries' files and this disk, not the libraries.

    Raises:
        ConfigError, ModelError: as in `load_model`.
    """
    random_seed(pretrained)
    if name.partition("-")[0] == DEMO:
        check_demo(name, pretrained)
    elif name.startswith(TIMM):
        architecture = name.removeprefix(TIMM).partition(".")[0]
        known = timm_names()
        if (
            known is not None
            and architecture not in known
            and not _registered("timm", architecture)
        ):
            raise ModelError(f"unknown model '{name}'{suggest(architecture, known)}")
    elif name.startswith(ONNX):
        file = Path(name.removeprefix(ONNX))
        if not file.is_file():
            raise ModelError(f"there is no file {file}")
    elif name != NATURAL and named_files(name, pretrained, download=False) is None:
        names = open_clip_names()
        if names is None or (name not in names and _registered("open_clip", name)):
            return
        if name not in names:
            raise unknown_model(name, names)
        check_tag(name, pretrained, names[name])


def _registered(library: str, name: str) -> bool:
    """Whether this program has made the name known to a library: then no file has it."""
    module = sys.modules.get(library)
    return module is not None and name in module.list_models()


def check_model(name: str, pretrained: str | None) -> None:
    """Look for a model as far as this disk and the libraries' lists go.

    A repository of the hub that was never downloaded is not asked for; without a network it is an
    error. The demos are answered for without any library.

    Raises:
        ConfigError, ModelError, UnsupportedEncoderError: as in `load_model`.
    """
    check_names(name, pretrained)
    if name.partition("-")[0] == DEMO:
        return
    open_clip = import_open_clip()
    from .load_natural import package_file
    from .load_onnx import folder_of
    from .load_open_clip import weights_choice
    from .load_timm import timm_choice
    from .model_files import read_json
    from .transformers_families import family_of

    if name == NATURAL:
        if pretrained is None:
            package_file()
    elif name.startswith(TIMM):
        timm_choice(require("timm", "search"), name, pretrained)
    elif name.startswith(ONNX):
        beside = folder_of(Path(name.removeprefix(ONNX))).path / CONFIG
        family_of(read_json(beside), str(beside))
    else:
        source = find_source(name, pretrained, download=False)
        if source is not None and source.open_clip is None:
            path = source.files.find(CONFIG)
            if path is not None:
                family_of(read_json(path), str(path))
        elif source is None and "/" not in name:
            weights_choice(open_clip, name, pretrained)
