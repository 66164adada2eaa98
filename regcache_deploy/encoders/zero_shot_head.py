"""The zero-shot head: class names through the text tower, once, then from the disk cache.

ImageNet's 1000 classes with 80 templates are 80,000 texts: an hour and more on a small CPU.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from regcache_engines.files import atomic_write_bytes
from regcache_engines.text_head import read_prompts

from ..errors import ConfigError, ModelError
from ..work.progress import Reporter
from .hub import first_line

CLASSES_AT_ONCE = 10
TEMPLATE_SETS = ("openai", "simple")
DEFAULT_TEMPLATES = "openai"

log = logging.getLogger(__name__)


class TextHead(Protocol):
    """Class names -> L2-normalized zero-shot head `[C, E]`."""

    def __call__(self, names: Sequence[str], reporter: Reporter | None = None) -> Tensor: ...

    def key(self, names: Sequence[str]) -> str:
        """Hash of what decides the head of these names."""
        ...


def read_templates(choice: str) -> tuple[str, ...]:
    """Prompt templates with `{}` where the class name goes.

    Args:
        choice: `openai` (80 of the CLIP paper), `simple` (its 7 best), or a file with one template
            a line; `{c}` stands for the class, too, as in clip_benchmark.

    Raises:
        ConfigError: no such file or set, an empty file, or a line without a place for the class.
    """
    if choice in TEMPLATE_SETS:
        import open_clip

        sets = (open_clip.OPENAI_IMAGENET_TEMPLATES, open_clip.SIMPLE_IMAGENET_TEMPLATES)
        return tuple(template("{}") for template in sets[TEMPLATE_SETS.index(choice)])
    path = Path(choice)
    if not path.is_file():
        raise ConfigError(
            f"--templates {choice}: neither {' nor '.join(TEMPLATE_SETS)}, and no such file"
        )
    return read_prompts(choice)


def _fill(template: str, name: str) -> str:
    """The prompt. Not `str.format`: other braces are the user's own text."""
    return template.replace("{}", name)


def load_tokenizer(make: Callable[[], Any]) -> Any:
    """What `make` makes.

    Raises:
        ConfigError: the tokenizer's library is not installed.
        ModelError: its files cannot be had.
    """
    try:
        return make()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the tokenizer of this text tower needs {error.name}, which is not installed; "
            "run: pip install 'regcache-deploy[siglip]'"
        ) from error
    except Exception as error:  # a tokenizer of another library, from the network
        raise ModelError(
            f"the tokenizer of this text tower could not be had ({first_line(error)}); place "
            "its files into the Hugging Face cache, or evaluate without class names"
        ) from error


def text_tower_key(model: torch.nn.Module, *words: Sequence[str]) -> str:
    """Hash of a model without its image tower, modules and weights, and of lists of words."""
    digest = hashlib.sha256(_settings(model).encode())
    for name, module in model.named_children():
        if name != "visual":
            # QuickGELU and GELU have the same weights.
            digest.update(f"{name}: {module!r}".encode())
            for inner in module.modules() if isinstance(module, torch.nn.Module) else ():
                digest.update(_settings(inner).encode())
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith("visual."):
            digest.update(name.encode())
            digest.update(value.detach().float().contiguous().numpy().tobytes())
    digest.update(json.dumps([list(each) for each in words]).encode())
    return digest.hexdigest()


def _settings(module: Any) -> str:
    """Heads, pooling, special tokens: what neither a module's weights nor its name tell."""
    plain = (bool, int, float, str, type(None))
    return repr(sorted((n, v) for n, v in vars(module).items() if isinstance(v, plain)))


