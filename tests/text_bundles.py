"""Small text sides with random weights, and bundles that hold one."""

from __future__ import annotations

import gzip
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from regcache_deploy.bundling.text import text_part
from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders.load_open_clip import _text_side
from regcache_deploy.encoders.text_side import TextSide
from regcache_deploy.work.progress import Reporter
from regcache_export.bundle import add_files, seal_bundle, write_bundle
from regcache_export.plan import Plan
from tests.tiny_plans import SPEC, tiny_plan

open_clip = import_open_clip()

TEMPLATES = ("a photo of a {}.", "a drawing of the {}", "{}")
MERGES = 2000
VOCABULARY = 512 + MERGES + 2
END = VOCABULARY - 1
TEXT = {"context_length": 20, "vocab_size": VOCABULARY, "width": 64, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1}


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Taken away when the process ends."""
    return tempfile.TemporaryDirectory(prefix="regcache-merges-")


@cache
def _merges() -> str:
    """CLIP's merges, the first of them: a small vocabulary makes small files."""
    packed = Path(open_clip.tokenizer.default_bpe()).read_bytes()
    lines = gzip.decompress(packed).decode().split("\n")
    path = Path(_folder().name) / "merges.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines[: MERGES + 1]).encode()))
    return str(path)


def small_tokenizer() -> Any:
    return open_clip.SimpleTokenizer(_merges(), context_length=TEXT["context_length"])


def small_clip(custom: bool = False, quick_gelu: bool = False, **text: Any) -> Any:
    """A CLIP of open_clip with every weight of its text tower random."""
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    model = kind(
        embed_dim=SPEC.output_dim, vision_cfg=VISION, text_cfg=TEXT | text, quick_gelu=quick_gelu
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("visual.") and "logit" not in name:
                parameter.normal_(0.0, 0.1)
                if "ln_" in name and name.endswith("weight"):
                    parameter.add_(1.0)
    return model.eval()


def text_side(model: Any, tokenizer: Any = None, logit_scale: float = 50.0) -> TextSide:
    """As `load_model` makes it, with a tokenizer that needs no hub."""
    tokenizer = tokenizer or small_tokenizer()

    class Library:
        @staticmethod
        def get_tokenizer(name: str) -> Any:
            return tokenizer

    return _text_side(Library, model, "small", TEMPLATES, logit_scale)


def text_bundle(folder: Path, side: TextSide | None = None, plan: Plan | None = None) -> Path:
    """A tiny quantized encoder with a text tower beside it."""
    plan = plan or tiny_plan()
    side = side or text_side(small_clip())
    part = text_part(side, plan.labels, plan.encoder.output_dim, Reporter(quiet=True))
    draft = write_bundle(plan, folder.with_suffix(".draft"))
    add_files(draft, part.files)
    return seal_bundle(draft, folder, {"text": part.manifest})
