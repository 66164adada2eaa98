"""Where torch computes: the device that was asked for, its memory, and what to do without any left.

Encoder, register, hidden states and quantizers live on the device. Pixels, the scores of a search
and everything that is written lie in the CPU's memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import ConfigError, RegCacheError

AUTO, CPU, CUDA, MPS = "auto", "cpu", "cuda", "mps"

FREE_SHARE = 0.5
"""Of a GPU's free memory that one forward pass may take."""

LIVE = 12
"""Largest tensors that a block holds at a time, in units of tokens times the widest layer."""

T = TypeVar("T")

log = logging.getLogger(__name__)


def find_device(text: str) -> torch.device:
    """The device of `--device`.

    Args:
        text: `cpu`, `cuda`, `cuda:N`, `mps`, or `auto`: a GPU where torch can use one.

    Raises:
        ConfigError: another word, or a device that is not here.
    """
    kind, _, number = text.partition(":")
    if text == AUTO:
        return torch.device(CUDA if torch.cuda.is_available() else CPU)
    if text == CPU:
        return torch.device(CPU)
    if kind == CUDA and (not number or number.isdecimal()):
        return _cuda(text, int(number or 0))
    if text == MPS:
        if not torch.backends.mps.is_available():
            raise ConfigError("--device mps: this torch has no Metal device here; take cpu")
        return torch.device(MPS)
    raise ConfigError(f"--device {text}: take auto, cpu, cuda, cuda:N or mps")


def _cuda(text: str, number: int) -> torch.device:
    if not torch.cuda.is_available():
        why = "finds no NVIDIA GPU" if torch.version.cuda else "was built without CUDA"
        raise ConfigError(f"--device {text}: this torch {why}; take cpu (see: regcache doctor)")
    count = torch.cuda.device_count()
    if number >= count:
        raise ConfigError(f"--device {text}: there are {count} GPUs, from cuda:0 on")
    return torch.device(CUDA, number)


def use_device(text: str) -> torch.device:
    """`find_device`, with float32 products in full float32 on it.

    TensorFloat-32 keeps ten bits of a product's operands, and a search that sees them decides on
    other codes than the CPU, and than the graph.

    Raises:
        ConfigError: as `find_device`.
    """
    device = find_device(text)
    if device.type == CUDA:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.cuda.reset_peak_memory_stats(device)
    return device


def wide(x: Tensor) -> torch.dtype:
    """What sums are taken in on the tensor's device: float64, but Metal has none."""
    return torch.float32 if x.device.type == MPS else torch.float64


def describe(device: torch.device) -> dict[str, Any]:
    """`device`, and for a GPU its `name`, `memory_bytes` and `peak_bytes` of this process."""
    found: dict[str, Any] = {"device": str(device)}
    if device.type == CUDA:
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "peak_bytes": torch.cuda.max_memory_allocated(device),
        }
    elif device.type == MPS:
        found |= {
            "name": "Metal",
            "memory_bytes": torch.mps.recommended_max_memory(),
            "peak_bytes": torch.mps.driver_allocated_memory(),
        }
    return found


def line(device: torch.device) -> str:
    """The device in a few words, for people."""
    found = describe(device)
    if "name" not in found:
        return str(device)
    return f"{device} ({found['name']}, {found['memory_bytes'] / 2**30:.1f} GiB)"


def log_device(device: torch.device, batch: int | None = None) -> None:
    """Say where a run computes, with its memory."""
    many = "" if batch is None else f", {batch} images at a time"
    log.info("computing on %s%s", line(device), many)


def free_memory(device: torch.device) -> int | None:
    """Free bytes of a GPU's own memory; None where it shares the CPU's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == CUDA else None


def fitting_batch(device: torch.device, wanted: int, tokens: int, width: int) -> int:
    """Images per forward pass: `wanted`, or fewer where a GPU's free memory asks for it.

    Args:
        tokens: of one image.
        width: of the widest layer.
    """
    free = free_memory(device)
    if free is None:
        return wanted
    return max(1, min(wanted, int(FREE_SHARE * free / (LIVE * tokens * width * 4))))


def halving(run: Callable[[Tensor], T], images: Tensor) -> list[T]:
    """`run` on `images [b, ...]`; where memory runs out, on halves of them, and halves of those.

    `run` must keep nothing of a call that fails.

    Returns:
        What every call gave, in order.

    Raises:
        RegCacheError: a single image is too much.
    """
    pieces, found = [images], []
    while pieces:
        first = pieces.pop(0)
        try:
            found.append(run(first))
        except torch.OutOfMemoryError as error:
            if len(first) == 1:
                raise RegCacheError(out_of_memory(error)) from None
        else:
            continue
        # behind the handler, whose traceback holds the tensors of the call that failed
        if first.device.type == CUDA:
            torch.cuda.empty_cache()
        pieces[:0] = first.split(-(-len(first) // 2))
    return found


def out_of_memory(error: BaseException) -> str:
    """What to tell a user whose GPU is full."""
    first = str(error).split(". ")[0]
    return (
        f"the device's memory is full ({first}); take fewer --calibration-images, "
        "a smaller --batch-size, or --device cpu"
    )
