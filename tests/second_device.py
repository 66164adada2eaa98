"""A second device that computes: tensors of the CPU behind tensors that say they are elsewhere.

It keeps the rules of a GPU. Two tensors of one operation lie on the same device, scalars and
indices apart; what lies on it is brought to the CPU before numpy or Python reads it. An operation
that breaks a rule raises, as CUDA does. Sums are the CPU's, so that results are equal to the bit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

SECOND = torch.device("meta")

INDEXING = ("aten.index.Tensor", "aten.index_put", "aten.index_put_", "aten._unsafe_index")
MOVES = ("aten._to_copy", "aten.copy_")
READS = ("aten._local_scalar_dense", "aten.item")

COMPUTE = (
    "aten.convolution",
    "aten.native_layer_norm",
    "aten.gelu",
    "aten._softmax",
    "aten.addmm",
    "aten.mm",
    "aten.bmm",
    "aten._int_mm",
)
"""What an encoder is made of."""

FACTORIES = (
    "aten.zeros",
    "aten.ones",
    "aten.full",
    "aten.empty",
    "aten.arange",
    "aten.eye",
    "aten.linspace",
    "aten.rand",
    "aten.randn",
)


class There(torch.Tensor):
    """A tensor on the second device."""

    inner: torch.Tensor  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> There:
        made: There = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=SECOND, strides=inner.stride()
        )
        return made

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.inner!r})"

    # reading a value asks for a device guard, which only a real backend has
    def tolist(self) -> Any:
        return self.inner.tolist()

    def item(self) -> Any:
        return self.inner.item()

    def __float__(self) -> float:
        return float(self.inner)

    def __int__(self) -> int:
        return int(self.inner)

    def __bool__(self) -> bool:
        return bool(self.inner)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation: the rules, the CPU's own kernel, and its result on the right device."""
    name = str(func).rsplit(".", 1)[0]
    flat, spec = tree_flatten((args, kwargs))
    there = any(isinstance(x, There) for x in flat)
    target = kwargs.get("device")
    if name not in MOVES and there:
        for value in flat:
            if isinstance(value, torch.Tensor) and not isinstance(value, There):
                index = value.dtype in (torch.int64, torch.bool) and str(func).startswith(INDEXING)
                if value.dim() and not index:
                    raise RuntimeError(f"{func}: tensors on {SECOND} and cpu")
    plain = [x.inner if isinstance(x, There) else x for x in flat]
    plain = [torch.device("cpu") if isinstance(x, torch.device) else x for x in plain]
    inner_args, inner_kwargs = tree_unflatten(plain, spec)
    out = func(*inner_args, **inner_kwargs)
    if name in READS:
        return out
    if name == "aten.copy_" or func._schema.name.endswith("_"):
        return args[0]
    lands = target == SECOND if target is not None else there
    if not lands:
        return out
    return tree_map(lambda x: There(x) if isinstance(x, torch.Tensor) else x, out)


class Watch(TorchDispatchMode):
    """Lets the second device be used, and notes what computes on the CPU meanwhile.

    Attributes:
        on_cpu: `operation in FILE` for every operation of `COMPUTE`, and every tensor that is not
            a scalar and was made in a folder of `rooms`, on the CPU.
    """

    def __init__(self, rooms: tuple[str, ...]) -> None:
        super().__init__()
        self.rooms = rooms
        self.on_cpu: dict[str, int] = {}
        self.there = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat, _ = tree_flatten((args, kwargs))
        name = str(func).rsplit(".", 1)[0]
        out = run(func, args, kwargs)
        if any(isinstance(x, There) for x in flat) or isinstance(out, There):
            self.there += name in COMPUTE
        elif name in COMPUTE or (name in FACTORIES and _size(out) > 1):
            place = _caller()
            if place.startswith(self.rooms):
                said = f"{name} in {place}"
                self.on_cpu[said] = self.on_cpu.get(said, 0) + 1
        return out


def _size(out: Any) -> int:
    return int(out.numel()) if isinstance(out, torch.Tensor) else 0


def _caller() -> str:
    """`room/file.py` of the innermost frame of regcache_deploy."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        parts = PurePath(frame.f_code.co_filename).parts
        if "regcache_deploy" in parts:
            return "/".join(parts[parts.index("regcache_deploy") + 1 :])
        frame = frame.f_back
    return ""


@contextmanager
def second_device(rooms: tuple[str, ...]) -> Iterator[Watch]:
    """`SECOND` may be used in the block."""
    with Watch(rooms) as watch:
        yield watch
