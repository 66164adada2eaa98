"""Where TensorRT computes attention in INT8, as far as builds without a GPU tell.

Seen with TensorRT-RTX 1.7.1 on random weights, the same for SM 7.5 to 12.0: fused for 50, 197, 257,
442 and 485 tokens, not for 530 and more; for head sizes 16, 32, 64, not for 48, 80, 96, 128. NVIDIA
names the limit of 512 tokens in NVIDIA/TensorRT#3724. That the full TensorRT has the same limits
is an inference. A value that joins the logits, as the sizes of merged tokens do, breaks the fusion
of INT8 attention, not that of float16.
"""

from __future__ import annotations

from ..merge import Merge, block_tokens
from ..regcache_config import RegCacheConfig
from ..spec import EncoderSpec

MAX_TOKENS = 512
HEAD_SIZES = (16, 32, 64)


LOGITS_WITH_BIAS = "a value is added to its logits"


def why_not_int8(tokens: int, head_size: int) -> str | None:
    """Why INT8 attention over `tokens` keys does not fuse, or None where it does."""
    if head_size not in HEAD_SIZES:
        return f"head size {head_size} is not one of {', '.join(map(str, HEAD_SIZES))}"
    if tokens > MAX_TOKENS:
        return f"{tokens} tokens are more than {MAX_TOKENS}"
    return None


def keys_of_block(
    spec: EncoderSpec, regcache: RegCacheConfig | None, block: int, merge: Merge | None = None
) -> int:
    """Tokens that the attention of a block sees: those that are left, and the prefix."""
    tokens = block_tokens(spec, regcache, merge)[block].attention
    if regcache is not None and block in regcache.prefix_blocks(spec.depth):
        tokens += regcache.prefix_count
    return tokens


def int8_attention_blocks(
    spec: EncoderSpec, regcache: RegCacheConfig | None, merge: Merge | None = None
) -> list[int]:
    """Blocks whose attention is worth quantizing.

    None of a rotary encoder, which was not tried, and none whose logits count merged patches.
    """
    if spec.rotary:
        return []
    counted = merge if merge is not None and merge.proportional else None
    return [
        block
        for block in range(spec.depth)
        if not (counted and counted.merged_before(block))
        and why_not_int8(keys_of_block(spec, regcache, block, merge), spec.head_dim) is None
    ]
