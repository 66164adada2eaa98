"""Which architectures and tags open_clip and timm know, read from their files without an import.

Their import takes seconds, most of them for torch: too long an answer to a mistyped name. A layout
of these files that is not known here gives None, and the library itself must be asked.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

CONFIG = ("embed_dim", "vision_cfg", "text_cfg")
"""What makes a JSON file one of open_clip's architectures."""

ENTRY = re.compile(r"^@register_model\s*\ndef (\w+)", re.M)
RENAMED = re.compile(r"^register_model_deprecations\(\s*__name__,\s*\{(.*?)\}\)", re.M | re.S)
OLD_NAME = re.compile(r"""["'](\w+)["']\s*:""")


QUICK = "-quickgelu"
"""Behind an architecture that open_clip also has with GELU; its tags are some of that one's."""


def open_clip_names() -> Mapping[str, tuple[str, ...]] | None:
    """Architectures of open_clip, each with its tags; None where they cannot be read.

    Of those with QuickGELU all tags of the other are listed, which may be too many.
    """
    folder = _folder("open_clip")
    if folder is None:
        return None
    names = [path.stem for path in (folder / "model_configs").glob("*.json") if _is_config(path)]
    tags = _tags(folder / "pretrained.py")
    if not names or not tags:
        return None
    return {name: tags.get(name.removesuffix(QUICK), ()) for name in sorted(names)}


def timm_names() -> tuple[str, ...] | None:
    """Architectures of timm, old names included; None where they cannot be read."""
    folder = _folder("timm")
    if folder is None:
        return None
    names: set[str] = set()
    for path in (folder / "models").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        names.update(ENTRY.findall(text))
        for block in RENAMED.findall(text):
            names.update(OLD_NAME.findall(block))
    return tuple(sorted(names)) or None


def _folder(package: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # None in sys.modules: kept from being imported
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _is_config(path: Path) -> bool:
    return all(key in json.loads(path.read_text(encoding="utf-8")) for key in CONFIG)


def _tags(source: Path) -> dict[str, tuple[str, ...]]:
    """Keys of the dictionaries in the module's `_PRETRAINED`; empty for another layout."""
    if not source.is_file():
        return {}
    assigned = {
        node.targets[0].id: node.value
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    table = assigned.get("_PRETRAINED")
    if not isinstance(table, ast.Dict):
        return {}
    tags = {}
    for key, value in zip(table.keys, table.values, strict=True):
        inner = assigned.get(value.id) if isinstance(value, ast.Name) else value
        names = _keys(inner)
        if not isinstance(key, ast.Constant) or names is None:
            return {}
        tags[str(key.value)] = names
    return tags


def _keys(node: ast.expr | None) -> tuple[str, ...] | None:
    """Keys of `{...}` or `dict(...)`; None where one is not written out."""
    names: Iterable[str | None]
    if isinstance(node, ast.Dict):
        names = [str(k.value) if isinstance(k, ast.Constant) else None for k in node.keys]
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "dict" and not node.args:
        names = [keyword.arg for keyword in node.keywords]
    else:
        return None
    known = [name for name in names if name is not None]
    return tuple(known) if len(known) == len(list(names)) else None
