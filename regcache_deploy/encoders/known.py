"""Is there such a model? Asked by `--dry-run`: without weights, and without a download."""

from __future__ import annotations

from pathlib import Path

from ..compat import import_open_clip, require
from ..errors import ConfigError
from .settings import DEMO


def check_model(name: str, pretrained: str | None) -> None:
    """Look for a model as far as this disk and the libraries' lists go.

    A repository of the hub that was never downloaded is not asked for; without a network it is an
    error. The plain demo is answered for without any library.

    Raises:
        ConfigError, ModelError, UnsupportedEncoderError: as in `load_model`.
    """
    if name == DEMO:
        if pretrained is not None:
            raise ConfigError(
                "the demo brings its own weights; --pretrained goes with --model NAME"
            )
        return
    open_clip = import_open_clip()
    from .demo_variants import check_demo
    from .load_natural import NATURAL, package_file
    from .load_onnx import ONNX, folder_of
    from .load_open_clip import weights_choice
    from .load_timm import timm_choice
    from .model_files import read_json
    from .source import CONFIG, find_source
    from .structure import TIMM
    from .transformers_families import family_of

    if name.partition("-")[0] == DEMO:
        check_demo(name, pretrained)
    elif name == NATURAL:
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
