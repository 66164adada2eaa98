"""Image towers of open_clip's models whose text tower is one of transformers.

Building such a model needs transformers and the text tower's own files; the image tower needs
neither. A placeholder of a few numbers stands where the text tower would.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .hub import WEIGHT_FILES
from .model_files import read_json
from .source import OPEN_CLIP_CONFIG, Source

WITHOUT_TEXT: Mapping[str, Any] = {
    "load_weights": False,
    "text_cfg": {"context_length": 1, "vocab_size": 2, "width": 64, "heads": 1, "layers": 1},
}
"""Arguments of open_clip's `create_model`."""


def foreign_text_tower(open_clip: Any, name: str, source: Source | None) -> str | None:
    """The name of a text tower of transformers; None where it is open_clip's own.

    Raises:
        ModelError: the source's configuration is no JSON.
    """
    config = open_clip.get_model_config(name) if source is None else _config(source)
    tower = ((config or {}).get("text_cfg") or {}).get("hf_model_name")
    return None if tower is None else str(tower)


def weights_file(open_clip: Any, name: str, tag: str | None, source: Source | None) -> Path | None:
    """The file of a tag's or a source's weights, downloaded if need be; None for random ones.

    Raises:
        ModelError: the source has none.
        Exception: whatever a download raises.
    """
    if tag is not None:
        return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, tag)))
    if source is None:
        return None
    for file in WEIGHT_FILES:
        path = source.files.find(file)
        if path is not None:
            return path
    raise ModelError(source.files.absence(WEIGHT_FILES[0]))


def _config(source: Source) -> Mapping[str, Any]:
    path = source.files.find(OPEN_CLIP_CONFIG)
    config = read_json(path).get("model_cfg") if path is not None else None
    return config if isinstance(config, dict) else {}
