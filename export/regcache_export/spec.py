"""The structure of a canonical pre-norm ViT: numbers and switches, no weights.

Simulation (torch), export (ONNX) and the static checks all read this one description.

Weight names that belong to it (all float32; `D` width, `M` mlp width, `E` output dim, `S` number
of prefix tokens, `N` tokens):

| name | shape |
|---|---|
| `patch_embed.weight`, `patch_embed.bias` (unless there is a `stem`) | `[D, 3, ph, pw]`, `[D]` |
| `stem.I.{weight,bias}`, also below `stem.I.body` and `stem.I.shortcut` | see `stem.Placed` |
| `prefix_tokens` (CLS, trained registers) | `[S, D]` |
| `pos_embed` (added to prefix tokens and patches alike) | `[N, D]` |
| `rotary` (if `rotary`; `d` head size) | `[N, d]` |
| `norm_pre.{weight,bias}` (if `norm_pre`) | `[D]` |
| `blocks.I.norm1.{weight,bias}`, `blocks.I.norm2.{weight,bias}` | `[D]` |
| `blocks.I.norm2_pre.{weight,bias}` (if `norm2_pre`) | `[D]` |
| `blocks.I.attn.qkv.{weight,bias}` | `[3D, D]`, `[3D]` |
| `blocks.I.attn.out_proj.{weight,bias}` | `[D, D]`, `[D]` |
| `blocks.I.mlp.fc1.{weight,bias}` | `[M, D]`, `[M]`; gated, `[2M, D]`, `[2M]` |
| `blocks.I.mlp.fc2.{weight,bias}` | `[D, M]`, `[D]` |
| `blocks.I.ls1`, `blocks.I.ls2` (if `layer_scale`) | `[D]` |
| `norm.{weight,bias}` (unless `final_norm` is `none`) | `[D]` |
| `pool.query` (pool `map`, as this and the following; `A` pool width, `Q` pool MLP width) | `[A]` |
| `pool.kv.{weight,bias}`, `pool.out_proj.{weight,bias}` | `[2A, D]`, `[2A]`; `[A, A]`, `[A]` |
| `pool.norm.{weight,bias}` | `[A]` |
| `pool.mlp.fc1.{weight,bias}`, `pool.mlp.fc2.{weight,bias}` (if `pool_mlp_width`) | as in a block |
| `proj.weight`, `proj.bias` (if `projection`) | `[E, P]`, `[E]`; `P` is `A` or `D` |

A bias that the original module lacks is stored as zeros, and so is the position embedding of prefix
tokens that have none. `pool.query` is the latent after its norm and its projection, which are the
same for every image. `rotary` holds a token's cosines, then its sines: in all blocks, channels `i`
and `i + d/2` of every head are turned by angle i (adapters sort the rows of qkv that way); the rows
of prefix tokens have cosine 1 and sine 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .errors import BundleError
from .json_types import check_fields, expect
from .stem import StemStep, placed, stem_from_json, stem_problem

Activation = Literal["gelu", "quick_gelu", "gelu_tanh", "swiglu", "geglu"]
Pool = Literal["cls", "avg", "map"]
FinalNorm = Literal["before_pool", "after_pool", "none"]

GATED = ("swiglu", "geglu")
"""Activations of an MLP whose first linear makes a gate and a value."""

NEWER = ("norm2_pre", "stem")
"""Fields that are written only where they are used, so that older readers know the rest."""

LINEARS = ("attn.qkv", "attn.out_proj", "mlp.fc1", "mlp.fc2")
"""The four linear layers of a block, in the order in which they run."""

MAX_SIZE = {
    "width": 1 << 16,
    "depth": 1 << 10,
    "heads": 1 << 10,
    "mlp_width": 1 << 18,
    "output_dim": 1 << 20,
    "image_size": 1 << 14,
    "patch_size": 1 << 10,
}
"""Beyond every encoder that there is: a file that says more is damaged, or means harm."""


@dataclass(frozen=True)
class EncoderSpec:
    """Structure of a pre-norm ViT.

    Attributes:
        image_size: input height and width in pixels.
        patch_size: patch height and width in pixels; the patch convolution, or the whole stem, has
            this stride.
        num_prefix_tokens: CLS and trained registers, always in front, never deleted (timm's name;
            not to be confused with RegCache's key/value prefix).
        activation: of the MLP; `swiglu` multiplies the SiLU of fc1's first M rows (the gate) with
            its last M rows, `geglu` their GELU.
        norm_eps: epsilon of every LayerNorm of the transformer.
        final_norm: LayerNorm on all tokens before pooling, on the pooled vector, or not at all.
        pool: `cls` takes token 0, `avg` the mean of the patch tokens; in `map`, one latent query
            attends to the patch tokens (SigLIP, CoCa).
        pool_include_prefix: `avg` and `map` see the prefix tokens, too.
        pool_heads, pool_width: heads and inner width A of `map`.
        pool_mlp_width: `map` ends in `x + mlp(norm(x))` with this hidden width; 0 ends it in
            `norm(x)`.
        rotary: queries and keys are turned by the angles of their patch (RoPE).
        attn_norm, mlp_norm: every token is normalized once more in front of out_proj, or of fc2
            (the sub-LayerNorm of EVA-02, arXiv 2303.11331). Mean 0, variance 1, no weights: those
            of the original are in the linear behind.
        norm2_pre: a norm with weights in front of norm2 (ViTamin, whose MLP has one of its own).
        stem: what makes the patches in place of the patch convolution.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    width: int
    depth: int
    heads: int
    mlp_width: int
    output_dim: int
    num_prefix_tokens: int = 1
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    norm_pre: bool = False
    layer_scale: bool = False
    final_norm: FinalNorm = "before_pool"
    pool: Pool = "cls"
    projection: bool = True
    pool_include_prefix: bool = False
    pool_heads: int = 0
    pool_width: int = 0
    pool_mlp_width: int = 0
    rotary: bool = False
    attn_norm: bool = False
    mlp_norm: bool = False
    norm2_pre: bool = False
    stem: tuple[StemStep, ...] = ()

    @property
    def pooled_dim(self) -> int:
        """Length of the pooled vector, before the projection."""
        return self.pool_width if self.pool == "map" else self.width

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row."""
        return (
            self.image_size[0] // self.patch_size[0],
            self.image_size[1] // self.patch_size[1],
        )

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        return self.num_prefix_tokens + self.num_patches

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def gated(self) -> bool:
        """Whether the MLP is a gated one."""
        return self.activation in GATED

    @property
    def fc1_width(self) -> int:
        """Rows of fc1: a gated MLP has the gate's in front."""
        return (2 if self.gated else 1) * self.mlp_width

    @property
    def embedding_multiplications(self) -> int:
        """Multiply-accumulates that make the patches of one image."""
        if self.stem:
            return sum(each.multiplications for each in placed(self.stem, (3, *self.image_size)))
        return self.num_patches * 3 * self.patch_size[0] * self.patch_size[1] * self.width

    @property
    def block_multiplications(self) -> int:
        """Of one block, on all tokens."""
        n, d = self.num_tokens, self.width
        return n * (4 * d * d + d * (self.fc1_width + self.mlp_width)) + 2 * n * n * d

    def linears(self, start: int = 0) -> Iterator[str]:
        """Names of the quantizable linears, e.g. `blocks.0.attn.qkv`, from block `start` on."""
        for block in range(start, self.depth):
            for role in LINEARS:
                yield f"blocks.{block}.{role}"

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight that this structure needs."""
        d, m = self.width, self.mlp_width
        shapes: dict[str, tuple[int, ...]] = {}
        for each in placed(self.stem, (3, *self.image_size)):
            shapes |= each.weight_shapes()
        if not self.stem:
            shapes["patch_embed.weight"] = (d, 3, *self.patch_size)
            shapes["patch_embed.bias"] = (d,)
        shapes["pos_embed"] = (self.num_tokens, d)
        if self.num_prefix_tokens:
            shapes["prefix_tokens"] = (self.num_prefix_tokens, d)
        if self.rotary:
            shapes["rotary"] = (self.num_tokens, self.head_dim)
        norms = ["norm_pre"] if self.norm_pre else []
        for i in range(self.depth):
            block = f"blocks.{i}"
            norms += [f"{block}.norm1", f"{block}.norm2"]
            norms += [f"{block}.norm2_pre"] if self.norm2_pre else []
            sizes = {"attn.qkv": (3 * d, d), "attn.out_proj": (d, d)}
            sizes |= {"mlp.fc1": (self.fc1_width, d), "mlp.fc2": (d, m)}
            for role, (out_features, in_features) in sizes.items():
                shapes[f"{block}.{role}.weight"] = (out_features, in_features)
                shapes[f"{block}.{role}.bias"] = (out_features,)
            if self.layer_scale:
                shapes[f"{block}.ls1"] = shapes[f"{block}.ls2"] = (d,)
        if self.final_norm != "none":
            norms.append("norm")
        for norm in norms:
            shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (d,)
        if self.pool == "map":
            shapes |= self._pool_shapes()
        if self.projection:
            shapes["proj.weight"] = (self.output_dim, self.pooled_dim)
            shapes["proj.bias"] = (self.output_dim,)
        return shapes

    def _pool_shapes(self) -> dict[str, tuple[int, ...]]:
        a, q = self.pool_width, self.pool_mlp_width
        sizes = {"pool.kv": (2 * a, self.width), "pool.out_proj": (a, a)}
        if q:
            sizes |= {"pool.mlp.fc1": (q, a), "pool.mlp.fc2": (a, q)}
        shapes: dict[str, tuple[int, ...]] = {"pool.query": (a,)}
        for name, (out_features, in_features) in sizes.items():
            shapes[f"{name}.weight"] = (out_features, in_features)
            shapes[f"{name}.bias"] = (out_features,)
        shapes["pool.norm.weight"] = shapes["pool.norm.bias"] = (a,)
        return shapes

    def to_json(self) -> dict[str, Any]:
        data = asdict(self) | {"stem": [step.to_json() for step in self.stem]}
        return {name: value for name, value in data.items() if value or name not in NEWER}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EncoderSpec:
        """Inverse of `to_json`.

        Raises:
            BundleError: an unknown, missing or mistyped field, or a size that is not positive.
        """
        what = "the encoder description"
        expect(what, data, dict, "an object")
        fields = {name: value for name, value in data.items() if name != "stem"}
        check_fields(what, fields, cls, absent=("stem",))
        for name in ("image_size", "patch_size"):
            fields[name] = tuple(fields[name])
        spec = cls(**fields, stem=stem_from_json(data.get("stem", [])))
        if problem := spec.size_problem():
            raise BundleError(f"the encoder description has {problem}")
        return spec

    def size_problem(self) -> str | None:
        """What is wrong with its sizes, in words behind "has"; a file may say anything."""
        for name, most in MAX_SIZE.items():
            value = getattr(self, name)
            sides = value if isinstance(value, tuple) else (value,)
            if min(sides) < 1 or max(sides) > most:
                return f"{name} = {value}; expected 1 to {most}"
        if self.width % self.heads:
            return f"a width of {self.width}, which {self.heads} heads do not divide"
        if min(self.grid) < 1 or not 0 <= self.num_prefix_tokens <= MAX_SIZE["width"]:
            return "no patches, or a number of special tokens that makes no sense"
        if self.stem:
            return stem_problem(self.stem, (3, *self.image_size), (self.width, *self.grid))
        return None
