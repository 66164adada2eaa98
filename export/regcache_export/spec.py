"""The structure of a canonical pre-norm ViT: numbers and switches, no weights.

Simulation (torch), export (ONNX) and the static checks all read this one description.

Weight names that belong to it (all float32; `D` width, `M` mlp width, `E` output dim, `S` number
of prefix tokens, `N` tokens):

| name | shape |
|---|---|
| `patch_embed.weight`, `patch_embed.bias` | `[D, 3, ph, pw]`, `[D]` |
| `prefix_tokens` (CLS, trained registers) | `[S, D]` |
| `pos_embed` (added to prefix tokens and patches alike) | `[N, D]` |
| `rotary` (if `rotary`; `d` head size) | `[N, d]` |
| `norm_pre.{weight,bias}` (if `norm_pre`) | `[D]` |
| `blocks.I.norm1.{weight,bias}`, `blocks.I.norm2.{weight,bias}` | `[D]` |
| `blocks.I.attn.qkv.{weight,bias}` | `[3D, D]`, `[3D]` |
| `blocks.I.attn.out_proj.{weight,bias}` | `[D, D]`, `[D]` |
| `blocks.I.mlp.fc1.{weight,bias}` | `[M, D]`, `[M]`; with `swiglu`, `[2M, D]`, `[2M]` |
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
from .json_types import check_fields

Activation = Literal["gelu", "quick_gelu", "gelu_tanh", "swiglu"]
Pool = Literal["cls", "avg", "map"]
FinalNorm = Literal["before_pool", "after_pool", "none"]

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
        patch_size: patch height and width in pixels; the patch convolution has this stride.
        num_prefix_tokens: CLS and trained registers, always in front, never deleted (timm's name;
            not to be confused with RegCache's key/value prefix).
        activation: of the MLP; `swiglu` multiplies the SiLU of fc1's first M rows (the gate) with
            its last M rows.
        norm_eps: epsilon of every LayerNorm.
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
    def fc1_width(self) -> int:
        """Rows of fc1: a gated MLP has the gate's in front."""
        return (2 if self.activation == "swiglu" else 1) * self.mlp_width

    def linears(self, start: int = 0) -> Iterator[str]:
        """Names of the quantizable linears, e.g. `blocks.0.attn.qkv`, from block `start` on."""
        for block in range(start, self.depth):
            for role in LINEARS:
                yield f"blocks.{block}.{role}"

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight that this structure needs."""
        d, m = self.width, self.mlp_width
        shapes: dict[str, tuple[int, ...]] = {
            "patch_embed.weight": (d, 3, *self.patch_size),
            "patch_embed.bias": (d,),
            "pos_embed": (self.num_tokens, d),
        }
        if self.num_prefix_tokens:
            shapes["prefix_tokens"] = (self.num_prefix_tokens, d)
        if self.rotary:
            shapes["rotary"] = (self.num_tokens, self.head_dim)
        norms = ["norm_pre"] if self.norm_pre else []
        for i in range(self.depth):
            block = f"blocks.{i}"
            norms += [f"{block}.norm1", f"{block}.norm2"]
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
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EncoderSpec:
        """Inverse of `to_json`.

        Raises:
            BundleError: an unknown, missing or mistyped field, or a size that is not positive.
        """
        check_fields("the encoder description", data, cls)
        fields = dict(data)
        for name in ("image_size", "patch_size"):
            fields[name] = tuple(fields[name])
        spec = cls(**fields)
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
        return None
