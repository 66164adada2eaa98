"""The structure of a text tower: numbers and switches, no weights.

A canonical transformer, the text side of CLIP, SigLIP and their kin. Weights that belong
to a `TextSpec` (float32; `V` vocabulary, `C` context length, `D` width, `M` MLP width):

| name | shape |
|---|---|
| `token_embed.weight`, `pos_embed` | `[V, D]`, `[C, D]` |
| `blocks.I.norm1.{weight,bias}`, `blocks.I.norm2.{weight,bias}` | `[D]` |
| `blocks.I.attn.qkv.{weight,bias}`, `blocks.I.attn.out_proj.{weight,bias}` | `[3D, D]`, `[D, D]` |
| `blocks.I.mlp.fc1.{weight,bias}`, `blocks.I.mlp.fc2.{weight,bias}` | `[M, D]`, `[D, M]` |
| `norm.{weight,bias}` (`embed_norm` if `post_norm`) | `[D]` |
| `proj.{weight,bias}` (if `projection`) | `[E, D]`, `[E]` |
| `proj.hidden.{weight,bias}` (if `projection_hidden`, H) | `[H, D]`, `[H]`; `proj` is `[E, H]` |

With `post_norm` (BERT and its kin) the norms follow the additions. A layer scale is folded into
the projections, and a missing bias is zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

from .spec import Activation


@dataclass(frozen=True)
class TextSpec:
    """Structure of a text tower.

    Attributes:
        vocab_size: rows of the token embedding.
        context_length: tokens that the position embedding has places for.
        output_dim: length E of the embedding.
        causal: a token sees those before it; else all of them, padding included.
        pooling: as in `TextConfig`.
        eos_id: the end token, for pooling `eos`.
        projection: a linear layer behind the pooled token.
        post_norm: norms behind the additions, one behind the embedding, none at the end.
        pad_id: tokens of this id are seen by none, and are no part of a mean.
        projection_hidden: outputs of a linear and GELU in front of the projection; 0 without.
    """

    vocab_size: int
    context_length: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    output_dim: int
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    causal: bool = True
    pooling: str = "argmax"
    eos_id: int | None = None
    projection: bool = True
    post_norm: bool = False
    pad_id: int | None = None
    projection_hidden: int = 0

    @property
    def any_length(self) -> bool:
        """Whether what stands behind a text's end changes nothing, so that rows may be short."""
        if self.pad_id is not None:
            return self.pooling in ("first", "mean")
        return self.causal and self.pooling in ("argmax", "eos", "first")

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight by name, with its shape."""
        width, hidden = self.width, self.mlp_width
        shapes: dict[str, tuple[int, ...]] = {
            "token_embed.weight": (self.vocab_size, width),
            "pos_embed": (self.context_length, width),
        }
        linears = {
            "attn.qkv": (3 * width, width),
            "attn.out_proj": (width, width),
            "mlp.fc1": (hidden, width),
            "mlp.fc2": (width, hidden),
        }
        for index in range(self.depth):
            for norm in ("norm1", "norm2"):
                shapes |= _affine(f"blocks.{index}.{norm}", (width,))
            for linear, shape in linears.items():
                shapes |= _affine(f"blocks.{index}.{linear}", shape)
        shapes |= _affine("embed_norm" if self.post_norm else "norm", (width,))
        if self.projection_hidden:
            shapes |= _affine("proj.hidden", (self.projection_hidden, width))
        if self.projection:
            shapes |= _affine("proj", (self.output_dim, self.projection_hidden or width))
        return shapes


def _affine(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
