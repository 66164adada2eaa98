"""A convolutional stem: what some encoders compute in front of their tokens, in floating point.

A list of steps on feature maps `[B, C, H, W]`; the last one gives the patches, row by row. It
stands in place of the patch convolution (ViTamin's MBConv stages, MobileCLIP's three convolutions).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any, Literal, get_args

from .errors import BundleError
from .json_types import check_fields, expect

StemKind = Literal["conv", "norm", "gelu", "gelu_tanh", "avg_pool", "residual"]
Shape = tuple[int, int, int]
"""Channels, height, width."""

MAX_STEPS = 1 << 8
MAX_NUMBER = 1 << 16
"""Beyond every stem that there is."""


@dataclass(frozen=True)
class StemStep:
    """One step of a stem.

    Attributes:
        kind: `conv`; `norm`, a LayerNorm over the channels of each pixel; GELU or its tanh form;
            `avg_pool`, which does not count padding; `residual`, the sum of its two branches.
        channels: output channels of `conv`.
        kernel, stride, padding: of `conv` and `avg_pool`, the same for height and width; padding
            is with zeros on every side.
        groups: of `conv`.
        eps: of `norm`.
        body, shortcut: branches of `residual`, which hold no further ones; an empty one is the
            input itself.
    """

    kind: StemKind
    channels: int = 0
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    eps: float = 0.0
    body: tuple[StemStep, ...] = ()
    shortcut: tuple[StemStep, ...] = ()

    @property
    def has_window(self) -> bool:
        """Whether it looks at more than one pixel."""
        return self.kind in ("conv", "avg_pool")

    def to_json(self) -> dict[str, Any]:
        """Its fields that are not at their default."""
        data = asdict(self)
        short = {f.name: data[f.name] for f in fields(self) if data[f.name] != f.default}
        for branch in BRANCHES:
            if getattr(self, branch):
                short[branch] = [step.to_json() for step in getattr(self, branch)]
        return short

    @classmethod
    def from_json(cls, data: Any, depth: int = 0) -> StemStep:
        """Inverse of `to_json`; raises BundleError on what no stem has."""
        what = "a step of the stem"
        expect(what, data, dict, "an object")
        rest = {name: value for name, value in data.items() if name not in BRANCHES}
        check_fields(what, rest, cls, absent=BRANCHES)
        if rest["kind"] not in get_args(StemKind) or (depth and rest["kind"] == "residual"):
            raise BundleError(f"{what} has kind = {rest['kind']!r}, which is not known there")
        if depth and data.keys() & set(BRANCHES):
            raise BundleError(f"{what} has branches inside a branch")
        body, shortcut = (stem_from_json(data.get(name, []), depth + 1) for name in BRANCHES)
        return cls(**rest, body=body, shortcut=shortcut)


BRANCHES = ("body", "shortcut")


def stem_from_json(data: Any, depth: int = 0) -> tuple[StemStep, ...]:
    """Steps from a list of JSON objects; raises BundleError."""
    expect("the stem", data, list, "a list")
    if len(data) > MAX_STEPS:
        raise BundleError(f"the stem has {len(data)} steps; expected at most {MAX_STEPS}")
    return tuple(StemStep.from_json(step, depth) for step in data)


@dataclass(frozen=True)
class Placed:
    """A step with its name, `stem.I` or `stem.I.body.J`, and the shapes around it."""

    name: str
    step: StemStep
    before: Shape
    after: Shape

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        channels, step = self.after[0], self.step
        if step.kind == "conv":
            inputs = self.before[0] // step.groups
            weight: tuple[int, ...] = (channels, inputs, step.kernel, step.kernel)
        elif step.kind == "norm":
            weight = (channels,)
        else:
            return {}
        return {f"{self.name}.weight": weight, f"{self.name}.bias": (channels,)}

    @property
    def multiplications(self) -> int:
        """Multiply-accumulates of a convolution on one image; 0 for the rest."""
        if self.step.kind != "conv":
            return 0
        return prod(self.weight_shapes()[f"{self.name}.weight"]) * self.after[1] * self.after[2]


def placed(steps: Sequence[StemStep], image: Shape, name: str = "stem") -> Iterator[Placed]:
    """Every step in the order of computation; a residual's branches come before it.

    Raises:
        BundleError: a step does not fit the map that it gets.
    """
    shape = image
    for index, step in enumerate(steps):
        own = f"{name}.{index}"
        after = _after(own, step, shape)
        if step.kind == "residual":
            ends = []
            for branch in BRANCHES:
                end = shape
                for inner in placed(getattr(step, branch), shape, f"{own}.{branch}"):
                    yield inner
                    end = inner.after
                ends.append(end)
            if ends[0] != ends[1]:
                raise BundleError(f"{own} adds maps of {ends[0]} and {ends[1]}")
            after = ends[0]
        yield Placed(own, step, shape, after)
        shape = after


def _after(name: str, step: StemStep, shape: Shape) -> Shape:
    numbers = (step.kernel, step.stride, step.groups, step.padding + 1)
    if min(numbers) < 1 or max(*numbers, step.channels) > MAX_NUMBER or not 0 <= step.eps < 1:
        raise BundleError(f"{name} has a number that makes no sense")
    if not step.has_window:
        return shape
    channels = step.channels if step.kind == "conv" else shape[0]
    height, width = (
        (side + 2 * step.padding - step.kernel) // step.stride + 1 for side in shape[1:]
    )
    # with more padding, a window could lie on nothing else
    if min(channels, height, width) < 1 or step.padding >= step.kernel:
        raise BundleError(f"{name} makes no map of one of {shape}")
    if shape[0] % step.groups or channels % step.groups:
        raise BundleError(f"{name} has {step.groups} groups for {shape[0]} channels")
    return channels, height, width


def stem_problem(steps: Sequence[StemStep], image: Shape, wanted: Shape) -> str | None:
    """What keeps a stem from giving the patches, in words behind "has"."""
    first = steps[0]
    if first.kind != "conv" or first.groups != 1:
        return "a stem that does not begin with a convolution of the image's three channels"
    end = image
    try:
        for each in placed(steps, image):
            end = each.after
    except BundleError as error:
        return f"a stem that does not fit together: {error}"
    return None if end == wanted else f"a stem that ends in {end}; expected {wanted}"
