"""Weights that are cut, flipped, of something else, or made to run code."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from regcache_deploy.encoders.encoder_file import SCHEMA
from regcache_deploy.errors import ModelError
from tests.attacks.fault import FIXED, SMALL, Act, Fault, Place

Change = Callable[[Path], None]
TIMM = "timm/vit_tiny_patch16_224"


def damaged(change: Change) -> Act:
    """An export of an encoder file behind a change of the file."""

    def act(place: Place) -> list[str]:
        path = place.encoder()
        change(path)
        return place.export(encoder=path)

    return act


def bytes_of(change: Callable[[bytearray], bytes]) -> Change:
    return lambda path: ignore(path.write_bytes(change(bytearray(path.read_bytes()))))


def ignore(value: object) -> None:
    """For functions whose result nobody needs."""


def cut(share: float) -> Change:
    return bytes_of(lambda data: bytes(data[: int(len(data) * share)]))


def flip(place: int) -> Change:
    def change(data: bytearray) -> bytes:
        data[place] ^= 0x40
        return bytes(data)

    return bytes_of(change)


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """Other tensors, the same description."""

    def rewrite(path: Path) -> None:
        tensors, head = load_file(path), header(path)
        change(tensors)
        save_file(tensors, path, head["__metadata__"])

    return rewrite


def header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


def described(change: Callable[[dict[str, Any]], Any]) -> Change:
    """The same tensors, another description."""

    def rewrite(path: Path) -> None:
        tensors, metadata = load_file(path), header(path)["__metadata__"]
        description = json.loads(metadata[SCHEMA])
        change(description)
        save_file(tensors, path, metadata | {SCHEMA: json.dumps(description)})

    return rewrite


def spec(**values: Any) -> Change:
    return described(lambda description: description["spec"].update(values))


def value(name: str, number: float) -> Change:
    return weights(lambda tensors: ignore(tensors[name].view(-1)[3:4].fill_(number)))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


class Payload:
    """A pickle of it writes the canary wherever it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def checkpoint(data: Callable[[Place], Any], name: str = "weights.pt", model: str = TIMM) -> Act:
    """An export of a timm model from a file of `data`: bytes, or what torch saves."""

    def act(place: Place) -> list[str]:
        path, content = place.given / name, data(place)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif name.endswith(".safetensors"):
            save_file(content, path)
        else:
            torch.save(content, path)
        words = ["export", "--model", model, "--pretrained", str(path), "--img-size", "32"]
        return [*words, "--data", str(place.images()), "--output", str(place.out), *SMALL, *FIXED]

    return act


def timm_state(place: Place) -> dict[str, torch.Tensor]:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(TIMM.removeprefix("timm/"), img_size=32)
    return dict(model.state_dict())


def changed_state(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Place], Any]:
    def make(place: Place) -> dict[str, torch.Tensor]:
        state = timm_state(place)
        change(state)
        return state

    return make


