"""Zero-shot heads from class names by a bundle's text tower, without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from .documents import parse_json, read_document
from .errors import ConfigError
from .head import head_bytes
from .text import Embeddings, TextTower
from .text_config import has_one_place


def make_head(
    tower: TextTower,
    classes: Sequence[str],
    templates: Sequence[str] | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Embeddings:
    """Class names -> L2-normalized head `[classes, E]`, as open_clip makes it.

    Every class is the normalized mean of its normalized embeddings in all templates.

    Args:
        tower: of a bundle.
        classes: names.
        templates: prompts with `{}` for the name; None takes those of the bundle's export.
        advance: called with a count of finished classes.

    Raises:
        ConfigError: no class or no template.
        DataError, EngineError: as `TextTower.embed`.
    """
    templates = tower.config.templates if templates is None else tuple(templates)
    if not classes or not templates:
        raise ConfigError("a head needs at least one class name and one template")
    rows = []
    for name in classes:
        features = _unit(tower.embed([template.replace("{}", name) for template in templates]))
        rows.append(_unit(features.mean(axis=0, keepdims=True)))
        advance(1)
    return np.concatenate(rows)


def head_file(
    tower: TextTower,
    classes: Sequence[str],
    templates: Sequence[str] | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> bytes:
    """The same as a file: that of a bundle's own head, with the hash of the tower's weights.

    Raises:
        ConfigError, DataError, EngineError: as `make_head`.
    """
    features = make_head(tower, classes, templates, advance)
    config = tower.config
    return head_bytes(features, classes, config.logit_scale, weights_sha256=config.weights_sha256)


def read_classes(choice: str) -> tuple[str, ...]:
    """Class names of a file, one a line, or a list with commas.

    Raises:
        ConfigError: no name, one that is empty or there twice, or no such file.
    """
    path = Path(choice)
    if "," not in choice and path.suffix and not path.is_file():
        raise ConfigError(f"--classes {choice}: there is no such file")
    names = [*_lines(path)] if path.is_file() else [name.strip() for name in choice.split(",")]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise ConfigError(f"--classes {choice}: no class names; write them with commas, or a file")
    if "" in names:
        raise ConfigError(
            f"--classes {choice}: name {names.index('') + 1} is empty, and its number is its "
            "label; write it, or take the line out"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"--classes {choice}: '{twice}' is there twice")
    return tuple(names)


def read_prompts(choice: str) -> tuple[str, ...]:
    """Templates of a file, one a line with `{}` or `{c}` for the class, or a single one.

    Raises:
        ConfigError: no such file, an empty one, or a line without a place for the class; or JSON,
            as clip_benchmark keeps them, whose brackets would become part of the prompts.
    """
    path = Path(choice)
    if not path.is_file() and "{" not in choice:
        raise ConfigError(f"--templates {choice}: no such file, and no prompt with {{}}")
    lines = [line.strip() for line in (_lines(path) if path.is_file() else [choice])]
    with suppress(ValueError):
        found = parse_json("\n".join(lines))
        if found and isinstance(found, (dict, list)):  # {} alone is the name alone
            raise ConfigError(f"--templates {choice} is JSON; write one template a line, no more")
    templates = tuple(line.replace("{c}", "{}") for line in lines if line)
    wrong = next((line for line in templates if not has_one_place(line)), None)
    if wrong is not None:
        raise ConfigError(f"{choice}: '{wrong}' needs {{}} once, where the class name goes")
    if not templates:
        raise ConfigError(f"{path} holds no templates; write one a line, e.g. a photo of a {{}}.")
    return templates


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in read_document(path).split("\n")]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not readable as UTF-8: {error}") from error


def _unit(features: Embeddings) -> Embeddings:
    norms = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    unit: Embeddings = (features / norms).astype(np.float32)
    return unit
