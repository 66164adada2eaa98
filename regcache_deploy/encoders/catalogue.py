"""What `regcache models` says of an architecture, from its structure alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from regcache_export.checks.fusion import why_not_int8
from regcache_export.spec import EncoderSpec

from ..errors import UnsupportedEncoderError
from .structure import build_tower, read_tower


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        refusal: the feature that keeps it out; all below is then empty.
        image_size: height and width in pixels.
        tokens: per image, without RegCache's prefix.
        special_tokens: class token and trained registers; they are never deleted.
        gflops: of the image tower on one image, a multiplication and an addition counted as two.
        parameters: of the image tower.
        fuses_int8_attention: whether TensorRT is known to fuse INT8 attention of this shape.
        why_not: what stands against it.
    """

    name: str
    refusal: str | None = None
    image_size: tuple[int, int] = (0, 0)
    tokens: int = 0
    special_tokens: int = 0
    depth: int = 0
    width: int = 0
    head_dim: int = 0
    pool: str = ""
    gflops: float = 0.0
    parameters: int = 0
    fuses_int8_attention: bool = False
    why_not: str | None = None

    def to_json(self) -> dict[str, Any]:
        if self.refusal is not None:
            return {"name": self.name, "supported": False, "refusal": self.refusal}
        values = asdict(self)
        del values["refusal"]
        return values | {"supported": True, "gflops": round(self.gflops, 3)}


def describe(name: str) -> Entry:
    """Read the structure of an architecture at full depth, without its weights.

    Raises:
        ModelError: the library cannot build it.
    """
    tower = build_tower(name)
    try:
        spec = read_tower(name, tower).spec
    except UnsupportedEncoderError as error:
        return Entry(name, refusal=str(error))
    obstacle = why_not_int8(spec.num_tokens, spec.head_dim)
    if spec.rotary:
        obstacle = "rotary positions between qkv and attention were not tried"
    if spec.gated:
        obstacle = "target tensorrt has no form of a gated MLP"
    return Entry(
        name=name,
        image_size=spec.image_size,
        tokens=spec.num_tokens,
        special_tokens=spec.num_prefix_tokens,
        depth=spec.depth,
        width=spec.width,
        head_dim=spec.head_dim,
        pool=spec.pool,
        gflops=2e-9 * multiplications(spec),
        parameters=sum(p.numel() for p in tower.parameters()),
        fuses_int8_attention=obstacle is None,
        why_not=obstacle,
    )


def multiplications(spec: EncoderSpec) -> int:
    """Multiply-accumulates of the original encoder on one image; norms and softmax left out."""
    n, d = spec.num_tokens, spec.width
    pool = spec.output_dim * spec.pooled_dim if spec.projection else 0
    if spec.pool == "map":
        a = spec.pool_width
        pool += 2 * n * d * a + 2 * n * a + a * a + 2 * a * spec.pool_mlp_width
    return spec.embedding_multiplications + spec.depth * spec.block_multiplications + pool
