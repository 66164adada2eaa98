"""Names of models that there are not, and files of models that lie."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from regcache_deploy.errors import ConfigError, ModelError
from tests.attacks.fault import FIXED, SMALL, Act, Fault, Outcome, Place
from tests.attacks.watch import run_apart

DINO = {
    "model_type": "dinov2",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


def named(model: str, *more: str) -> Act:
    """An export of a model by name."""

    def act(place: Place) -> list[str]:
        words = ["export", "--model", model, "--data", str(place.images())]
        return [*words, "--output", str(place.out), *SMALL, *more]

    return act


def model_folder(make: Callable[[Path, Place], object], *more: str, word: str = "") -> Act:
    """An export of a model's folder."""

    def act(place: Place) -> list[str]:
        folder = place.given / "model"
        folder.mkdir()
        make(folder, place)
        words = ["export", "--model", f"{word}{folder}", "--data", str(place.images())]
        return [*words, "--output", str(place.out), *SMALL, *FIXED, *more]

    return act


def config(values: Any) -> Callable[[Path, Place], object]:
    return lambda folder, place: write(folder / "config.json", values)


def write(path: Path, values: Any) -> None:
    text = values if isinstance(values, str) else json.dumps(values)
    path.write_text(text, encoding="utf-8")


def shards_outside(folder: Path, place: Place) -> None:
    write(folder / "config.json", DINO)
    save_file({"x": torch.ones(1)}, place.outside / "secret.safetensors")
    index = {"weight_map": {"x": "../../outside/secret.safetensors"}}
    write(folder / "model.safetensors.index.json", index)


def module_outside(folder: Path, place: Place) -> None:
    """A CLIP of sentence-transformers, and its folder somewhere else."""
    write(place.outside / "config.json", DINO)
    entry = {"type": "sentence_transformers.models.CLIPModel", "path": "../../outside"}
    write(folder / "modules.json", [entry])


def linked_weights(folder: Path, place: Place) -> None:
    write(folder / "config.json", DINO)
    (folder / "model.safetensors").mkdir()


def cut_weights(folder: Path, place: Place) -> None:
    write(folder / "config.json", DINO)
    save_file({"x": torch.ones(1000)}, folder / "model.safetensors")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:500])


def foreign_weights(folder: Path, place: Place) -> None:
    write(folder / "config.json", DINO)
    save_file({"x": torch.ones(1000)}, folder / "model.safetensors")


def huge_config(folder: Path, place: Place) -> None:
    write(folder / "config.json", DINO)
    os.truncate(folder / "config.json", 8 << 30)


def bad_processor(folder: Path, place: Place) -> None:
    write(folder / "config.json", DINO)
    write(folder / "preprocessor_config.json", {"size": "large", "image_std": [0, 0, 0]})


def open_clip_nonsense(folder: Path, place: Place) -> None:
    write(folder / "open_clip_config.json", {"model_cfg": {"embed_dim": "wide"}})


def half_downloaded(place: Place) -> Outcome:
    """The hub's client leaves `.incomplete` behind."""
    folder = place.home / "hub/hub/models--org--name"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs/abc.incomplete").write_bytes(b"x" * 100)
    words = named("org/name")(place)
    assert not isinstance(words, Outcome)
    return run_apart(place, words, 150)


def onnx_file(data: bytes, beside: bool = True) -> Act:
    def act(place: Place) -> list[str]:
        folder = place.given / "export"
        folder.mkdir()
        (folder / "model.onnx").write_bytes(data)
        if beside:
            write(folder / "config.json", DINO)
        words = ["export", "--model", f"onnx:{folder / 'model.onnx'}", "--output", str(place.out)]
        return [*words, "--data", str(place.images()), *SMALL, *FIXED]

    return act


fault = partial(Fault, "models", error=ModelError)
random = ("--pretrained", "random")

FAULTS = [
    fault("name", "a name that no library knows", named("ViT-B-23"), says="did you mean"),
    fault("tag", "a tag that the model has not", named("ViT-B-32", "--pretrained", "opnai")),
    fault("timm", "a name that timm does not know", named("timm/vit_tinny_patch16_224")),
    fault("convolutional", "a network without blocks", named("timm/resnet18", *random)),
    fault("windows", "window attention", named("timm/swin_tiny_patch4_window7_224", *random)),
    fault("no-network", "a repository, without a network", named("org/name")),
    fault("traversal", "a repository named ../../etc", named("hf-hub:../../etc")),
    fault("line-feed", "a line feed in the name", named("ViT-B-32\nViT-L-14")),
    fault("absolute", "a folder that is not there", named("/no/such/folder")),
    fault(
        "half-download", "a download that was cut off", half_downloaded, seconds=180, quick=False
    ),
    fault("empty-folder", "an empty folder", model_folder(lambda f, p: None)),
    fault("kind", "a kind of model that is not read", model_folder(config({"model_type": "bert"}))),
    fault("no-json", "config.json is no JSON", model_folder(config("{"))),
    fault("list", "config.json is a list", model_folder(config([]))),
    fault("deep", "config.json of 100,000 lists", model_folder(config("[" * 100_000))),
    fault("huge-config", "config.json of 8 GiB", model_folder(huge_config)),
    fault(
        "huge-width",
        "a width of 10**12",
        model_folder(config(DINO | {"hidden_size": 10**12}), *random),
    ),
    fault(
        "huge-depth",
        "10**9 blocks",
        model_folder(config(DINO | {"num_hidden_layers": 10**9}), *random),
    ),
    fault("negative", "-2 blocks", model_folder(config(DINO | {"num_hidden_layers": -2}), *random)),
    fault(
        "heads",
        "heads that do not divide the width",
        model_folder(config(DINO | {"num_attention_heads": 7}), *random),
    ),
    fault(
        "shards-outside",
        "shards in another folder",
        model_folder(shards_outside),
        traced=True,
        seconds=90,
        quick=False,
    ),
    fault("module-outside", "a module in another folder", model_folder(module_outside)),
    fault("weights-folder", "a folder as the weights", model_folder(linked_weights)),
    fault("weights-cut", "half the weights", model_folder(cut_weights)),
    fault("weights-foreign", "weights of something else", model_folder(foreign_weights)),
    fault("processor", "a processor that makes no sense", model_folder(bad_processor, *random)),
    fault("open-clip", "a width that is a word, of open_clip", model_folder(open_clip_nonsense)),
    fault(
        "patch",
        "an image that is smaller than a patch",
        model_folder(config(DINO), *random, "--img-size", "8"),
        error=ConfigError,
    ),
    fault("onnx-random", "an ONNX export of random bytes", onnx_file(os.urandom(5000))),
    fault("onnx-empty", "an ONNX export of 0 bytes", onnx_file(b"")),
    fault("onnx-alone", "an ONNX export without config.json", onnx_file(b"", beside=False)),
]