@dataclass(frozen=True)
class OpenClipHead:
    """The head of an open_clip model; implements `TextHead`.

    Attributes:
        model: with a text tower.
        tokenizer: makes the tokenizer (which may need a download of its own).
        templates: with `{}` for the class name.
        cache: folder of finished heads; None computes anew.
    """

    model: Any = field(repr=False)
    tokenizer: Callable[[], Any] = field(repr=False)
    templates: tuple[str, ...] = field(repr=False)
    cache: Path | None = None

    def __call__(self, names: Sequence[str], reporter: Reporter | None = None) -> Tensor:
        """Compute the head, or read it from the cache, for which no tokenizer need be there.

        Raises:
            ConfigError: the tokenizer's library is not installed.
            ModelError: the tokenizer cannot be had, or the text tower gives NaN.
        """
        key = text_tower_key(self.model, names, self.templates)
        path = self.cache / f"{key}.safetensors" if self.cache else None
        if path is not None and path.is_file():
            found = _read(path, len(names))
            if found is not None and self._is_of_this_tokenizer(found[1], names):
                return found[0]
        head = self.compute(names, reporter or Reporter(quiet=True))
        if path is not None:
            _write(path, head, self._tokens(names))
        return head

    def key(self, names: Sequence[str]) -> str:
        """Hash of the text tower, the names, the templates, and the tokenizer where it is there."""
        try:
            tokens = [self._tokens(names)]
        except (ConfigError, ModelError):
            tokens = []
        return text_tower_key(self.model, names, self.templates, tokens)

    @cached_property
    def _loaded(self) -> Any:
        """The tokenizer, or the error: without a network each attempt takes a minute."""
        try:
            return load_tokenizer(self.tokenizer)
        except (ConfigError, ModelError) as error:
            return error

    @property
    def _tokenizer(self) -> Any:
        if isinstance(self._loaded, (ConfigError, ModelError)):
            raise self._loaded
        return self._loaded

    def _is_of_this_tokenizer(self, tokens: str, names: Sequence[str]) -> bool:
        try:
            return tokens == self._tokens(names)
        except (ConfigError, ModelError) as error:
            log.warning("the zero-shot head is taken from %s as it is: %s", self.cache, error)
            return True

    def _tokens(self, names: Sequence[str]) -> str:
        """Hash of the token ids of every name in one prompt, and of one name in every prompt.

        Raises:
            ConfigError, ModelError: the tokenizer cannot be had.
        """
        first, texts = self.templates[0], [_fill(each, names[0]) for each in self.templates]
        ids = self._tokenizer([*(_fill(first, name) for name in names), *texts])
        return hashlib.sha256(ids.to(torch.int64).numpy().tobytes()).hexdigest()

    @torch.no_grad()
    def compute(self, names: Sequence[str], reporter: Reporter) -> Tensor:
        """Run the text tower over every class name in every template."""
        import open_clip

        tokenizer = self._tokenizer
        parts = []
        templates = [partial(_fill, template) for template in self.templates]
        title = f"zero-shot head ({len(self.templates)} templates)"
        with reporter.stage(title, len(names)) as advance:
            for start in range(0, len(names), CLASSES_AT_ONCE):
                chunk = list(names[start : start + CLASSES_AT_ONCE])
                part = open_clip.build_zero_shot_classifier(
                    self.model,
                    tokenizer=tokenizer,
                    classnames=chunk,
                    templates=templates,
                    num_classes_per_batch=None,
                    device="cpu",
                )
                parts.append(part.T.float())
                advance(len(chunk))
        head = torch.cat(parts).contiguous()
        if not torch.isfinite(head).all():
            raise ModelError("the text tower gives NaN for a class name; its weights are damaged")
        return head


def cache_folder() -> Path | None:
    """`$XDG_CACHE_HOME/regcache-deploy/heads`, by default below `~/.cache`; None without a home."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:  # a uid that the system does not know, as in containers
        return None
    return folder / "regcache-deploy" / "heads"


def _read(path: Path, count: int) -> tuple[Tensor, str] | None:
    """A cached head and its tokens' hash, or None where the file is not whole: it is disposable."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            head, tokens = file.get_tensor("head"), file.metadata()["tokens"]
    except Exception:  # any damage: computed again and replaced
        return None
    return (head, tokens) if head.ndim == 2 and len(head) == count else None


def _write(path: Path, head: Tensor, tokens: str) -> None:
    from safetensors.torch import save

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, save({"head": head}, {"tokens": tokens}))
    except OSError:  # no room, read-only home: only the next run is slower
        return