def half_of_a_torch_file(place: Place) -> bytes:
    path = place.temporary / "whole.pt"
    torch.save(timm_state(place), path)
    data = path.read_bytes()
    path.unlink()
    return data[: len(data) // 2]


def wrapped_in_itself(place: Place) -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


def made_up_class(place: Place) -> bytes:
    return b"cno_such_module\nNoClass\n)\x81."


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 346000000\n"
QKV = "blocks.1.attn.qkv.weight"
weights_fault = partial(Fault, "weights", error=ModelError)

FAULTS = [
    weights_fault("empty", "a file of 0 bytes", damaged(cut(0))),
    *(
        weights_fault(f"cut-{share}", f"the first {share:.2%} of the file", damaged(cut(share)))
        for share in (0.00001, 0.001, 0.01, 0.5, 0.999)
    ),
    weights_fault("header-length", "a bit of the header's length", damaged(flip(6))),
    weights_fault("header-bit", "a bit in the header's JSON", damaged(flip(9))),
    weights_fault(
        "header-huge", "a header of 2**60 bytes", damaged(bytes_of(lambda d: b"\0" * 7 + b"\x10"))
    ),
    weights_fault("random", "random bytes", damaged(bytes_of(lambda d: os.urandom(len(d))))),
    weights_fault("missing", "a weight is missing", damaged(weights(lambda t: t.pop(QKV)))),
    weights_fault(
        "renamed",
        "a weight under another name",
        damaged(weights(lambda t: t.update(other=t.pop(QKV)))),
    ),
    weights_fault(
        "extra", "a weight too many", damaged(weights(lambda t: t.update(more=torch.ones(3))))
    ),
    weights_fault(
        "shape",
        "a weight of another shape",
        damaged(weights(lambda t: t.update({QKV: t[QKV][:-1].contiguous()}))),
    ),
    weights_fault("nan", "one NaN", damaged(value(QKV, float("nan")))),
    weights_fault("infinite", "one infinity", damaged(value(QKV, float("inf")))),
    weights_fault("folder", "a folder in place of the file", damaged(folder)),
    weights_fault("absent", "no file", damaged(lambda path: path.unlink())),
    weights_fault("pipe", "a pipe in place of the file", damaged(pipe)),
    weights_fault("loop", "a link to itself", damaged(loop)),
    weights_fault("no-depth", "a description of -1 blocks", damaged(spec(depth=-1))),
    weights_fault("no-heads", "a description of 0 heads", damaged(spec(heads=0))),
    weights_fault("huge-depth", "a description of 10**9 blocks", damaged(spec(depth=10**9))),
    weights_fault("huge-width", "a description of width 10**12", damaged(spec(width=10**12))),
    weights_fault("text-width", "a width that is a word", damaged(spec(width="wide"))),
    weights_fault("no-spec", "no structure", damaged(described(lambda d: d.pop("spec")))),
    weights_fault(
        "deviation",
        "a standard deviation of 0",
        damaged(described(lambda d: d["preprocess"].update(std=[0, 0, 0]))),
    ),
    weights_fault(
        "pixels",
        "preprocessing to another size than the encoder's",
        damaged(described(lambda d: d["preprocess"].update(size=[999, 24]))),
    ),
    weights_fault(
        "pickle-code",
        "a torch file that runs a program when it is unpickled",
        checkpoint(lambda place: {"state_dict": Payload(place.canary)}),
    ),
    weights_fault(
        "bare-pickle",
        "a pickle that runs a program, named .pt",
        checkpoint(lambda place: pickle.dumps(Payload(place.canary))),
    ),
    weights_fault(
        "npz-pickle",
        "a pickle that runs a program, named .npz",
        checkpoint(lambda place: pickle.dumps(Payload(place.canary)), "weights.npz"),
    ),
    weights_fault("unknown-class", "a pickle of a class of no module", checkpoint(made_up_class)),
    weights_fault("torch-cut", "half a torch file", checkpoint(half_of_a_torch_file)),
    weights_fault("pointer", "a pointer of Git LFS", checkpoint(lambda place: POINTER)),
    weights_fault(
        "web-page", "a web page", checkpoint(lambda place: b"<!DOCTYPE html><html>404</html>")
    ),
    weights_fault(
        "pointer-safetensors",
        "a pointer of Git LFS, named .safetensors",
        checkpoint(lambda place: POINTER, "weights.safetensors"),
    ),
    weights_fault("endless", "a wrapping around itself", checkpoint(wrapped_in_itself)),
    weights_fault("no-state", "a torch file of a list", checkpoint(lambda place: [1, 2, 3])),
    weights_fault(
        "other-model",
        "weights of another architecture",
        checkpoint(lambda place: {"conv1.weight": torch.ones(64, 3, 7, 7)}),
    ),
    weights_fault(
        "timm-nan",
        "a NaN in a timm model",
        checkpoint(changed_state(lambda s: ignore(s["norm.weight"].fill_(float("nan"))))),
    ),
    weights_fault(
        "timm-shape",
        "a linear of another shape in a timm model",
        checkpoint(changed_state(lambda s: s.update({"blocks.0.mlp.fc1.weight": torch.ones(2)}))),
    ),
]
